"""MultiHeadAttention(gate=...): the output gate beside its formula, with grouped queries, a cache and bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regard
from regard.masks import Padding
from regard.nn import EncoderBlock, MultiHeadAttention, OutputGatedAttention
from regard.positions import RoPE
from tests.nn.test_multihead import drawn, gradients

WIDTH, HEADS = 12, 4
GATES = pytest.mark.parametrize("gate", ["element", "head"])


def made(gate, dtype=torch.float64, **options):
    torch.manual_seed(0)
    module = MultiHeadAttention(WIDTH, HEADS, gate=gate, dtype=dtype, **options)
    for name, weight in module.named_parameters():
        if "bias" in name:  # zeros hide mistakes
            nn.init.normal_(weight)
    return module


def by_hand(module, x, context, keep=None):
    """softmax(Q K^T / sqrt(d)) V, each head's times its gate, and the output projection, head by head."""
    width, values = module.head_dim, module.value_dim
    sizes = [HEADS * width, module.kv_heads * width, module.kv_heads * values]
    weights, biases = module.in_proj_weight.split(sizes), module.in_proj_bias.split(sizes)
    query, key, value = (
        source @ weight.T + bias for source, weight, bias in zip((x, context, context), weights, biases, strict=True)
    )
    factors = 1 / (1 + torch.exp(-(x @ module.gate_proj.weight.T + module.gate_proj.bias)))
    heads = []
    for head in range(HEADS):
        served = head * module.kv_heads // HEADS
        mine, of_key, of_value = (
            slice(at * size, (at + 1) * size) for at, size in ((head, width), (served, width), (served, values))
        )
        scores = query[..., mine] @ key[..., of_key].mT / width**0.5
        if keep is not None:
            scores = scores.masked_fill(~keep, -torch.inf)
        seen = scores.softmax(-1) @ value[..., of_value]
        by_element = factors.shape[-1] == HEADS * values
        heads.append(
            seen * factors[..., head * values : (head + 1) * values] if by_element else seen * factors[..., [head]]
        )
    return torch.cat(heads, -1) @ module.out_proj.weight.T + module.out_proj.bias


