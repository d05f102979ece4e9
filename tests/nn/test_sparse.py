"""Block, dilated, strided, BigBird and top-k attention against the plain definition, and BigBird against its peer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from regard import ArgumentError, MaskError, ShapeError, UnsupportedError
from regard.masks import BigBird, Padding, SlidingWindow
from regard.masks._block_map import UNSURE
from regard.masks._indices import block_grid
from regard.nn import (
    BigBirdAttention,
    BlockAttention,
    DilatedAttention,
    StridedAttention,
    TopKAttention,
)
from regard.nn._block_table import BlockTable
from tests.nn.plain_heads import drawn, plain, projected, same, written_out

N = 23


def everywhere(query, key):
    return True


RULES = {
    "block": (lambda **more: BlockAttention(12, 3, block_size=5, **more), lambda i, j: i // 5 == j // 5),
    "dilated": (
        lambda **more: DilatedAttention(12, 3, step=3, window=2, **more),
        lambda i, j: (j - i) % 3 == 0 and abs(j - i) <= 6,
    ),
    "dilated-unbounded": (
        lambda **more: DilatedAttention(12, 3, step=4, window=None, **more),
        lambda i, j: (j - i) % 4 == 0,
    ),
    "strided": (
        lambda **more: StridedAttention(12, 3, stride=4, **more),
        lambda i, j: abs(j - i) <= 4 or (j - i) % 4 == 0,
    ),
    "strided-one": (lambda **more: StridedAttention(12, 3, stride=1, **more), everywhere),
    "strided-beyond": (lambda **more: StridedAttention(12, 3, stride=40, **more), everywhere),
}
REAL = torch.arange(N) < torch.tensor([N, 9])[:, None]
HOLES = torch.rand(2, N, generator=torch.Generator().manual_seed(7)) < 0.6
SOME = torch.rand(N, N, generator=torch.Generator().manual_seed(8)) < 0.5
MASKS = {
    "no mask": (None, torch.ones(1, 1, 1, 1, dtype=torch.bool)),
    "padding": (Padding([N, 9]), REAL[:, None, None]),
    "real tokens": (HOLES, HOLES[:, None, None]),
    "pairs": (SOME, SOME[None, None]),
    "pairs as four dimensions": (SOME[None, None], SOME[None, None]),
    "a mask": (SlidingWindow(3), written_out(N, lambda i, j: abs(i - j) <= 3)[None, None]),
    "two masks": (
        SlidingWindow(3) & Padding([N, 9]),
        written_out(N, lambda i, j: abs(i - j) <= 3)[None, None] & REAL[:, None, None],
    ),
}


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("asked", MASKS)
@pytest.mark.parametrize("name", RULES)
def test_is_attention_with_its_mask(name, asked, causal):
    make, rule = RULES[name]
    module, x = drawn(make(causal=causal), (2, N, 12))
    given, allowed = MASKS[asked]
    keep = written_out(N, lambda i, j: rule(i, j) and (j <= i or not causal)) & allowed
    x.requires_grad_()
    # The parts of strided attention are joined by an lse of float32.
    tolerance = 1e-6 if name.startswith("strided") else 1e-11
    same(module(x, mask=given), plain(module, x, keep), [x], [*module.parameters()], tolerance=tolerance)
    assert torch.equal(
        module.own_mask(N).dense(N, N), written_out(N, lambda i, j: rule(i, j) and (j <= i or not causal))
    )


@pytest.mark.parametrize("name", RULES)
def test_in_float32(name):
    make, rule = RULES[name]
    module, x = drawn(make(), (2, N, 12), dtype=torch.float32)
    x.requires_grad_()
    expected = plain(module, x, written_out(N, rule))
    same(module(x), expected, [x], [*module.parameters()], tolerance=1e-5)


def test_without_a_bias_and_without_a_last_map():
    module, x = drawn(BlockAttention(12, 3, block_size=4, bias=False, output_projection=False), (2, 9, 12))
    assert [name for name, _ in module.named_parameters()] == ["in_proj_weight"]
    torch.testing.assert_close(module(x), plain(module, x, written_out(9, lambda i, j: i // 4 == j // 4)))


def test_the_weights_of_nn_multihead_attention_load():
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    ours = BlockAttention(12, 3, block_size=100).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    module, x = drawn(StridedAttention(12, 3, stride=4, dropout_p=0.5), (2, N, 12))
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


# ------------------------------------------------------------------------------------------------ BigBird


def test_bigbird_is_attention_with_the_drawn_mask():
    module, x = drawn(BigBirdAttention(12, 3, block_size=2, random_blocks=2, seed=5), (2, N, 12))
    x.requires_grad_()
    keep = BigBird(2, 3, (1, 1), 2, seed=5).dense(N, N)
    assert not keep.all()
    same(module(x), plain(module, x, keep), [x], [*module.parameters()], tolerance=1e-11)


def test_bigbird_with_a_table_of_random_blocks():
    table = torch.tensor([[[4], [5], [0], [1], [2], [3]], [[3], [3], [5], [0], [1], [1]]])

    def keep_of(head):
        def rule(i, j):
            row, col = i // 2, j // 2
            edge = row in (0, 5) or col in (0, 5)
            return edge or abs(row - col) <= 1 or col == int(table[head, row, 0])

        return written_out(11, rule)

    keep = torch.stack([keep_of(0), keep_of(1)])
    assert not torch.equal(keep[0], keep[1])
    module, x = drawn(BigBirdAttention(8, 2, block_size=2, random_blocks=table), (2, 11, 8))
    assert torch.equal(module.own_mask(11).dense(11, 11)[0], keep)
    torch.testing.assert_close(module(x), plain(module, x, keep))
    assert "random_table" in module.state_dict()
    with pytest.raises(ArgumentError, match=r"random_blocks: expected a table for the 8 blocks of 15 tokens"):
        module(torch.zeros(1, 15, 8, dtype=torch.float64))


@pytest.fixture
def numpy_state():
    """transformers' BigBird seeds numpy's global generator in every training forward."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


