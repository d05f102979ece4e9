"""Masks with the rule they stand for, written again in plain Python: what the tests of this folder share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from regard.masks import (
    Axial,
    BigBird,
    Blocks,
    Causal,
    CrissCross,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    GridBlocks,
    Keys,
    Mask,
    Neighborhood,
    Padding,
    PrefixLM,
    SlidingWindow,
)

Rule = Callable[[int, int, int, int], bool]  # batch, head, query, key
BATCH, HEADS = 2, 3
ALIGNS = [None, "top_left", "bottom_right"]
ALIGNED = ["causal", "window", "dilated", "global", "blocks", "prefix"]
PER_SAMPLE = ["right", "left", "keys", "dense", "dense per head"]
ON_GRIDS = ["axial", "criss-cross", "grid", "neighbourhood"]
KINDS = [*ALIGNED, *PER_SAMPLE, *ON_GRIDS, "documents", "bigbird"]


@dataclass(frozen=True)
class Case:
    mask: Mask
    q_len: int
    kv_len: int
    rule: Rule

    @property
    def written_out(self) -> Tensor:
        """The mask by its rule, pair by pair: bool (batch, heads, q_len, kv_len)."""
        batch, heads = self.mask.batch_size, self.mask.head_count
        ranges = [range(1 if batch is None else batch), range(1 if heads is None else heads)]
        ranges += [range(self.q_len), range(self.kv_len)]
        flat = [self.rule(*place) for place in itertools.product(*ranges)]
        return torch.tensor(flat, dtype=torch.bool).view([len(each) for each in ranges])

    @property
    def dense(self) -> Tensor:
        """The mask by itself, always with four dimensions."""
        dense = self.mask.dense(self.q_len, self.kv_len)
        return dense if dense.ndim == 4 else dense[None, None]


def beside(align, q_len, kv_len):
    return kv_len - q_len if align == "bottom_right" else 0


@st.composite
def aligned(draw, kind, q_len, kv_len):
    """Masks that compare the indices of a query and a key."""
    align = draw(st.sampled_from(ALIGNS if q_len == kv_len or kind not in {"causal", "prefix"} else ALIGNS[1:]))
    add = beside(align, q_len, kv_len)
    size = st.integers(0, 12)
    if kind == "causal":
        return Causal(align), lambda _b, _h, i, j: j <= i + add
    if kind == "window":
        before, after = draw(size), draw(st.none() | size)
        reach = before if after is None else after
        return SlidingWindow(
            before, after, align=align
        ), lambda _b, _h, i, j: j in range(i + add - before, i + add + reach + 1)
    if kind == "dilated":
        return _dilated(draw(st.integers(1, 6)), draw(st.none() | size), draw(st.none() | size), align, add)
    if kind == "global":
        tokens = draw(st.lists(st.integers(0, max(q_len, kv_len) - 1), max_size=5))
        return GlobalTokens(tokens, align=align), lambda _b, _h, i, j: i + add in tokens or j in tokens
    if kind == "blocks":
        size = draw(st.integers(1, 12))
        return Blocks(size, align=align), lambda _b, _h, i, j: math.floor((i + add) / size) == j // size
    prefix = draw(st.integers(0, kv_len))
    return PrefixLM(prefix, align=align), lambda _b, _h, i, j: j < prefix or j <= i + add


def _dilated(step, before, after, align, add):
    highest = before if after is None else after

    def rule(b, h, i, j):
        steps, rest = divmod(j - i - add, step)
        return rest == 0 and (before is None or steps >= -before) and (highest is None or steps <= highest)

    return Dilated(step, before, after, align=align), rule


@st.composite
def per_sample(draw, kind, q_len, kv_len):
    """Masks that depend on the sample, or on the head too."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if kind in {"right", "left"}:
        lengths = draw(st.lists(st.integers(0, kv_len), min_size=BATCH, max_size=BATCH))
        if kind == "right":
            return Padding(lengths), lambda b, _h, _i, j: j < lengths[b]
        return Padding(lengths, side="left"), lambda b, _h, _i, j: kv_len - j <= lengths[b]
    if kind == "keys":
        real = torch.rand(BATCH, kv_len, generator=seed) < 0.7
        return Keys(real), lambda b, _h, _i, j: bool(real[b, j])
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    if kind == "dense":
        kept = torch.rand(q_len, kv_len, generator=seed) < share
        return Dense(kept), lambda _b, _h, i, j: bool(kept[i, j])
    kept = torch.rand(draw(st.sampled_from([1, BATCH])), HEADS, q_len, kv_len, generator=seed) < share
    return Dense(kept), lambda b, h, i, j: bool(kept[b % kept.shape[0], h, i, j])


