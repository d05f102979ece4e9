"""The closed form of a mask, written out again pair by pair, is the mask."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from mask_cases import any_case
from tests import option_table

from regard import masks
from regard.masks import Causal, Dense, Dilated, Documents, GlobalTokens, Keys, Padding, PrefixLM, SlidingWindow
from regard.masks import _bit_tiles as tiles_module
from regard.masks._intervals import LIMIT, complement, intersection, union
from regard.masks._lowering import lower


def pairs_of(lowered, q_len, kv_len):
    """Every pair that all parts keep, bool (batch or 1, heads or 1, q_len, kv_len). The form is checked on the way."""
    query, key = torch.arange(q_len)[:, None], torch.arange(kv_len)
    distance = key - (query + lowered.offset)
    kept = torch.ones(1, 1, q_len, kv_len, dtype=torch.bool)
    if lowered.before is not None:
        kept = kept & (distance >= -lowered.before)
    if lowered.after is not None:
        kept = kept & (distance <= lowered.after)
    if lowered.intervals is not None:
        kept = kept & pairs_of_intervals(lowered.intervals, q_len, kv_len)
    if lowered.tiles is not None:
        kept = kept & pairs_of_tiles(lowered.tiles, q_len, kv_len)
    return kept if lowered.dense is None else kept & lowered.dense


def pairs_of_intervals(intervals, q_len, kv_len):
    assert intervals.dtype == torch.int32
    assert intervals.is_contiguous()
    assert intervals.shape[3:] == (2, q_len)
    assert 1 <= intervals.shape[2] <= LIMIT
    start, end = intervals.long().unbind(3)
    some = start < end
    assert ((start >= 0) & (end <= kv_len)).all()
    assert ((start == 0) & (end == 0))[~some].all()
    assert (start[:, :, 1:] > end[:, :, :-1])[some[:, :, 1:]].all()  # ascending, apart
    assert (some[:, :, :-1] | ~some[:, :, 1:]).all()  # missing runs come last
    key = torch.arange(kv_len)
    return ((start[..., None] <= key) & (key < end[..., None])).any(2)


def pairs_of_tiles(tiles, q_len, kv_len):
    blocks = -(-q_len // 64)
    assert [each.dtype for each in (tiles.first, tiles.keys, tiles.word, tiles.words)] == [
        torch.int64,
        torch.int32,
        torch.int64,
        torch.int64,
    ]
    assert tiles.first.shape == (tiles.batch * tiles.heads * blocks + 1,)
    kept = torch.zeros(tiles.batch * tiles.heads, blocks * 64, kv_len, dtype=torch.bool)
    first, keys, word = tiles.first.tolist(), tiles.keys.tolist(), tiles.word.tolist()
    assert (first[0], first[-1]) == (0, len(keys)) == (0, len(word))
    for row in range(len(first) - 1):
        behind = 0
        for (start, end), at in zip(keys[first[row] : first[row + 1]], word[first[row] : first[row + 1]], strict=True):
            assert behind <= start < end <= kv_len
            behind = end
            bits = bits_of(tiles.words[at : at + end - start]) if at >= 0 else torch.ones(64, end - start).bool()
            assert bits.any()
            plane, top = divmod(row, blocks)
            kept[plane, top * 64 : top * 64 + 64, start:end] = bits
            if at >= 0:
                assert bits.shape == (64, end - start)
                assert not bits[max(0, q_len - top * 64) :].any()
    return kept[:, :q_len].view(tiles.batch, tiles.heads, q_len, kv_len)


def bits_of(words):
    """Bool (64, n): bit i of each word, in plain Python."""
    rows = [[number % 2**64 >> bit & 1 for number in words.tolist()] for bit in range(64)]
    return torch.tensor(rows, dtype=torch.bool).view(64, words.numel())


def assert_lowered(mask, q_len, kv_len):
    dense = mask.dense(q_len, kv_len)
    dense = dense[None, None] if dense.ndim == 2 else dense
    own = pairs_of(lower(mask, q_len, kv_len), q_len, kv_len)
    assert torch.equal(own.expand(dense.shape), dense), (mask, q_len, kv_len)


class Chooser(random.Random):
    """Masks of every kind over any lengths, at random."""

    def align(self):
        return self.choice(["top_left", "bottom_right"])

    def bools(self, *shape, share):
        generator = torch.Generator().manual_seed(self.randrange(2**31))
        return torch.rand(shape, generator=generator) < share

    def simple(self, q_len, kv_len):
        size = self.choice([0, 1, 3, 17, 70, 250])
        kinds = [
            lambda: Causal(self.align()),
            lambda: SlidingWindow(size, self.choice([None, 0, 5]), align=self.align()),
            lambda: Dilated(self.randint(1, 9), self.choice([None, 4]), self.choice([None, 0]), align=self.align()),
            lambda: GlobalTokens(self.sample(range(kv_len), min(kv_len, self.randint(0, 5))), align=self.align()),
            lambda: GlobalTokens(self.sample(range(kv_len), min(kv_len, 12))),
            lambda: masks.Blocks(max(1, size), align=self.align()),
            lambda: PrefixLM(self.randint(0, kv_len), align=self.align()),
            lambda: Padding([self.randint(0, kv_len) for _ in range(2)], side=self.choice(["left", "right"])),
            lambda: Keys(self.bools(2, kv_len, share=self.choice([0.02, 0.5, 0.99]))),
            lambda: Dense(self.bools(q_len, kv_len, share=0.5)),
            lambda: Dense(self.bools(self.choice([1, 2]), self.choice([1, 3]), q_len, kv_len, share=0.9)),
        ]
        return self.choice(kinds + ([] if q_len != kv_len else self.of_one_text(q_len)))()

    def of_one_text(self, length):
        width = self.choice([size for size in range(1, length + 1) if length % size == 0])
        shape = (length // width, width)
        grid = [self.choice([count for count in range(1, size + 1) if size % count == 0]) for size in shape]
        cut = self.randint(0, length)
        return [
            lambda: Documents([cut // 2, cut - cut // 2, 0, length - cut]),
            lambda: masks.BigBird(self.choice([5, 16, 64]), random_blocks=1),
            lambda: masks.Axial(shape, self.choice([0, 1])),
            lambda: masks.CrissCross(shape),
            lambda: masks.GridBlocks(shape, grid),
            lambda: masks.Neighborhood(shape, self.choice([0, 1, 3])),
        ]

    def mask(self, q_len, kv_len, depth):
        if depth == 0:
            return self.simple(q_len, kv_len)
        left, right = (self.mask(q_len, kv_len, self.randrange(depth)) for _ in range(2))
        joined = left & right if self.random() < 0.6 else left | right
        return ~joined if self.random() < 0.2 else joined


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_random_masks(depth, seed):
    chooser = Chooser(f"{depth} {seed}")
    for _ in range(25):
        q_len, kv_len = chooser.randint(1, 200), chooser.randint(1, 200)
        kv_len = chooser.choice([q_len, kv_len, 64, 128])
        assert_lowered(chooser.mask(q_len, kv_len, depth), q_len, kv_len)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(any_case())
def test_small_masks_of_every_kind(case):
    assert_lowered(case.mask, case.q_len, case.kv_len)


@pytest.mark.parametrize("name", option_table.MASKS)
def test_masks_of_the_option_table(name):
    spec = option_table.Spec()
    mask = option_table.MASKS[name](spec)
    mask = mask if isinstance(mask, masks.Mask) else Dense(mask.expand(*mask.shape[:-2], spec.q_len, -1))
    assert_lowered(mask, spec.q_len, option_table.LENGTH)


@pytest.mark.parametrize("shape", [(5,), (1, 6), (6, 1), (4, 6), (8, 12), (2, 3, 4), (4, 1, 6), (2, 2, 3, 5)], ids=str)
def test_grids(shape):
    length = math.prod(shape)
    halves = [2 if size % 2 == 0 else 1 for size in shape]
    kinds = [masks.GridBlocks(shape, grid) for grid in (1, halves, shape, [1, *shape[1:]])]
    for mask in [*kinds, masks.CrissCross(shape), *(masks.Axial(shape, axis) for axis in range(len(shape)))]:
        assert_lowered(mask, length, length)
        assert_lowered(~mask, length, length)


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 0), (0, 70), (70, 0)])
def test_no_queries_or_no_keys(q_len, kv_len):
    some = [Causal("bottom_right"), SlidingWindow(3), Dilated(2), masks.Blocks(3), PrefixLM(0, align="top_left")]
    some += [Padding([0, 0]), Keys(torch.ones(2, kv_len).bool()), Dense(torch.ones(2, 1, q_len, kv_len).bool())]
    some += [GlobalTokens(0), GlobalTokens(0) | Dilated(2), ~Dense(torch.ones(q_len, kv_len).bool())]
    some += [Documents([]), masks.BigBird(4)] if q_len == kv_len else []
    for mask in some:
        assert_lowered(mask, q_len, kv_len)
        assert_lowered(~mask | Causal("top_left"), q_len, kv_len)


def test_a_batch_of_none():
    assert_lowered(Padding([]) & Causal(), 70, 70)
    assert_lowered(Padding([]) & Dilated(2), 70, 70)
    assert_lowered(Padding([]) | Dilated(2), 70, 70)


def sets_of(intervals):
    """The keys of each query of the first sample and head."""
    return [{key for a, b in runs.T.tolist() for key in range(a, b)} for runs in intervals[0, 0].permute(2, 1, 0)]


@pytest.mark.parametrize("seed", range(20))
def test_algebra_of_intervals_is_that_of_sets(seed):
    chooser = Chooser(seed)
    length = chooser.randint(1, 40)
    left, right = (Dense(chooser.bools(1, length, share=0.5).expand(length, length)) for _ in range(2))
    left, right = (Keys(mask.tensor[:1]).intervals(3, length) for mask in (left, right))
    if left is None or right is None:
        left = right = PrefixLM(length // 2).intervals(length, length)
    for a, b, both, either in zip(
        *map(sets_of, (left, right, intersection(left, right, length), union(left, right, length))), strict=True
    ):
        assert (both, either) == (a & b, a | b)
    assert sets_of(complement(left, length)) == [set(range(length)) - a for a in sets_of(left)]


@pytest.mark.parametrize("mask", [masks.BigBird(20), Dilated(3), Dilated(40) | Padding([150, 200, 0])], ids=repr)
def test_any_number_of_blocks_at_once_gives_the_same(mask, monkeypatch):
    whole = tiles_module.bit_tiles(mask, 200, 200)
    monkeypatch.setattr(tiles_module, "CELLS", 1)
    monkeypatch.setattr(tiles_module, "AT_ONCE", 3)
    parts = tiles_module.bit_tiles(mask, 200, 200)
    for name in ("first", "keys", "word", "words"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
