"""Every mask against its rule in plain Python, pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import KINDS, any_case, combined_cases, simple_cases

from regard.masks import (
    Axial,
    Blocks,
    Causal,
    CrissCross,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    GridBlocks,
    Indices,
    Keys,
    Neighborhood,
    Padding,
    PrefixLM,
    SlidingWindow,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=80)


def picture(mask, q_len, kv_len):
    """The mask as lines of # and . so that a small one can be checked by eye."""
    return ["".join("#" if kept else "." for kept in row) for row in mask.dense(q_len, kv_len).tolist()]


@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.data())
def test_mask_is_its_rule(kind, data):
    case = data.draw(simple_cases([kind]))
    assert torch.equal(case.dense, case.written_out)


@SETTINGS
@given(combined_cases())
def test_combined_mask_is_its_combined_rule(case):
    assert torch.equal(case.dense, case.written_out)


@SETTINGS
@given(any_case(), st.data())
def test_tile_is_a_part_of_dense(case, data):
    rows = torch.tensor(data.draw(st.lists(st.integers(0, case.q_len - 1), max_size=6)), dtype=torch.int64)
    cols = torch.tensor(data.draw(st.lists(st.integers(0, case.kv_len - 1), max_size=6)), dtype=torch.int64)
    tile = case.mask.tile(rows, cols, case.q_len, case.kv_len)
    assert torch.equal(tile, case.mask.dense(case.q_len, case.kv_len)[..., rows, :][..., cols])


@SETTINGS
@given(any_case())
def test_keep_takes_single_pairs_as_a_mask_mod_gives_them(case):
    dense = case.dense
    for place in [(0, 0, 0, 0), tuple(size - 1 for size in dense.shape)]:
        at = Indices(*map(torch.tensor, place), case.q_len, case.kv_len)
        kept = case.mask.keep(at)
        assert kept.dtype == torch.bool
        assert kept.shape == ()
        assert bool(kept) == bool(dense[place])


@pytest.mark.parametrize(
    ("mask", "q_len", "kv_len", "expected"),
    [
        (Causal(), 3, 3, ["#..", "##.", "###"]),
        (Causal("top_left"), 2, 4, ["#...", "##.."]),
        (Causal("bottom_right"), 2, 4, ["###.", "####"]),
        (SlidingWindow(1, 0), 4, 4, ["#...", "##..", ".##.", "..##"]),
        (SlidingWindow(1), 3, 4, ["##..", "###.", ".###"]),
        (SlidingWindow(1, 0, align="bottom_right"), 2, 4, [".##.", "..##"]),
        (SlidingWindow(0), 3, 3, ["#..", ".#.", "..#"]),
        (Dilated(2, 1, 0), 5, 5, ["#....", ".#...", "#.#..", ".#.#.", "..#.#"]),
        (Dilated(2), 4, 4, ["#.#.", ".#.#", "#.#.", ".#.#"]),
        (GlobalTokens(1), 3, 3, ["###", "#..", "#.."]),
        (GlobalTokens([1], align="bottom_right"), 1, 3, [".#."]),
        (Blocks(2), 5, 5, ["##...", "##...", "..##.", "..##.", "....#"]),
        (PrefixLM(2), 4, 4, ["##..", "##..", "###.", "####"]),
        (Documents([1, 0, 2]), 3, 3, ["#..", ".##", ".##"]),
        (Axial((2, 2), 1), 4, 4, ["##..", "##..", "..##", "..##"]),
        (Axial((2, 2), 0), 4, 4, ["#.#.", ".#.#", "#.#.", ".#.#"]),
        (CrissCross((2, 2)), 4, 4, ["###.", "##.#", "#.##", ".###"]),
        (GridBlocks((1, 4), (1, 2)), 4, 4, ["#.#.", ".#.#", "#.#.", ".#.#"]),
        (Neighborhood((4,), 1), 4, 4, ["##..", "###.", ".###", "..##"]),
    ],
    ids=repr,
)
def test_mask_by_hand(mask, q_len, kv_len, expected):
    assert picture(mask, q_len, kv_len) == expected


def test_sparse_transformer_is_a_window_and_a_stride():
    mask = Causal() & (SlidingWindow(3, 0) | Dilated(3))
    for i, j in torch.cartesian_prod(torch.arange(9), torch.arange(9)).tolist():
        expected = j <= i and (i - j <= 3 or (i - j) % 3 == 0)
        assert bool(mask.dense(9, 9)[i, j]) == expected