@st.composite
def on_grids(draw, kind, shape):
    """Masks over a grid of tokens."""
    places = list(itertools.product(*map(range, shape)))

    def differences(i, j):
        return [abs(left - right) for left, right in zip(places[i], places[j], strict=True)]

    if kind == "axial":
        axis = draw(st.integers(0, len(shape) - 1))
        return (
            Axial(shape, axis),
            lambda _b, _h, i, j: (
                not any(difference for along, difference in enumerate(differences(i, j)) if along != axis)
            ),
        )
    if kind == "criss-cross":
        return CrissCross(shape), lambda _b, _h, i, j: sum(d > 0 for d in differences(i, j)) < 2
    if kind == "grid":
        grid = [draw(st.sampled_from([count for count in range(1, n + 1) if n % count == 0])) for n in shape]
        steps = [n // count for n, count in zip(shape, grid, strict=True)]
        return GridBlocks(shape, grid), lambda _b, _h, i, j: all(
            difference % step == 0 for difference, step in zip(differences(i, j), steps, strict=True)
        )
    radius = [draw(st.integers(0, 4)) for _ in shape]
    return Neighborhood(shape, radius), lambda _b, _h, i, j: all(
        difference <= reach for difference, reach in zip(differences(i, j), radius, strict=True)
    )


@st.composite
def packed(draw, length):
    ends = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
    lengths = [end - start for start, end in itertools.pairwise([0, *ends, length])]
    owner = [place for place, count in enumerate(lengths) for _ in range(count)]
    return Documents(lengths), lambda _b, _h, i, j: owner[i] == owner[j]


@st.composite
def bigbird(draw, length):
    """Its random blocks have no second definition here; test_mask_bigbird.py looks at what they must satisfy."""
    mask = BigBird(
        draw(st.integers(1, 9)),
        draw(st.sampled_from([1, 3, 5])),
        draw(st.sampled_from([0, 1, (1, 1), (0, 2)])),
        draw(st.integers(0, 4)),
        draw(st.integers(0, 99)),
    )
    kept = mask.dense(length, length)
    return mask, lambda _b, _h, i, j: bool(kept[i, j])


def of_kind(kind, shape, kv_len):
    """A mask of this kind and its rule, over the tokens of a grid and kv_len keys."""
    q_len = math.prod(shape)
    if kind in ALIGNED:
        return aligned(kind, q_len, kv_len)
    if kind in PER_SAMPLE:
        return per_sample(kind, q_len, kv_len)
    if kind in ON_GRIDS:
        return on_grids(kind, shape)
    return packed(q_len) if kind == "documents" else bigbird(q_len)


SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=2) | st.lists(st.integers(1, 3), min_size=3, max_size=3)


@st.composite
def simple_cases(draw, kinds=KINDS):
    """One mask of one of these kinds, over lengths that it fits."""
    kind, shape = draw(st.sampled_from(kinds)), draw(SHAPES)
    q_len = math.prod(shape)
    kv_len = draw(st.just(q_len) | st.integers(1, 40)) if kind in ALIGNED + PER_SAMPLE else q_len
    mask, rule = draw(of_kind(kind, shape, kv_len))
    return Case(mask, q_len, kv_len, rule)


@st.composite
def pairs(draw):
    """Two masks over the same lengths."""
    shape = draw(SHAPES)
    length = math.prod(shape)
    made = [draw(of_kind(draw(st.sampled_from(KINDS)), shape, length)) for _ in range(2)]
    first, second = (Case(mask, length, length, rule) for mask, rule in made)
    return first, second


@st.composite
def combined_cases(draw):
    """Masks put together with & | ~, and the rule put together likewise."""
    first, second = draw(pairs())
    left, right, rule_1, rule_2 = first.mask, second.mask, first.rule, second.rule
    if draw(st.booleans()):
        left, rule_1 = ~left, lambda *at: not first.rule(*at)
    if draw(st.booleans()):
        mask, rule = left & right, lambda *at: rule_1(*at) and rule_2(*at)
    else:
        mask, rule = left | right, lambda *at: rule_1(*at) or rule_2(*at)
    if draw(st.booleans()):
        return Case(~mask, first.q_len, first.kv_len, lambda *at: not rule(*at))
    return Case(mask, first.q_len, first.kv_len, rule)


def any_case():
    return simple_cases() | combined_cases()