def assert_same(module, found, expected, *inputs):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for (name, one), (_, other) in zip(
        gradients(module, found, inputs), gradients(module, expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


def doubled(*shape, seed=1):
    return drawn(*shape, seed=seed).double().requires_grad_()


@GATES
@pytest.mark.parametrize(
    "options",
    [{}, {"kv_heads": 2}, {"kv_heads": 1, "head_dim": 5, "value_dim": 7}, {"pad_to": 8, "kv_heads": 2}],
    ids=str,
)
def test_is_the_formula(gate, options):
    module = made(gate, causal=True, **options)
    x = doubled(2, 7, WIDTH)
    assert_same(module, module(x), by_hand(module, x, x, torch.ones(7, 7).tril().bool()), x)


@GATES
def test_the_token_that_asks_makes_the_gate(gate):
    module = made(gate, kv_heads=2)
    x, context = doubled(2, 3, WIDTH), doubled(2, 5, WIDTH, seed=2)
    assert_same(module, module(x, context), by_hand(module, x, context), x, context)
    cache = module.cache_context(context)
    assert_same(module, module(x, cache=cache), by_hand(module, x, context), x, context)


@GATES
def test_step_by_step_is_the_whole_text(gate):
    module = made(gate, kv_heads=2, head_dim=4, causal=True, qk_norm="rms", position=RoPE(4))
    x = doubled(2, 8, WIDTH)
    cache = module.make_cache(2, 8)
    found = torch.cat([module(part, cache=cache) for part in x.split([3, 1, 1, 2, 1], 1)], 1)
    assert_same(module, found, module(x), x)


def test_element_gate_is_that_of_output_gated_attention():
    ours, other = made("element"), OutputGatedAttention(WIDTH, HEADS, dtype=torch.float64)
    other.load_state_dict(
        {name if "gate" in name else f"projections.{name}": kept for name, kept in ours.state_dict().items()}
    )
    x = doubled(2, 6, WIDTH)
    torch.testing.assert_close(ours(x, mask=Padding([6, 2])), other(x, mask=Padding([6, 2])), rtol=1e-12, atol=1e-12)


def test_is_that_of_qwen3_next():
    """With its grouped queries, and its norm of queries and keys, which multiplies by 1 + weight."""
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    heads, kv_heads, width, length = 4, 2, 8, 9
    config = Qwen3NextConfig(
        hidden_size=20, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width,
        attention_bias=False, attn_implementation="eager", num_hidden_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = Qwen3NextAttention(config, 0).eval()
    ours = MultiHeadAttention(
        20, heads, kv_heads=kv_heads, head_dim=width, bias=False, causal=True, position=RoPE(width), qk_norm="rms",
        gate="element",
    )  # fmt: skip
    query, gate = peer.q_proj.weight.view(heads, 2, width, 20).unbind(1)
    with torch.no_grad():
        ours.in_proj_weight.copy_(torch.cat([query.flatten(0, 1), peer.k_proj.weight, peer.v_proj.weight]))
        ours.out_proj.weight.copy_(peer.o_proj.weight)
        ours.gate_proj.weight.copy_(gate.flatten(0, 1))
        for norm, theirs in ((ours.query_norm, peer.q_norm), (ours.key_norm, peer.k_norm)):
            theirs.weight.normal_()
            norm.weight.copy_(1 + theirs.weight)
            norm.eps = theirs.eps
    turns = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.cat([turns, turns], -1)[None]
    forbidden = torch.full((length, length), -torch.inf).triu(1)[None, None]
    x = drawn(2, length, 20).requires_grad_()
    expected, found = peer(x, (angles.cos(), angles.sin()), forbidden)[0], ours(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    got, wanted = (torch.autograd.grad(output, x, drawn(*output.shape, seed=3))[0] for output in (found, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@GATES
def test_bfloat16_and_autocast(gate):
    exact, half = made(gate, torch.float32, kv_heads=2), made(gate, torch.bfloat16, kv_heads=2)
    half.load_state_dict(exact.state_dict())
    x = drawn(2, 6, WIDTH)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), exact(x), rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = exact(x)
    torch.testing.assert_close(found.float(), exact(x), rtol=0.05, atol=0.05)


@GATES
def test_state_dict_goes_round_and_lacks_nothing(gate):
    first = made(gate, kv_heads=2)
    second = MultiHeadAttention(WIDTH, HEADS, gate=gate, kv_heads=2, dtype=torch.float64)
    second.load_state_dict(first.state_dict())
    x = doubled(2, 6, WIDTH)
    assert torch.equal(first(x), second(x))
    numbers = WIDTH if gate == "element" else HEADS
    assert first.state_dict()["gate_proj.weight"].shape == (numbers, WIDTH)
    assert first.state_dict()["gate_proj.bias"].shape == (numbers,)


def test_without_a_gate_weights_and_draws_are_as_before():
    torch.manual_seed(0)
    plain = MultiHeadAttention(WIDTH, HEADS)
    assert set(plain.state_dict()) == set(nn.MultiheadAttention(WIDTH, HEADS).state_dict())
    torch.manual_seed(0)
    weights = [nn.init.xavier_uniform_(torch.empty(rows, WIDTH)) for rows in (3 * WIDTH, WIDTH)]
    after = torch.get_rng_state()
    torch.manual_seed(0)
    plain.reset_parameters()
    assert torch.equal(torch.get_rng_state(), after)
    assert all(map(torch.equal, (plain.in_proj_weight, plain.out_proj.weight), weights))


def test_gate_begins_half_open_and_without_a_bias_where_there_is_none():
    module = MultiHeadAttention(WIDTH, HEADS, gate="head")
    assert not module.gate_proj.bias.any()
    with torch.no_grad():
        module.gate_proj.bias.fill_(3.0)
        module.gate_proj.weight.zero_()
    module.reset_parameters()
    assert not module.gate_proj.bias.any()
    assert module.gate_proj.weight.all()
    assert MultiHeadAttention(WIDTH, HEADS, gate="head", bias=False).gate_proj.bias is None


def test_from_torch_and_in_blocks():
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    ours = MultiHeadAttention.from_torch(theirs, gate="head")
    with torch.no_grad():
        ours.gate_proj.weight.zero_()
    x = drawn(2, 5, WIDTH)
    torch.testing.assert_close(2 * ours(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-5)  # a gate of one half
    assert EncoderBlock(WIDTH, HEADS, gate="element").self_attention.gate_proj.out_features == WIDTH


def test_refusals():
    with pytest.raises(regard.ArgumentError, match=r"gate: expected 'element' or 'head', got 'channel'\. Say what"):
        MultiHeadAttention(WIDTH, HEADS, gate="channel")
    with pytest.raises(regard.UnsupportedError, match="MultiHeadAttention with gate"):
        MultiHeadAttention(WIDTH, HEADS, gate="head").to_torch()
