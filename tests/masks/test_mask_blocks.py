"""Block maps: EMPTY exactly where nothing is allowed, FULL exactly where everything is."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import KINDS, any_case, simple_cases

from regard.masks import (
    Axial,
    BigBird,
    Blocks,
    Causal,
    CrissCross,
    Dense,
    Dilated,
    GlobalTokens,
    GridBlocks,
    Mask,
    Neighborhood,
    Padding,
    SlidingWindow,
)
from regard.masks import _refine as refine_module
from regard.masks._block_map import EMPTY, FULL, PARTIAL, UNSURE
from regard.masks._indices import block_grid

SETTINGS = settings(derandomize=True, deadline=None, max_examples=120)


def by_elements(kept, size):
    """Kinds of the blocks of a bool (batch, heads, q_len, kv_len) mask, one block at a time."""
    batch, heads, q_len, kv_len = kept.shape
    kinds = torch.empty(batch, heads, -(-q_len // size), -(-kv_len // size), dtype=torch.int8)
    for row in range(kinds.shape[2]):
        for col in range(kinds.shape[3]):
            block = kept[:, :, row * size : (row + 1) * size, col * size : (col + 1) * size].flatten(2)
            kinds[:, :, row, col] = torch.where(block.all(2), FULL, torch.where(block.any(2), PARTIAL, EMPTY))
    return kinds


@SETTINGS
@given(any_case(), st.integers(1, 17))
def test_f15_blocks_say_what_the_elements_say(case, size):
    found = case.mask.blocks(case.q_len, case.kv_len, size)
    assert found.kinds.dtype == torch.int8
    assert torch.equal(found.kinds, by_elements(case.dense, size))
    assert (found.size, found.q_len, found.kv_len) == (size, case.q_len, case.kv_len)


@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 17))
def test_simple_masks_decide_every_block_by_formula(kind, data, size):
    case = data.draw(simple_cases([kind]))
    dense = case.dense
    at = block_grid(dense.shape[0], dense.shape[1], case.q_len, case.kv_len, size)
    kinds = case.mask.block_kinds(at)
    assert not (kinds == UNSURE).any()
    assert torch.equal(kinds.expand(at.shape), by_elements(dense, size))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(any_case(), st.integers(5, 40), st.integers(1, 7))
def test_blocks_are_the_same_however_finely_they_are_refined(case, size, leaf):
    kept = refine_module.LEAF, refine_module.ELEMENTS, refine_module.AREA
    refine_module.LEAF, refine_module.ELEMENTS, refine_module.AREA = leaf, 2 * leaf**2, 3 * size**2
    try:
        found = case.mask.blocks(case.q_len, case.kv_len, size).kinds
    finally:
        refine_module.LEAF, refine_module.ELEMENTS, refine_module.AREA = kept
    assert torch.equal(found, by_elements(case.dense, size))


class Checkers(Mask):
    """A mask that says nothing about blocks."""

    def keep(self, at):
        return (at.query // 50 + at.key // 50) % 2 == 0


@pytest.mark.parametrize("size", [7, 50, 64, 100])
def test_mask_without_a_block_formula_is_decided_by_its_elements(size):
    mask = Checkers()
    assert torch.equal(mask.blocks(230, 330, size).kinds, by_elements(mask.dense(230, 330)[None, None], size))


def test_two_masks_may_leave_nothing_of_a_block_that_each_cuts_through():
    kinds = (Causal() & ~Causal()).blocks(256, 256, 128).kinds
    assert (kinds == EMPTY).all()
    assert ((Causal() | ~Causal()).blocks(256, 256, 128).kinds == FULL).all()


def test_refinement_finds_a_single_pair():
    kept = torch.zeros(300, 300, dtype=torch.bool)
    kept[257, 131] = True
    one_pair = Dense(kept)
    kinds = (one_pair & SlidingWindow(200)).blocks(300, 300, 128).kinds[0, 0]
    assert kinds.nonzero().tolist() == [[2, 1]]
    assert kinds[2, 1] == PARTIAL


class OnePair(Mask):
    """A mask that says nothing about blocks and keeps one pair."""

    def __init__(self, query, key):
        self.pair = query, key

    def keep(self, at):
        return (at.query == self.pair[0]) & (at.key == self.pair[1])


@pytest.mark.parametrize("size", [31, 32, 33, 34, 64, 65, 100])
def test_no_pair_of_a_block_is_overlooked(size):
    for place in [(size - 1, size // 3), (size // 3, size - 1), (size // 2, size // 2), (size // 2 + 1, size // 2 - 1)]:
        kinds = OnePair(*place).blocks(2 * size, size, size).kinds.flatten().tolist()
        assert kinds == [PARTIAL, EMPTY]
        kinds = (~OnePair(*place)).blocks(2 * size, size, size).kinds.flatten().tolist()
        assert kinds == [PARTIAL, FULL]


@pytest.mark.parametrize(("q_len", "kv_len", "size"), [(33, 20, 33), (20, 33, 33), (200, 101, 100), (101, 200, 100)])
def test_no_pair_of_a_narrow_block_is_overlooked(q_len, kv_len, size):
    for place in [(q_len - 1, kv_len // 2), (q_len // 2, kv_len - 1), (q_len * 3 // 4, kv_len * 3 // 4)]:
        mask = OnePair(*place)
        expected = by_elements(mask.dense(q_len, kv_len)[None, None], size)
        assert torch.equal(mask.blocks(q_len, kv_len, size).kinds, expected)


class KnownPair(OnePair):
    """The same, but it knows its blocks."""

    def block_kinds(self, at):
        query, key = self.pair
        inside = (at.query_first <= query) & (query <= at.query_last) & (at.key_first <= key) & (key <= at.key_last)
        alone = (at.query_first == at.query_last) & (at.key_first == at.key_last)
        return torch.where(inside & alone, FULL, torch.where(inside, PARTIAL, EMPTY)).to(torch.int8)


def test_a_part_that_its_formula_calls_partial_makes_the_block_partial():
    two_pairs = KnownPair(70, 10) | KnownPair(70, 75)
    assert two_pairs.blocks(100, 100, 100).kinds.item() == PARTIAL
    assert (~two_pairs).blocks(100, 100, 100).kinds.item() == PARTIAL


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (2, 2, 3, 3)], ids=str)
def test_runs_of_a_grid_are_cut_into_boxes(shape):
    """Every run: its boxes hold its tokens and no others, each one once."""
    places = list(itertools.product(*map(range, shape)))
    for first, last in itertools.combinations_with_replacement(range(len(places)), 2):
        held = []
        for box in CrissCross(shape)._boxes(torch.tensor(first), torch.tensor(last)):
            if box.is_there:
                sides = [range(int(low), int(high) + 1) for low, high in zip(box.low, box.high, strict=True)]
                held += itertools.product(*sides)
        assert sorted(held) == places[first : last + 1]


@pytest.mark.parametrize("size", [1, 3, 7, 8, 11])
@pytest.mark.parametrize(
    "mask",
    [Axial((3, 4, 5), 1), CrissCross((3, 4, 5)), GridBlocks((4, 4, 3), (2, 2, 3)), Neighborhood((3, 4, 5), (1, 0, 2))],
    ids=repr,
)
def test_blocks_of_three_dimensional_grids(mask, size):
    length = math.prod(mask.shape)
    assert torch.equal(
        mask.blocks(length, length, size).kinds, by_elements(mask.dense(length, length)[None, None], size)
    )


def test_block_map_counts():
    found = Causal().blocks(256, 256, 64)
    assert repr(found) == "BlockMap(size=64, q_len=256, kv_len=256: 6 full, 4 partial, 6 empty)"
    assert found.density == pytest.approx(10 / 16)
    assert int(found.full.sum()), int(found.partial.sum()) == (6, 4)
    assert int(found.empty.sum()) == 6
    assert Causal().blocks(0, 0).density == 0.0


def test_blocks_of_a_batch_and_of_heads():
    mask = Padding([3, 9]) & Dense(torch.ones(1, 3, 9, 9, dtype=torch.bool))
    assert mask.blocks(9, 9, 4).kinds.shape == (2, 3, 3, 3)


LONG = [
    (SlidingWindow(256) | GlobalTokens(16), 16384, 128),
    (Causal() & SlidingWindow(256), 16384, 128),
    (BigBird(64), 16384, 100),
    (CrissCross((128, 128)), 16384, 100),
    (Neighborhood((16, 32, 32), 2), 16384, 100),
    (Causal(), 1_000_000, 4096),
    (SlidingWindow(256), 1_000_000, 4096),
    (Causal() & SlidingWindow(256), 1_000_000, 4096),
    (Causal() & (Dilated(7) | Blocks(5000)), 1_000_000, 4096),
]


@pytest.mark.parametrize(("mask", "length", "size"), LONG, ids=lambda value: repr(value).replace(" ", ""))
def test_blocks_of_long_texts_take_no_memory_of_all_pairs(mask, length, size):
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        found = mask.blocks(length, length, size)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert found.kinds.shape[-1] == -(-length // size)
    assert largest < 64 * 2**20
    assert time.perf_counter() - start < 10  # generous: the budget of 0.5 s is watched by the benchmarks
