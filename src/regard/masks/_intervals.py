"""Masks as a few runs of keys for each query, and what `&`, `|` and `~` make of them.

`intervals` is int32, contiguous, (batch or 1, heads or 1, count, 2, q_len): [.., i, 0, q] is the first key of
query q's i-th run and [.., i, 1, q] the one after its last. The runs of a query are ascending and neither
overlap nor touch; those it has fewer than `count` come last, as 0 and 0. `count` is at least 1.

Everything is computed on whole columns (one run of all queries), so the work is a few tensor operations for
each pair of runs and none for each query. In between, a missing run is [kv_len, kv_len): it sorts last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.masks._band import Band

LIMIT = 8
"""Runs a query may have. A kernel asks for each query where its runs begin, which for few is cheaper than reading
a bit for each pair; the sorting below costs the square of their number. Windows, documents, prefixes and a few
global tokens stay below it, alone and together."""


def limited(intervals: Tensor) -> Tensor | None:
    """The same, or None when a query has more than LIMIT runs."""
    return intervals if intervals.shape[2] <= LIMIT else None


def of_band(band: Band, q_len: int, kv_len: int) -> Tensor:
    """The intervals of a band, (1, 1, 1, 2, q_len)."""
    row = torch.arange(q_len).view(1, 1, 1, -1) + band.offset
    start = torch.zeros_like(row) if band.before is None else row - band.before
    end = torch.full_like(row, kv_len) if band.after is None else row + band.after + 1
    return packed(start, end, kv_len)


def packed(start: Tensor, end: Tensor, kv_len: int) -> Tensor:
    """Intervals from runs [start, end) of integers, both (batch or 1, heads or 1, count, q_len).

    The runs of a query may come in any order, be empty and reach beyond the keys; they neither overlap nor touch.
    """
    start, end = start.clamp(0, kv_len), end.clamp(0, kv_len)
    some = start < end
    return _laid_out(torch.where(some, start, kv_len), torch.where(some, end, kv_len), kv_len)


def union(left: Tensor, right: Tensor, kv_len: int) -> Tensor:
    """The keys of either; runs that overlap or touch become one. It may have more than LIMIT runs."""
    start, end = _sorted_ends(left, right, kv_len)
    # In order, run i + 1 starts a new one when all i before it have ended: their last end is the i-th of all.
    apart = start[:, :, 1:] > end[:, :, :-1]
    start = torch.cat([start[:, :, :1], start[:, :, 1:].where(apart, kv_len)], 2)
    end = torch.cat([end[:, :, :-1].where(apart, kv_len), end[:, :, -1:]], 2)
    return _laid_out(start, end, kv_len)


def complement(intervals: Tensor, kv_len: int) -> Tensor:
    """The keys from 0 to kv_len - 1 that are in none of the runs. It may have more than LIMIT runs."""
    start, end = _ends(intervals, kv_len)
    edge = torch.zeros_like(start[:, :, :1])
    return packed(torch.cat([edge, end], 2), torch.cat([start, edge + kv_len], 2), kv_len)


def intersection(left: Tensor, right: Tensor, kv_len: int) -> Tensor:
    """The keys of both. It may have more than LIMIT runs."""
    return complement(union(complement(left, kv_len), complement(right, kv_len), kv_len), kv_len)


def runs_of(flags: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where the runs of True in bool (n, kv_len) start and end: each int64 (n, 1, count, 1), for `packed`.

    None when a row has more than LIMIT of them. Missing runs are empty.
    """
    edge = flags.new_zeros(flags.shape[0], 1)
    here, before = torch.cat([flags, edge], 1), torch.cat([edge, flags], 1)
    starts, ends = here & ~before, before & ~here
    count = max(1, int(starts.sum(1).max())) if starts.numel() else 1
    return (_places(starts, count), _places(ends, count)) if count <= LIMIT else None


def _places(flags: Tensor, count: int) -> Tensor:
    """The indices of the set flags of each row, int64 (n, 1, count, 1), filled up with the last index."""
    row, place = flags.nonzero(as_tuple=True)
    found = torch.full((flags.shape[0], count), flags.shape[1] - 1)
    found[row, flags.cumsum(1)[row, place] - 1] = place
    return found[:, None, :, None]


def _ends(intervals: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
    """Starts and ends, (batch or 1, heads or 1, count, q_len) each, with missing runs as [kv_len, kv_len)."""
    start, end = intervals.unbind(3)
    some = start < end
    return start.where(some, kv_len), end.where(some, kv_len)


def _sorted_ends(left: Tensor, right: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
    """All starts of both in ascending order, and all ends; which start had which end does not matter to a union."""
    batch, heads = (a if b == 1 else b for a, b in zip(left.shape[:2], right.shape[:2], strict=True))
    sides = [side.expand(batch, heads, *side.shape[2:]) for side in (left, right)]
    start, end = _ends(torch.cat(sides, 2), kv_len)
    return _sorted(start), _sorted(end)


def _sorted(columns: Tensor) -> Tensor:
    """Ascending along dimension 2. A network of whole columns: for so few it is ten times as fast as torch.sort."""
    lanes = list(columns.unbind(2))
    for turn in range(len(lanes)):
        for lane in range(turn % 2, len(lanes) - 1, 2):
            pair = lanes[lane], lanes[lane + 1]
            lanes[lane], lanes[lane + 1] = torch.minimum(*pair), torch.maximum(*pair)
    return torch.stack(lanes, 2)


def _laid_out(start: Tensor, end: Tensor, kv_len: int) -> Tensor:
    """Intervals from as many starts as ends, each in any order, of runs that do not touch; kv_len where missing."""
    start, end = _sorted(start), _sorted(end)
    some = start < kv_len
    count = max(1, int(some.any(3).flatten(0, 1).any(0).sum()))
    both = torch.stack([start, end], 3)[:, :, :count]
    return both.where(some[:, :, :count, None], 0).to(torch.int32).contiguous()
