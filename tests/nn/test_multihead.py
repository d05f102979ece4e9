"""MultiHeadAttention against torch's module and the definition in loops; its cache against the full pass; refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import regard
from regard.masks import Causal, Padding, SlidingWindow
from regard.nn import EncoderBlock, MultiHeadAttention
from regard.positions import ALiBi, RoPE, Shaw, T5Bias

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_torch(**options):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(24, 4, batch_first=True, **options)
    if made.in_proj_bias is not None:  # torch begins them at 0, where a wrong order of biases would not be seen
        nn.init.normal_(made.in_proj_bias)
        nn.init.normal_(made.out_proj.bias)
    return made


def gradients(module, output, inputs):
    weights = dict(module.named_parameters())
    found = torch.autograd.grad(output, [*weights.values(), *inputs], drawn(*output.shape, seed=3))
    return [*dict(zip(weights, found, strict=False)).items(), *enumerate(found[len(weights) :])]


def same_with_gradients(ours, theirs, our_call, their_call, inputs):
    """Outputs and the gradients of weights, by name, and of inputs."""
    mine, other = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
    found, expected = our_call(*mine), their_call(*other)
    torch.testing.assert_close(found, expected, **CLOSE)
    expected_gradients = dict(gradients(theirs, expected, other))
    for name, gradient in gradients(ours, found, mine):
        torch.testing.assert_close(gradient, expected_gradients[name], **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


# -------------------------------------------------------------------------------------------------- torch


PADDED = torch.arange(7)[None] >= torch.tensor([7, 4, 1])[:, None]
TORCH_MASKS = {
    "nothing": ({}, {}),
    "key_padding_mask": ({"key_padding_mask": PADDED}, {"mask": Padding.from_key_padding_mask(PADDED)}),
    "attn_mask": (
        {"attn_mask": ~SlidingWindow(2).dense(7, 7)},
        {"mask": SlidingWindow(2)},
    ),
    "both": (
        {"attn_mask": ~Causal().dense(7, 7), "key_padding_mask": PADDED},
        {"mask": Causal() & Padding([7, 4, 1])},
    ),
    "bias": ({"attn_mask": drawn(7, 7, seed=5)}, {"bias": drawn(7, 7, seed=5)}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", TORCH_MASKS.values(), ids=TORCH_MASKS)
def test_self_attention_is_torchs(masks, bias):
    theirs = of_torch(bias=bias)
    ours = MultiHeadAttention.from_torch(theirs)
    same_with_gradients(
        ours,
        theirs,
        lambda x: ours(x, **masks[1]),
        lambda x: theirs(x, x, x, need_weights=False, **masks[0])[0],
        [drawn(3, 7, 24)],
    )


def test_causal_is_torchs():
    theirs = of_torch()
    ours = MultiHeadAttention.from_torch(theirs, causal=True)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    same_with_gradients(
        ours, theirs, ours, lambda x: theirs(x, x, x, attn_mask=mask, is_causal=True)[0], [drawn(3, 7, 24)]
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_cross_attention_with_other_widths_is_torchs(batch_first):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 4, kdim=12, vdim=10, batch_first=batch_first)
    nn.init.normal_(theirs.in_proj_bias)
    ours = MultiHeadAttention.from_torch(theirs)
    assert ours.in_proj_weight is None

    def call(*inputs):
        if batch_first:
            return theirs(*inputs)[0]
        return theirs(*(each.transpose(0, 1) for each in inputs))[0].transpose(0, 1)

    same_with_gradients(ours, theirs, ours, call, [drawn(2, 3, 24), drawn(2, 7, 12), drawn(2, 7, 10)])


@pytest.mark.parametrize("own_values", [True, False])
def test_cross_attention_of_one_width_is_torchs(own_values):
    theirs = of_torch()
    ours = MultiHeadAttention.from_torch(theirs)
    inputs = [drawn(2, 3, 24), drawn(2, 7, 24, seed=2), drawn(2, 7, 24, seed=4)][: 3 if own_values else 2]
    same_with_gradients(ours, theirs, ours, lambda x, y, z=None: theirs(x, y, y if z is None else z)[0], inputs)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 12, "vdim": 10}, {"dropout": 0.25}])
def test_to_torch_and_back(options):
    theirs = of_torch(**options).eval()
    ours = MultiHeadAttention.from_torch(theirs)
    again = ours.to_torch()
    assert ours.training is again.training is False
    assert (again.dropout, again.batch_first) == (theirs.dropout, True)
    assert ours.to_torch(batch_first=False).batch_first is False
    assert ours.state_dict().keys() == theirs.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in theirs.state_dict().items())
    with torch.no_grad():
        ours.out_proj.weight.zero_()
    assert theirs.out_proj.weight.any()  # copies, not views


def test_a_state_dict_of_torch_loads_as_it_is():
    theirs, ours = of_torch(), MultiHeadAttention(24, 4)
    ours.load_state_dict(theirs.state_dict())
    x = drawn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], **CLOSE)


def test_weights_apart_load_into_one_and_back():
    """Checkpoints of other libraries keep three projections where there could be one."""
    ours = MultiHeadAttention(24, 4)
    state = ours.state_dict()
    parts = dict(
        zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), state["in_proj_weight"].split(24), strict=True)
    )
    apart = {name: kept for name, kept in state.items() if name != "in_proj_weight"} | parts
    other = nn.ModuleDict({"layer": MultiHeadAttention(24, 4)})
    other.load_state_dict({f"layer.{name}": kept for name, kept in apart.items()})
    x = drawn(2, 7, 24)
    assert torch.equal(other["layer"](x), ours(x))
    three = MultiHeadAttention(24, 4, kdim=24, vdim=20)
    three.vdim = 24
    three.v_proj_weight = nn.Parameter(torch.zeros(24, 24))
    three.load_state_dict(state)
    assert torch.equal(three(x), ours(x))


@pytest.mark.parametrize(("option", "name"), [("add_bias_kv", "bias_k and bias_v"), ("add_zero_attn", "add_zero_attn")])
def test_keys_of_no_token_are_refused(option, name):
    with pytest.raises(regard.UnsupportedError, match=f"{name}.*a key that belongs to no token"):
        MultiHeadAttention.from_torch(of_torch(**{option: True}))


def test_from_torch_leaves_none_of_the_weights_out():
    theirs = torch.nn.MultiheadAttention(8, 2)
    with pytest.raises(regard.ArgumentError, match=r"no place for its in_proj_bias, out_proj\.bias\. Leave out bias"):
        MultiHeadAttention.from_torch(theirs, bias=False)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(regard.ArgumentError, match="no place for its"):
        EncoderBlock.from_torch(layer, bias=False)


def test_bias_k_in_a_state_dict_is_refused():
    with pytest.raises(regard.UnsupportedError, match="state_dict with bias_k"):
        MultiHeadAttention(24, 4).load_state_dict(of_torch(add_bias_kv=True).state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"kv_heads": 2},
        {"head_dim": 5},
        {"value_dim": 3},
        {"causal": True},
        {"position": ALiBi(4)},
        {"softcap": 3.0},
        {"sink": True},
        {"qk_norm": "rms"},
        {"scale": 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_to_torch_refuses_by_name_what_torch_has_not(options):
    with pytest.raises(regard.UnsupportedError, match=f"MultiHeadAttention with {next(iter(options))}"):
        MultiHeadAttention(24, 4, **options).to_torch()


# --------------------------------------------------------------------------------------------- definition


def defined(module, x, causal):
    """Grouped heads, sink, softcap and norm, one query at a time, in float64."""
    module, x = copy.deepcopy(module).double(), x.double()
    width, group = module.head_dim, module.num_heads // module.kv_heads
    weights = torch.split(
        module.in_proj_weight, [module.num_heads * width, module.kv_heads * width, module.kv_heads * module.value_dim]
    )
    biases = torch.split(module.in_proj_bias, [len(weight) for weight in weights])
    queries, keys, values = (x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    rows = []
    for sample in range(x.shape[0]):
        for place in range(x.shape[1]):
            heads = []
            for head in range(module.num_heads):
                own = slice(head // group * width, (head // group + 1) * width)
                own_values = slice(head // group * module.value_dim, (head // group + 1) * module.value_dim)
                query = module.query_norm(queries[sample, place, head * width : (head + 1) * width])
                seen = place + 1 if causal else x.shape[1]
                scores = module.key_norm(keys[sample, :seen, own]) @ query / math.sqrt(width)
                if module.softcap is not None:
                    scores = module.softcap * torch.tanh(scores / module.softcap)
                if module.sink is not None:
                    scores = torch.cat([scores, module.sink[head, None]])
                weight = scores.softmax(0)[:seen]
                heads.append(weight @ values[sample, :seen, own_values])
            rows.append(torch.cat(heads) @ module.out_proj.weight.T + module.out_proj.bias)
    return torch.stack(rows).view(*x.shape[:2], -1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 2, "causal": True},
        {"kv_heads": 1, "head_dim": 5, "value_dim": 3},
        {"sink": True, "softcap": 1.5},
        {"qk_norm": "rms"},
        {"qk_norm": "layer", "kv_heads": 2},
        {"pad_to": 16, "value_dim": 7},
    ],
    ids=str,
)
def test_is_the_definition(options):
    torch.manual_seed(0)
    module = MultiHeadAttention(24, 4, **options)
    for name, weight in module.named_parameters():
        if "weight" not in name or "norm" in name:
            nn.init.normal_(weight)
    x = drawn(2, 6, 24)
    expected = defined(module, x, options.get("causal", False))
    torch.testing.assert_close(module(x).double(), expected, **CLOSE)


@pytest.mark.parametrize("position", [None, lambda: RoPE(6), lambda: T5Bias(4)])
def test_padding_heads_inside_changes_nothing(position):
    torch.manual_seed(0)
    plain = MultiHeadAttention(24, 4, position=None if position is None else position())
    padded = MultiHeadAttention(24, 4, pad_to=16, position=None if position is None else position())
    padded.load_state_dict(plain.state_dict())
    same_with_gradients(padded, plain, padded, plain, [drawn(2, 7, 24)])


def test_position_and_mask_reach_attention():
    module = MultiHeadAttention(24, 4, position=ALiBi(4, form="symmetric"))
    x = drawn(2, 7, 24)
    states = [
        part.view(2, 7, 4, 6).transpose(1, 2) for part in nn.functional.linear(x, module.in_proj_weight).split(24, -1)
    ]
    heads = regard.attention(*states, mask=SlidingWindow(2), position=module.position, backend="eager")
    expected = module.out_proj(heads.transpose(1, 2).reshape(2, 7, 24))
    torch.testing.assert_close(module(x, mask=SlidingWindow(2)), expected, **CLOSE)
    assert (module(x) - expected).abs().max() > 1e-2


def test_a_tensor_mask_joins_causal():
    module, x = MultiHeadAttention(24, 4, causal=True), drawn(3, 7, 24)
    expected = module(x, mask=Padding([7, 4, 1]))
    real = ~PADDED
    for mask in (real[:, None, None], real[:, None, None].expand(3, 1, 7, 7), Padding.from_attention_mask(real)):
        torch.testing.assert_close(module(x, mask=mask), expected, **CLOSE)
    with pytest.raises(regard.MaskError, match="Dense mask: expected"):
        module(x, mask=real)


def test_f40_dropout_only_in_training_and_from_torchs_generator():
    module, x = MultiHeadAttention(24, 4, dropout_p=0.5), drawn(2, 7, 24)
    torch.manual_seed(5)
    first, second = module(x), module(x)
    torch.manual_seed(5)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(module(x), module(x))


def test_weights_begin_xavier_uniform():
    torch.manual_seed(0)
    module = MultiHeadAttention(64, 4)
    for weight in (module.in_proj_weight, module.out_proj.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.97 * bound < weight.abs().max() <= bound
    assert not module.in_proj_bias.any()
    assert not module.out_proj.bias.any()


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, r"num_heads: expected a divisor of embed_dim 24, got 5"),
        ({"num_heads": 0}, r"num_heads: expected a whole number of at least 1"),
        ({"num_heads": -4}, r"num_heads: expected a whole number of at least 1"),
        ({"embed_dim": 0}, r"embed_dim: expected a whole number of at least 1"),
        ({"kv_heads": 3}, r"kv_heads: expected a divisor of num_heads 4, got 3"),
        ({"head_dim": 0}, r"head_dim: expected a whole number of at least 1"),
        ({"dropout_p": 1.5}, r"dropout_p: expected a probability"),
        ({"softcap": -1.0}, r"softcap: expected a positive number"),
        ({"scale": math.inf}, r"scale: expected a finite number"),
        ({"qk_norm": "batch"}, r"qk_norm: expected 'rms', 'layer' or None, got 'batch'"),
        ({"pad_to": 0}, r"pad_to: expected a whole number of at least 1"),
        ({"position": "rope"}, r"position: expected a regard.positions module, got str"),
        ({"position": ALiBi(8)}, r"ALiBi heads: expected 4"),
        ({"position": RoPE(8)}, r"RoPE dim: expected at most 6"),
        (
            {"position": Shaw(6, 2), "pad_to": 16},
            r"pad_to: expected a divisor of head_dim 6 .* Shaw \(content and value\)",
        ),
    ],
    ids=str,
)
def test_f12_bad_options_are_refused(options, message):
    with pytest.raises((regard.ArgumentError, regard.ShapeError), match=message):
        MultiHeadAttention(**{"embed_dim": 24, "num_heads": 4, **options})


def test_bad_inputs_are_refused():
    module, x = MultiHeadAttention(24, 4, kdim=12, vdim=10), drawn(2, 7, 24)
    with pytest.raises(regard.ShapeError, match=r"key: expected \(batch, length, embed_dim 12\)"):
        module(x)
    with pytest.raises(regard.ShapeError, match="value: expected"):
        module(x, drawn(2, 7, 12), drawn(2, 7, 12))
    with pytest.raises(regard.ShapeError, match="batch size: expected the same"):
        module(x, drawn(1, 7, 12), drawn(1, 7, 10))
    with pytest.raises(regard.MaskError, match="Causal with q_len != kv_len"):
        MultiHeadAttention(24, 4, causal=True)(x, drawn(2, 5, 24))


def test_observe_sees_which_tokens_it_looks_at():
    module, x = MultiHeadAttention(24, 4), drawn(2, 7, 24)
    with regard.observe(nn.Sequential(module)) as seen:
        module(x)
    assert torch.allclose(seen.layers[0].weights().sum(-1), torch.ones(2, 4, 7))


def test_shows_its_options():
    assert repr(MultiHeadAttention(24, 4, kv_heads=2, causal=True, dropout_p=0.1)).startswith(
        "MultiHeadAttention(\n  embed_dim=24, num_heads=4, head_dim=6, kv_heads=2, causal=True, dropout_p=0.1"
    )