def test_longformer_sees_its_window_and_its_global_tokens():
    kept = (SlidingWindow(1) | GlobalTokens([3])).dense(6, 6)
    assert kept[0].tolist() == [True, True, False, True, False, False]
    assert kept[3].all()


def test_f14_window_wider_than_the_text_is_full_attention():
    assert SlidingWindow(50).dense(5, 7).all()
    assert SlidingWindow(2**31 - 1).dense(5, 7).all()
    assert torch.equal(Dilated(3, 50).dense(9, 9), Dilated(3).dense(9, 9))
    assert torch.equal(Dilated(2**31 - 1, 2**31 - 1).dense(4, 4), torch.eye(4, dtype=torch.bool))


def test_f17_document_of_no_tokens_changes_nothing():
    with_it, without = Documents([0, 3, 0, 0, 4, 0]), Documents([3, 4])
    assert torch.equal(with_it.dense(7, 7), without.dense(7, 7))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_f17_offsets_are_running_totals_in_either_integer(dtype):
    offsets = torch.tensor([0, 10, 10, 32], dtype=dtype)
    assert Documents.from_offsets(offsets, total=32) == Documents([10, 0, 22])


def test_f18_padding_of_a_whole_sample_keeps_nothing():
    kept = Padding([0, 2]).dense(3, 2)
    assert kept.shape == (2, 1, 3, 2)
    assert not kept[0].any()
    assert kept[1].all()


def test_f23_the_two_conventions_of_padding_are_each_others_opposite():
    real = torch.tensor([[1, 1, 0], [0, 1, 0]])
    from_one, from_other = Padding.from_attention_mask(real), Padding.from_key_padding_mask(real == 0)
    assert from_one == from_other == Keys(real.bool())
    assert torch.equal(from_one.dense(2, 3)[:, 0, 0], real.bool())


def test_f23_padding_agrees_with_nn_multihead_attention():
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(4, 1, batch_first=True)
    text, padded = torch.randn(2, 3, 4), torch.tensor([[False, False, True], [False, True, True]])
    expected, _ = layer(text, text, text, key_padding_mask=padded, need_weights=False)
    kept = Padding.from_key_padding_mask(padded).dense(3, 3)
    got, _ = layer(text, text, text, attn_mask=~kept[:, 0], need_weights=False)
    assert torch.allclose(got, expected, atol=1e-6)


def test_f24_causal_and_padding_is_the_intersection():
    kept = (Causal() & Padding([1, 3])).dense(3, 3)
    assert torch.equal(kept, Causal().dense(3, 3) & Padding([1, 3]).dense(3, 3))


def test_f26_bottom_right_with_more_queries_than_keys_leaves_the_first_rows_empty():
    assert picture(Causal("bottom_right"), 4, 2) == ["..", "..", "#.", "##"]


@pytest.mark.parametrize("lengths", [(0, 0), (0, 3), (3, 0)], ids=str)
def test_f01_f02_empty_lengths_give_empty_masks(lengths):
    for mask in [Causal("top_left"), SlidingWindow(1) | Blocks(2), ~Dilated(2), Padding([0, 0]), GlobalTokens(0)]:
        assert tuple(mask.dense(*lengths).shape[-2:]) == lengths
        assert mask.blocks(*lengths, 2).kinds.numel() == 0


def test_f03_a_batch_of_no_samples():
    assert Padding([]).dense(2, 3).shape == (0, 1, 2, 3)
    assert Padding([]).blocks(2, 3, 2).kinds.shape == (0, 1, 1, 2)
    assert Dense(torch.ones(0, 3, 2, 3, dtype=torch.bool)).blocks(2, 3, 2).kinds.shape == (0, 3, 1, 2)
    assert Dense(torch.ones(0, 3, dtype=torch.bool)).blocks(0, 3, 2).kinds.shape == (1, 1, 0, 2)


def test_f30_dense_takes_any_strides():
    kept = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    for view in [kept.T, kept[::2], kept[:, ::3], kept[:1].expand(4, 8)]:
        q_len, kv_len = view.shape
        assert torch.equal(Dense(view).dense(q_len, kv_len), view)


def test_dense_answer_is_its_own_memory():
    kept = Padding([1]).dense(3, 2)
    kept[0, 0, 0, 0] = False
    assert kept[0, 0, 1, 0]


def test_dense_goes_to_the_device_asked_for():
    for mask in [Causal(), GlobalTokens(1), Documents([2, 1]), Padding([2]), Keys(torch.ones(1, 3, dtype=torch.bool))]:
        assert mask.dense(3, 3, device="meta").device.type == "meta"
