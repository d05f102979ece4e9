"""What the tests of memories share: one of each mechanism, draws, a read of segments, attention by hand."""

import math

import pytest
import torch

from regard.nn import KNNMemory, MemoryAttention, RecurrentMemory, TransformerXLMemory

WIDTH = 8
MAKERS = {
    "memory": lambda **o: MemoryAttention(WIDTH, 2, slots=3, **o),
    "transformer_xl": lambda **o: TransformerXLMemory(WIDTH, 2, memory_length=5, **o),
    "knn": lambda **o: KNNMemory(WIDTH, 2, memory_length=6, top_k=2, **o),
    "recurrent": lambda **o: RecurrentMemory(WIDTH, 2, memory_tokens=3, **o),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def seeded(make, dtype=torch.float64):
    torch.manual_seed(0)
    module = make().to(dtype).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name or "logit" in name:  # zeros hide mistakes
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    return module


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def read(module, segments, state=None, masks=None):
    """The outputs of all segments, one after the other, and the last state."""
    outputs = []
    for place, segment in enumerate(segments):
        output, state = module(segment, state=state, mask=None if masks is None else masks[place])
        outputs.append(output)
    return torch.cat(outputs, 1), state


def assert_alike(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same_gradients(module, found, expected, *inputs):
    wanted = [*inputs, *module.parameters()]
    grad = drawn(*found.shape, seed=9)
    mine = torch.autograd.grad(found, wanted, grad, allow_unused=True)
    theirs = torch.autograd.grad(expected, wanted, grad, allow_unused=True)
    for tensor, *pair in zip(wanted, mine, theirs, strict=True):
        one, other = (torch.zeros_like(tensor) if each is None else each for each in pair)
        assert_alike(one, other, 1e-8)


def by_hand(heads, x, context, keep=None):
    """Multi-head attention of x to a context, with the rows of the stacked weight."""
    weights, biases = heads.in_proj_weight.chunk(3), heads.in_proj_bias.chunk(3)
    query, key, value = (
        (s @ w.T + b).unflatten(-1, (heads.num_heads, -1)).transpose(1, 2)
        for s, w, b in zip((x, context, context), weights, biases, strict=True)
    )
    scores = query @ key.mT / math.sqrt(heads.head_dim)
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return heads.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def lower(n):
    return torch.ones(n, n, dtype=torch.bool).tril()
