"""Deciding the blocks that a mask's formula leaves open, without laying out more elements than needed.

Two masks that each cut through a block may leave nothing of it, or all of it, when they are combined. So
an open rectangle is looked at in three ways, the cheap ones first: its corner pairs; its four quarters, by
formula again; and only when it is small its elements. A rectangle is PARTIAL as soon as one allowed and
one forbidden pair have been seen, so most leave after the first look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.masks._block_map import EMPTY, FULL, UNSURE, kinds_of
from regard.masks._indices import Blocks2d, Indices

if TYPE_CHECKING:
    from regard.masks._base import Mask

LEAF = 32  # a rectangle of at most LEAF x LEAF pairs is decided by its elements
ELEMENTS = 1 << 20  # pairs laid out at once
AREA = 1 << 28  # pairs that one round covers: were it cut to leaves throughout, 2**18 rectangles


def refine(mask: Mask, kinds: Tensor, at: Blocks2d) -> Tensor:
    """`kinds` (of the shape of `at`) with every UNSURE decided."""
    unsure = (kinds == UNSURE).nonzero(as_tuple=True)
    if unsure[0].numel() == 0:
        return kinds
    work = _pick(at, unsure)
    area = (work.query_last - work.query_first + 1) * (work.key_last - work.key_first + 1)
    count = max(1, AREA // int(area.max()))
    decided = [_decide(mask, _take(work, part)) for part in _chunks(torch.arange(area.numel()), count)]
    kinds = kinds.clone()
    kinds[unsure] = torch.cat(decided)
    return kinds


def _decide(mask: Mask, work: Blocks2d) -> Tensor:
    """int8 (n,): EMPTY, PARTIAL or FULL for each of n rectangles."""
    seen = _Seen(work.query_first.numel())
    owner = torch.arange(work.query_first.numel())
    while owner.numel():
        seen.note(owner, _corners(mask, work))
        small = (work.query_last - work.query_first < LEAF) & (work.key_last - work.key_first < LEAF)
        leaves = (small & seen.open(owner)).nonzero()[:, 0]
        for part in _chunks(leaves, ELEMENTS // LEAF**2):
            seen.note(owner[part], _elements(mask, _take(work, part)))
        large = (~small & seen.open(owner)).nonzero()[:, 0]
        work, owner = _quarters(_take(work, large), owner[large])
        kinds = mask.block_kinds(work).expand(owner.shape)
        sure = kinds != UNSURE
        seen.note(owner[sure], torch.stack([kinds[sure] != EMPTY, kinds[sure] != FULL]))
        left = (~sure & seen.open(owner)).nonzero()[:, 0]
        work, owner = _take(work, left), owner[left]
    return seen.kinds


class _Seen:
    """For each rectangle: has an allowed pair been seen, and a forbidden one?"""

    def __init__(self, count: int) -> None:
        self.both = torch.zeros(2, count, dtype=torch.bool)

    def note(self, owner: Tensor, found: Tensor) -> None:
        """`found` (2, n): an allowed and a forbidden pair were found in a part of `owner` (n,)."""
        for seen, new in zip(self.both, found, strict=True):
            seen[owner[new]] = True

    def open(self, owner: Tensor) -> Tensor:
        return ~self.both.all(0)[owner]

    @property
    def kinds(self) -> Tensor:
        return kinds_of(self.both[0], self.both[0] & ~self.both[1])


def _corners(mask: Mask, work: Blocks2d) -> Tensor:
    query = torch.stack([work.query_first, work.query_last])[:, None]
    key = torch.stack([work.key_first, work.key_last])[None, :]
    kept = mask.keep(Indices(work.batch, work.head, query, key, work.q_len, work.kv_len))
    kept = kept.expand(2, 2, work.query_first.numel())
    return torch.stack([kept.any(0).any(0), (~kept).any(0).any(0)])


def _elements(mask: Mask, work: Blocks2d) -> Tensor:
    """All pairs of rectangles of at most LEAF x LEAF; shorter ones see their last row or column again."""
    step = torch.arange(LEAF)
    query = torch.minimum(work.query_first.view(-1, 1, 1) + step.view(1, -1, 1), work.query_last.view(-1, 1, 1))
    key = torch.minimum(work.key_first.view(-1, 1, 1) + step.view(1, 1, -1), work.key_last.view(-1, 1, 1))
    at = Indices(work.batch.view(-1, 1, 1), work.head.view(-1, 1, 1), query, key, work.q_len, work.kv_len)
    kept = mask.keep(at).expand(query.shape[0], LEAF, LEAF).flatten(1)
    return torch.stack([kept.any(1), (~kept).any(1)])


def _quarters(work: Blocks2d, owner: Tensor) -> tuple[Blocks2d, Tensor]:
    """Each rectangle cut in two both ways; a side of one index is not cut, and leaves no empty part."""
    query_middle = (work.query_first + work.query_last).div(2, rounding_mode="floor")
    key_middle = (work.key_first + work.key_last).div(2, rounding_mode="floor")
    row_halves = (work.query_first, query_middle), (query_middle + 1, work.query_last)
    col_halves = (work.key_first, key_middle), (key_middle + 1, work.key_last)
    ends = [(*rows, *cols) for rows in row_halves for cols in col_halves]
    parts = Blocks2d(
        work.batch.repeat(4),
        work.head.repeat(4),
        *(torch.cat([end[side] for end in ends]) for side in range(4)),
        q_len=work.q_len,
        kv_len=work.kv_len,
    )
    some = ((parts.query_first <= parts.query_last) & (parts.key_first <= parts.key_last)).nonzero()[:, 0]
    return _take(parts, some), owner.repeat(4)[some]


def _chunks(rows: Tensor, count: int) -> Iterator[Tensor]:
    return (rows[start : start + count] for start in range(0, rows.numel(), count))


def _take(work: Blocks2d, rows: Tensor) -> Blocks2d:
    return _pick(work, (rows,))


def _pick(at: Blocks2d, where: tuple[Tensor, ...]) -> Blocks2d:
    """The rectangles at these places of the broadcast shape, as a list."""
    shape = at.shape
    return Blocks2d(
        at.batch.expand(shape)[where],
        at.head.expand(shape)[where],
        at.query_first.expand(shape)[where],
        at.query_last.expand(shape)[where],
        at.key_first.expand(shape)[where],
        at.key_last.expand(shape)[where],
        q_len=at.q_len,
        kv_len=at.kv_len,
    )
