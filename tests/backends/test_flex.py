"""FlexAttention: its block lists say what the mask says, and its fused form agrees with the oracle."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

import regard
from regard import masks
from regard.backends import flex
from regard.masks import Causal, Dense, Padding, SlidingWindow
from regard.positions import ALiBi, RoPE
from regard.trust.plain import plain_attention
from tests import oracles
from tests.oracles import Case

BATCH, HEADS = 2, 4

BLOCK_MASKS = {
    "causal": Causal(),
    "causal-bottom-right": Causal("bottom_right"),
    "window": SlidingWindow(100, 3),
    "global-or-window": masks.GlobalTokens([0, 200]) | SlidingWindow(20),
    "padding": Padding([0, 150]),
    "documents-not": ~masks.Blocks(90),
    "dilated": masks.Dilated(3, 40),
    "dense": Dense(torch.rand(BATCH, HEADS, 300, 300, generator=torch.Generator().manual_seed(0)) < 0.001),
}


def problem(mask, q_len, kv_len, heads=HEADS):
    tensors = (torch.randn(BATCH, heads, length, 8) for length in (q_len, kv_len, kv_len))
    return regard._front_door.build_problem(*tensors, mask=mask)


@pytest.mark.parametrize("name", BLOCK_MASKS)
def test_block_mask_means_what_torchs_means(name):
    mask, length = BLOCK_MASKS[name], 300  # two whole blocks of 128 and one cut short
    ours = flex.block_mask(mask, problem(mask, length, length))
    batch, heads = mask.batch_size, mask.head_count
    theirs = create_block_mask(ours.mask_mod, batch, heads, length, length, device="cpu", BLOCK_SIZE=flex.BLOCK)
    assert torch.equal(ours.to_dense().bool(), theirs.to_dense().bool())
    for one, other in ((ours, theirs), (theirs, ours)):
        assert torch.equal(full_blocks(one), full_blocks(other))
    elements = create_mask(ours.mask_mod, batch, heads, length, length, device="cpu")
    assert torch.equal(elements.expand_as(dense(mask, length)), dense(mask, length))


def full_blocks(block_mask):
    """Which blocks need no look at their elements, (batch, heads, q_blocks, kv_blocks)."""
    count, index = block_mask.full_kv_num_blocks, block_mask.full_kv_indices
    chosen = torch.zeros(index.shape, dtype=torch.bool)
    listed = torch.arange(index.shape[-1]) < count.unsqueeze(-1)
    return chosen.scatter(-1, index.long(), listed)


def dense(mask, length):
    whole = mask.dense(length, length)
    return whole if whole.dim() == 4 else whole[None, None]


FUSED = {
    "causal-with-alibi": {"mask": Causal("bottom_right"), "position": lambda: ALiBi(HEADS, align="bottom_right")},
    "window-with-empty-rows": {"mask": SlidingWindow(3, 0) & ~SlidingWindow(0), "softcap": 3.0},
    "padding-with-rope": {"mask": Padding([20, 37]), "position": lambda: RoPE(16, align="bottom_right"), "scale": 0.2},
    "bias-of-keys": {"bias": lambda: torch.randn(BATCH, 1, 1, 37), "enable_gqa": True},
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # in inductor
@pytest.mark.parametrize("name", FUSED)
def test_fused_form(name, monkeypatch):
    monkeypatch.setattr(flex, "COMPILE_FROM_SCORES", 1)
    options = {key: value() if callable(value) else value for key, value in FUSED[name].items()}
    kv_heads = 2 if options.get("enable_gqa") else HEADS
    tensors = torch.randn(BATCH, HEADS, 29, 16), *(torch.randn(BATCH, kv_heads, 37, 16) for _ in range(2))
    case = Case(*tensors, options)
    table = case.run(regard.dispatch, backend="flex")
    assert "fused kernel" in str(table), "or this test is of the unfused form"
    truth = oracles.oracle(case, gradient=False)
    plain = oracles.answer(plain_attention, case, gradient=False)
    oracles.assert_answer(oracles.answer(on_flex, case, gradient=False), plain, truth)


def on_flex(*tensors, **options):
    return regard.attention(*tensors, backend="flex", **options)


def test_fused_form_takes_many_scales(monkeypatch):
    # Each scale is compiled into the kernel; torch.compile gives up on a function that has been compiled 8 times.
    seen = []
    monkeypatch.setattr(flex, "COMPILE_FROM_SCORES", 1)
    monkeypatch.setattr(flex, "_compiled", lambda signature: seen.append(signature) or flex._unfused)
    query = torch.randn(1, 1, 4, 8)
    for scale in (0.1, 0.2):
        on_flex(query, query, query, scale=scale)
    assert len(set(seen)) == 2
