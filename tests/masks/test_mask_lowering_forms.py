"""Which form a mask is given, what that costs, and when an answer is given twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from test_mask_lowering import assert_lowered, pairs_of

from regard import MaskError, masks
from regard.masks import (
    Causal,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    Indices,
    Keys,
    Mask,
    Padding,
    PrefixLM,
    SlidingWindow,
)
from regard.masks._band import Band
from regard.masks._bit_tiles import BLOCK
from regard.masks._intervals import of_band, runs_of
from regard.masks._lowering import lower

LENGTH = 256


def some(*shape, share=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share


def form(mask, length=LENGTH):
    """(band, number of runs, whether there are bits, whether it is a tensor)."""
    found = lower(mask, length, length)
    count = 0 if found.intervals is None else found.intervals.shape[2]
    return (found.before, found.after), count, found.tiles is not None, found.dense is not None


BAND, NO_BAND = (None, 0), (None, None)
FORMS = {
    "causal": (Causal(), (BAND, 0, False, False)),
    "window": (SlidingWindow(9, 4), ((9, 4), 0, False, False)),
    "bands": (Causal() & SlidingWindow(9) & SlidingWindow(3, 70), ((3, 0), 0, False, False)),
    "documents": (Causal() & Documents([56, 200]), (BAND, 1, False, False)),
    "padding": (Padding([5, 256], side="left"), (NO_BAND, 1, False, False)),
    "padding and documents": (Padding([70]) & Documents([56, 200]) & Causal(), (BAND, 1, False, False)),
    "prefix": (PrefixLM(4), (NO_BAND, 1, False, False)),
    "blocks": (masks.Blocks(50), (NO_BAND, 1, False, False)),
    "touching runs": (masks.Blocks(50) | Padding([100]), (NO_BAND, 2, False, False)),
    "window and global": (SlidingWindow(4) | GlobalTokens(2), (NO_BAND, 2, False, False)),
    "not causal": (~Causal(), (NO_BAND, 1, False, False)),
    "few runs": (Keys(torch.arange(LENGTH)[None] % 64 > 3), (NO_BAND, 4, False, False)),
    "nothing": (Padding([0]), (NO_BAND, 1, False, False)),
    "eight runs": (GlobalTokens(range(0, 16, 2)), (NO_BAND, 8, False, False)),
    "nine runs": (GlobalTokens(range(0, 18, 2)), (NO_BAND, 0, True, False)),
    "many runs": (Keys(some(1, LENGTH)) & Causal(), (BAND, 0, True, False)),
    "a column": (masks.Axial((4, 64), 0), (NO_BAND, 4, False, False)),
    "a long column": (masks.Axial((64, 4), 0), (NO_BAND, 0, True, False)),
    "a row": (masks.Axial((64, 4), 1), (NO_BAND, 1, False, False)),
    "a cross": (masks.CrissCross((4, 64)), (NO_BAND, 4, False, False)),
    "spread": (masks.GridBlocks((16, 16), 2), (NO_BAND, 4, False, False)),
    "spread of whole rows": (masks.GridBlocks((16, 16), (2, 16)), (NO_BAND, 2, False, False)),
    "bigbird": (masks.BigBird(16) & Causal(), (BAND, 0, True, False)),
    "dense": (Dense(some(LENGTH, LENGTH)), (NO_BAND, 0, False, True)),
    "dense and more": (Causal() & Padding([9, 8]) & Dense(some(2, 1, LENGTH, LENGTH)), (BAND, 1, False, True)),
    "two dense": (Dense(some(LENGTH, LENGTH)) & Dense(some(LENGTH, LENGTH)), (NO_BAND, 0, True, False)),
    "not dense": (~Dense(some(LENGTH, LENGTH)), (NO_BAND, 0, True, False)),
    "dense or": (Dense(some(LENGTH, LENGTH)) | Causal(), (NO_BAND, 0, True, False)),
}


@pytest.mark.parametrize("name", FORMS)
def test_form(name):
    mask, expected = FORMS[name]
    assert form(mask) == expected
    assert_lowered(mask, LENGTH, LENGTH)


def test_bands_that_count_from_different_keys_do_not_join():
    found = lower(Causal("bottom_right") & SlidingWindow(5), 70, 100)
    assert (found.before, found.after, found.offset) == (None, 0, 30)
    assert found.intervals.shape == (1, 1, 1, 2, 70)
    assert_lowered(Causal("bottom_right") & SlidingWindow(5), 70, 100)


def test_parts_whose_intersection_has_many_runs_stay_apart():
    mask = ~GlobalTokens(range(1, 14, 2)) & ~GlobalTokens(range(200, 213, 2))
    found = lower(mask, LENGTH, LENGTH)
    assert found.intervals.shape[2] == 8
    assert found.tiles is not None
    assert_lowered(mask, LENGTH, LENGTH)


def test_a_dense_tensor_is_seen_and_not_copied():
    tensor = some(1, 3, LENGTH, LENGTH)
    assert lower(Dense(tensor) & Causal(), LENGTH, LENGTH).dense.data_ptr() == tensor.data_ptr()
    found = lower(Dense(tensor[0, 0]), LENGTH, LENGTH).dense
    assert (found.shape, found.data_ptr()) == ((1, 1, LENGTH, LENGTH), tensor.data_ptr())


SPARSE = [masks.BigBird(40), masks.Neighborhood((40, 25), 2), Dilated(3, 20), Padding([9, 999]) | Dilated(5, 30)]


@pytest.mark.parametrize("mask", SPARSE, ids=repr)
def test_only_partial_blocks_have_words(mask):
    partial = int(mask.blocks(1000, 1000, BLOCK).partial.sum())
    tiles = lower(mask, 1000, 1000).tiles
    assert 0 < tiles.words.numel() <= BLOCK * partial
    assert tiles.word.numel() <= int((~mask.blocks(1000, 1000, BLOCK).empty).sum())


def test_blocks_aligned_with_the_words_need_none():
    tiles = lower(masks.BigBird(64), 1024, 1024).tiles
    assert tiles.words.numel() == 0
    assert (tiles.word == -1).all()


def test_neighbouring_blocks_of_one_kind_are_one_run():
    tiles = lower(masks.BigBird(64, random_blocks=0), 640, 640).tiles
    runs = tiles.keys[tiles.first[5] : tiles.first[6]]  # the first block, and the three around the sixth
    assert runs.tolist() == [[0, 64], [256, 448]]


@pytest.mark.parametrize("around", [SlidingWindow(100), Documents([2048] * 8), Padding([300])], ids=repr)
def test_bits_are_laid_out_only_where_the_other_parts_keep_something(around):
    length = 16384
    there = int((~around.blocks(length, length, BLOCK).empty).sum())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        tiles = lower(around & Dilated(7), length, length).tiles
    assert 0 < tiles.words.numel() <= BLOCK * there
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= max(2**23, 8 * tiles.words.numel())  # all pairs would be 2**28


def test_equal_masks_share_one_answer():
    for mask, same in [
        (Causal() & SlidingWindow(5), Causal() & SlidingWindow(5)),
        (~masks.BigBird(16) | Padding([7, 9]), ~masks.BigBird(16) | Padding([7, 9])),
        (GlobalTokens([1, 9]), GlobalTokens([9, 1])),
    ]:
        assert lower(mask, LENGTH, LENGTH) is lower(same, LENGTH, LENGTH)
        assert lower(mask, LENGTH, LENGTH) is not lower(mask, LENGTH + 1, LENGTH + 1)


def test_masks_of_the_same_numbers_do_not_share_one():
    alike = [
        SlidingWindow(3),
        Dilated(3),
        masks.Blocks(3),
        GlobalTokens(3),
        PrefixLM(3),
        Padding([3]),
        masks.BigBird(3),
    ]
    alike += [Causal() & masks.Blocks(3), Causal() | masks.Blocks(3), ~(Causal() & masks.Blocks(3))]
    alike += [Padding([3], side="left"), Causal("bottom_right"), Causal("top_left"), masks.Axial((2, 2), 0)]
    alike += [masks.Axial((2, 2), 1), masks.CrissCross((2, 2)), masks.GridBlocks((2, 2), 1), Documents([3, 1])]
    assert len({id(lower(mask, 4, 4)) for mask in alike}) == len(alike)
    for mask in alike:
        assert_lowered(mask, 4, 4)


@pytest.mark.parametrize("combine", [lambda mask: mask, lambda mask: Causal() & ~mask, lambda mask: mask | Dilated(9)])
@pytest.mark.parametrize("kind", [Dense, Keys])
def test_a_tensor_that_was_written_to_is_read_again(kind, combine):
    tensor = some(LENGTH, LENGTH)
    mask = combine(kind(tensor if kind is Dense else tensor[:2]))
    before = pairs_of(lower(mask, LENGTH, LENGTH), LENGTH, LENGTH).clone()
    tensor.logical_not_()
    after = pairs_of(lower(mask, LENGTH, LENGTH), LENGTH, LENGTH)
    assert not torch.equal(before, after)
    if kind is Dense:  # `Keys` counted its keys when it was made, and asks not to be written to
        assert_lowered(mask, LENGTH, LENGTH)


def test_masks_of_others_are_lowered_each_time_and_need_no_hash():
    class Near(Mask):
        reach = 3

        def keep(self, at: Indices):
            return (at.query - at.key).abs() <= self.reach

    @dataclass
    class Listed(Near):
        seen: list[int]

    for mask in (Near(), Listed([1])):
        assert lower(mask, 70, 90) is not lower(mask, 70, 90)
        assert_lowered(mask, 70, 90)
        mask.reach = 70
        assert_lowered(mask, 70, 90)


def test_lengths_that_do_not_fit_are_refused_each_time():
    for _ in range(2):
        with pytest.raises(MaskError, match="Documents lengths"):
            lower(Causal("top_left") & Documents([3]), 4, 4)


def test_an_answer_first_asked_for_in_inference_mode_serves_afterwards():
    mask = Documents([LENGTH - 7, 7]) & (Dilated(13) | masks.Blocks(11))
    with torch.inference_mode():
        found = lower(mask, LENGTH, LENGTH)
    tensors = [found.intervals, found.tiles.first, found.tiles.keys, found.tiles.word, found.tiles.words]
    assert not any(tensor.is_inference() for tensor in tensors)


def test_many_threads_get_equal_answers():
    wanted = [masks.BigBird(size, random_blocks=1) & Causal() for size in range(20, 28)] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda mask: lower(mask, LENGTH, LENGTH), wanted))
    for mask, each in zip(wanted, found, strict=True):
        assert torch.equal(pairs_of(each, LENGTH, LENGTH)[0, 0], mask.dense(LENGTH, LENGTH))


# ------------------------------------------------------------------------------------- the forms themselves


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Band(1, 2, 0), Band(3, 4, 0), Band(1, 2, 0)),
        (Band(3, 4, 0), Band(1, 2, 0), Band(1, 2, 0)),
        (Band(1, None, 5), Band(None, 2, 5), Band(1, 2, 5)),
        (Band(None, 2, 5), Band(1, None, 5), Band(1, 2, 5)),
        (Band(None, None, 0), Band(None, None, 0), Band(None, None, 0)),
        (Band(1, 2, 0), Band(1, 2, 1), None),
    ],
)
def test_bands_meet_in_the_narrower(one, other, both):
    assert one.meet(other) == both


@pytest.mark.parametrize("band", [Band(2, None, 0), Band(None, 1, 0), Band(None, None, 0), Band(1, 1, 2)], ids=str)
def test_a_band_as_runs(band):
    start, end = of_band(band, 4, 6)[0, 0, 0]
    for query in range(4):
        at = query + band.offset
        kept = [key for key in range(6) if (band.before is None or key >= at - band.before)
                and (band.after is None or key <= at + band.after)]  # fmt: skip
        assert list(range(start[query], end[query])) == kept


def test_as_many_runs_as_the_row_that_has_most():
    rows = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]).bool()
    start, end = runs_of(rows)
    assert start.shape == end.shape == (2, 1, 2, 1)
    start, end = runs_of(rows[1:])
    assert start.shape == end.shape == (1, 1, 1, 1)
    start, end = runs_of(torch.zeros(0, 5, dtype=torch.bool))
    assert start.shape == end.shape == (0, 1, 1, 1)


def test_both_of_two_masks_with_runs_have_runs():
    both = Padding([3, 70]) & Documents([56, 200])
    found = both.intervals(LENGTH, LENGTH)
    assert found is not None
    assert found.shape[:3] == (2, 1, 1)
    start, end = found[0, 0, 0]
    assert (start[0], end[0]) == (0, 3)
    assert start[60] == end[60]
