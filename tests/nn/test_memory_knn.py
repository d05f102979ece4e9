"""The memory of nearest neighbours beside its formula, with every key scored."""

import pytest
import torch

from regard.nn import KNNMemory
from tests.nn.memories import WIDTH, assert_alike, assert_same_gradients, drawn, lower, read, seeded


def knn_by_hand(module, segments, top_k, *, causal):
    """Every remembered key is scored in a loop over the queries, and the best are softmaxed."""
    heads = module.projections
    weights, biases = heads.in_proj_weight.chunk(3), heads.in_proj_bias.chunk(3)
    old_keys = old_values = None
    outputs = []
    for x in segments:
        query, key, value = (
            (x @ w.T + b).unflatten(-1, (2, -1)).transpose(1, 2) for w, b in zip(weights, biases, strict=True)
        )
        factor = heads.head_dim**-0.5
        if module.log_scale is not None:
            query, key = query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True)
            factor = module.log_scale.exp()[:, None, None]
        scores = factor * query @ key.mT
        if causal:
            scores = scores.masked_fill(~lower(x.shape[1]), -torch.inf)
        output = scores.softmax(-1) @ value
        if old_keys is not None:
            scores = factor * query @ old_keys.mT
            order = scores.argsort(-1, descending=True)[..., top_k:]
            scores = scores.scatter(-1, order, -torch.inf)
            gate = torch.sigmoid(module.gate_logit)[:, None, None]
            output = gate * (scores.softmax(-1) @ old_values) + (1 - gate) * output
        outputs.append(heads.out_proj(output.transpose(1, 2).flatten(2)))
        key, value = key.detach(), value.detach()
        old_keys = key if old_keys is None else torch.cat([old_keys, key], 2)
        old_values = value if old_values is None else torch.cat([old_values, value], 2)
        old_keys, old_values = (old[:, :, -module.memory_length :] for old in (old_keys, old_values))
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("piece", [2048, 4])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_knn_is_its_formula(top_k, normalize, piece):
    module = seeded(lambda: KNNMemory(WIDTH, 2, memory_length=7, top_k=top_k, normalize=normalize, causal=True))
    module.PIECE = piece
    segments = [drawn(2, n, WIDTH, seed=n).requires_grad_() for n in (4, 5, 2, 9)]
    found, state = read(module, segments)
    expected = knn_by_hand(module, segments, top_k, causal=True)
    assert_alike(found, expected)
    assert_same_gradients(module, found, expected, *segments)
    assert state["keys"].shape == (2, 2, 7, 4)


def test_knn_gate_is_told():
    module = KNNMemory(WIDTH, 2)
    assert torch.equal(module.gate, torch.full((2,), 0.5))
