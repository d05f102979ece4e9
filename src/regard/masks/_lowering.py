"""Which pairs a mask keeps, in the closed forms that a kernel reads: a band, intervals, bits.

`a & b & c` is taken apart. Bands join into one band, masks of a few runs of keys join into one set of
intervals, and only what has neither form becomes bits (or stays the tensor that it is). A pair is kept when
every part keeps it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor

from regard.masks._band import Band
from regard.masks._base import Mask
from regard.masks._bit_tiles import BitTiles, bit_tiles
from regard.masks._intervals import intersection, limited
from regard.masks.dense import Dense


@dataclass(frozen=True, eq=False)
class Lowered:
    """A mask over (q_len, kv_len), as parts that all must keep a pair. A part that is None keeps every pair.

    Equal masks share one Lowered: nobody may write to its tensors.

    Args:
        before, after, offset: keeps -before <= key - (query + offset) <= after; None sets no bound.
        intervals: int32 (batch or 1, heads or 1, count, 2, q_len), see `_intervals.py`.
        tiles: see `BitTiles`.
        dense: bool (batch or 1, heads or 1, q_len, kv_len), a view of the tensor of a `Dense`.
    """

    before: int | None
    after: int | None
    offset: int
    intervals: Tensor | None
    tiles: BitTiles | None
    dense: Tensor | None


def lower(mask: Mask, q_len: int, kv_len: int) -> Lowered:
    """The closed form of a mask. The last 64 answers are kept, those of masks that hold a tensor excepted.

    Blocks in which the parts with a short form keep nothing get no bits, so bits cost no more than the whole mask.

    Raises:
        MaskError: the mask cannot be laid over these lengths.
    """
    if not _is_hashable(mask):
        return _lowered(mask, q_len, kv_len)
    try:
        return _remembered(mask, q_len, kv_len)
    except _MayChangeError:
        return _lowered(mask, q_len, kv_len)


class _MayChangeError(Exception):
    """Not an error of anyone's: the way out of a cache without leaving an answer there."""


@functools.lru_cache(maxsize=64)
def _remembered(mask: Mask, q_len: int, kv_len: int) -> Lowered:
    # Asked only when no answer is there: an equal mask then had passed.
    if not _never_changes(mask):
        raise _MayChangeError
    return _lowered(mask, q_len, kv_len)


def _is_hashable(mask: Mask) -> bool:
    try:
        hash(mask)
    except TypeError:
        return False
    return True


def _never_changes(value: object) -> bool:
    """Whether it is made of nothing but numbers and names: a tensor may be written to behind its mask's back."""
    if isinstance(value, Mask):
        parts = [getattr(value, field.name) for field in fields(value) if field.compare] if is_dataclass(value) else []
        return is_dataclass(value) and all(map(_never_changes, parts))
    if isinstance(value, tuple):
        return all(map(_never_changes, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return value is None or isinstance(value, int | str)


@torch.inference_mode(mode=False)  # what is kept must serve a later call that records gradients
def _lowered(mask: Mask, q_len: int, kv_len: int) -> Lowered:
    mask.check(q_len, kv_len)
    form = _Form(q_len, kv_len)
    for part in mask.conjuncts:
        form.add(part)
    return form.finished()


class _Form:
    """The parts of a conjunction, sorted by the form they have."""

    def __init__(self, q_len: int, kv_len: int) -> None:
        self.q_len, self.kv_len = q_len, kv_len
        self.band: Band | None = None
        self.intervals: Tensor | None = None
        self.formed: list[Mask] = []
        self.rest: list[Mask] = []

    def add(self, part: Mask) -> None:
        fits = self._narrow_band(part.band(self.q_len, self.kv_len)) or self._narrow_intervals(part)
        (self.formed if fits else self.rest).append(part)

    def _narrow_band(self, band: Band | None) -> bool:
        joined = band if band is None or self.band is None else self.band.meet(band)
        if joined is None:
            return False
        self.band = joined
        return True

    def _narrow_intervals(self, part: Mask) -> bool:
        found = part.intervals(self.q_len, self.kv_len)
        if found is not None and self.intervals is not None:
            found = limited(intersection(self.intervals, found, self.kv_len))
        if found is None:
            return False
        self.intervals = found
        return True

    def finished(self) -> Lowered:
        band = Band(None, None, 0) if self.band is None else self.band
        lone = self.rest[0] if len(self.rest) == 1 else None
        dense = lone.tensor if isinstance(lone, Dense) else None
        return Lowered(
            before=band.before,
            after=band.after,
            offset=band.offset,
            intervals=self.intervals,
            tiles=self._tiles() if self.rest and dense is None else None,
            dense=dense[None, None] if dense is not None and dense.ndim == 2 else dense,
        )

    def _tiles(self) -> BitTiles:
        within = _all_of(self.formed) if self.formed else None
        return bit_tiles(_all_of(self.rest), self.q_len, self.kv_len, within=within)


def _all_of(masks: list[Mask]) -> Mask:
    return functools.reduce(lambda left, right: left & right, masks)