@pytest.mark.usefixtures("numpy_state")
def test_bigbird_is_transformers_bigbird_where_its_random_blocks_are_new():
    pytest.importorskip("transformers")
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    block, blocks, heads, drawn_blocks = 4, 12, 2, 2
    length = block * blocks
    config = BigBirdConfig(
        hidden_size=16, num_attention_heads=heads, block_size=block, num_random_blocks=drawn_blocks,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = BigBirdBlockSparseAttention(config, seed=0).train()
    # Two blocks for each of the blocks between the first and the last that are neither global nor in its window.
    rows = range(1, blocks - 1)
    new = {row: [col for col in rows if abs(col - row) > 1] for row in rows}
    tables = [[new[row][head :: 3 + head][:drawn_blocks] for row in rows] for head in range(heads)]
    theirs._bigbird_block_rand_mask_with_head = lambda **_: [np.array(table) for table in tables]
    around = torch.tensor([[[0] * drawn_blocks, *table, [0] * drawn_blocks] for table in tables])
    ours = BigBirdAttention.from_transformers(theirs, around)
    x = torch.randn(2, length, 16, requires_grad=True)
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(2, length), block)
    expected, _ = theirs(x, **_named(masks))
    same(ours(x), expected, [x], [], tolerance=1e-5)


def _named(masks):
    blocked, band, from_mask, to_mask = masks
    return {
        "band_mask": band, "from_mask": from_mask, "to_mask": to_mask, "from_blocked_mask": blocked,
        "to_blocked_mask": blocked,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- top-k


def best_of(module, x, topk, keep, context=None):
    """The pairs that the definition keeps: those whose score is one of the row's `topk` highest."""
    (query,) = projected(module, x, 0)
    (key,) = projected(module, x if context is None else context, 1)
    scores = (query @ key.transpose(-1, -2)).masked_fill(~keep, float("-inf"))
    least = scores.sort(-1, descending=True).values[..., min(topk, scores.shape[-1]) - 1, None]
    return keep & (scores >= least)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("asked", MASKS)
@pytest.mark.parametrize("chunk", [4, 100])
def test_topk_keeps_the_best(chunk, asked, causal):
    module, x = drawn(TopKAttention(12, 3, topk=5, chunk=chunk, causal=causal), (2, N, 12))
    given, allowed = MASKS[asked]
    keep = (written_out(N, lambda i, j: j <= i or not causal) & allowed).expand(2, 3, N, N)
    x.requires_grad_()
    expected = plain(module, x, best_of(module, x, 5, keep))
    same(module(x, mask=given), expected, [x], [*module.parameters()], tolerance=1e-11)


def test_topk_of_a_context():
    module, x, context = drawn(TopKAttention(12, 3, topk=4, chunk=3), (2, 7, 12), (2, 11, 12))
    keep = torch.ones(2, 3, 7, 11, dtype=torch.bool)
    expected = plain(module, x, best_of(module, x, 4, keep, context), context)
    torch.testing.assert_close(module(x, context), expected)


def test_topk_of_as_many_as_there_are_is_full_attention():
    module, x = drawn(TopKAttention(12, 3, topk=N, chunk=5), (2, N, 12))
    torch.testing.assert_close(module(x), plain(module, x, torch.ones(N, N, dtype=torch.bool)))


def test_topk_with_dropout_recomputes_the_same_weights_for_backward():
    module, x = drawn(TopKAttention(12, 3, topk=5, chunk=4, dropout_p=0.5), (2, N, 12))
    x.requires_grad_()

    def loss(moved):
        torch.manual_seed(9)
        return module(moved).square().sum()

    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    with torch.no_grad():
        slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("make", [lambda: BlockAttention(12, 3), lambda: DilatedAttention(12, 3)])
def test_refuses_a_context(make):
    with pytest.raises(UnsupportedError, match=r"takes no context. Take MultiHeadAttention for cross attention"):
        make()(torch.zeros(1, 4, 12), torch.zeros(1, 5, 12))


@pytest.mark.parametrize(
    ("make", "wording"),
    [
        (lambda: BlockAttention(12, 5), r"num_heads: expected a divisor of embed_dim 12, got 5"),
        (lambda: BlockAttention(12, 3, block_size=0), r"block_size: expected a whole number of at least 1, got 0"),
        (lambda: DilatedAttention(12, 3, step=0), r"step: expected a whole number of at least 1, got 0"),
        (lambda: DilatedAttention(12, 3, window=0), r"window: expected a whole number of at least 1, got 0"),
        (lambda: StridedAttention(12, 3, stride=-1), r"stride: expected a whole number of at least 1, got -1"),
        (lambda: BlockAttention(12, 3, dropout_p=1.5), r"dropout_p: expected a number from 0 to 1, got 1.5"),
        (lambda: TopKAttention(12, 3, topk=0), r"topk: expected a whole number of at least 1, got 0"),
        (lambda: BigBirdAttention(12, 3, causal=True), r"causal: expected False, got True. Global and random blocks"),
        (lambda: BigBirdAttention(12, 3, window_blocks=2), r"window_blocks: expected an odd number, got 2. Take 3"),
        (
            lambda: BigBirdAttention(12, 3, random_blocks=torch.zeros(2, 4, 1)),
            r"random_blocks: expected a number, or an int table .* got torch.float32 \(2, 4, 1\)",
        ),
        (
            lambda: BigBirdAttention.from_transformers(torch.nn.Linear(2, 2)),
            r"layer: expected a transformers BigBirdBlockSparseAttention, got Linear",
        ),
    ],
)
def test_refuses_bad_options(make, wording):
    with pytest.raises((ArgumentError, MaskError), match=wording):
        make()


@pytest.mark.parametrize(
    ("mask", "wording"),
    [
        (torch.ones(2, 9, dtype=torch.bool), r"mask: expected \(batch, kv_len\) = \(2, 8\).* got \(2, 9\)"),
        (torch.ones(2, 8), r"mask: expected a regard.masks value or a bool tensor .* got torch.float32"),
        (torch.ones(2, 2, 3, 8, dtype=torch.bool), r"mask: expected .* got \(2, 2, 3, 8\)"),
        ([True], r"mask: expected a regard.masks value or a bool tensor .* got list"),
    ],
)
def test_refuses_masks_of_another_kind(mask, wording):
    with pytest.raises(MaskError, match=wording):
        BlockAttention(12, 3)(torch.zeros(2, 8, 12), mask=mask)


def test_refuses_a_square_mask_with_two_meanings():
    with pytest.raises(MaskError, match=r"could be \(batch, kv_len\) or \(q_len, kv_len\). Say which"):
        BlockAttention(12, 3)(torch.zeros(8, 8, 12), mask=torch.ones(8, 8, dtype=torch.bool))


def test_topk_refuses_a_causal_context_of_another_length():
    module = TopKAttention(12, 3, causal=True)
    with pytest.raises(ArgumentError, match=r"context: expected 4 tokens, as many as x, where causal=True, got 5"):
        module(torch.zeros(1, 4, 12), torch.zeros(1, 5, 12))
    with pytest.raises(ShapeError, match=r"context: expected \(batch, length, embed_dim 12\)"):
        module(torch.zeros(1, 4, 12), torch.zeros(1, 5, 11))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_table_of_blocks_tells_what_its_rectangles_hold(heads, size):
    kept = torch.rand(heads, -(-22 // size), -(-17 // size), generator=torch.Generator().manual_seed(size)) < 0.4
    kept[:, :2] = True
    mask = BlockTable(kept, size)
    dense = mask.dense(22, 17).view(1, heads, 22, 17)
    for block in (1, 2, 5, 8):
        found = mask.blocks(22, 17, block)
        for kind, rule in (("empty", lambda part: not part.any()), ("full", lambda part: bool(part.all()))):
            for head in range(heads):
                for row, col in itertools.product(range(-(-22 // block)), range(-(-17 // block))):
                    part = dense[0, head, row * block : (row + 1) * block, col * block : (col + 1) * block]
                    assert bool(getattr(found, kind)[0, head, row, col]) == rule(part)
    at = block_grid(1, heads, 22, 17, 4)
    assert not (mask.block_kinds(at) == UNSURE).any(), "a formula, and no look at the elements"
