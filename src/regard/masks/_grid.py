"""Grids of tokens (images, videos) written row by row: what the masks of grid.py share.

A mask over a grid is said axis by axis, in differences of coordinates. A run of consecutive tokens is cut into
boxes (the end of a row, whole rows, the start of a row), and in a box the coordinates of the axes vary freely:
so whether two boxes see each other partly or wholly follows from the range of the difference on each axis.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import Mask
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._numbers import Integers, wholes


@dataclass(frozen=True, init=False, repr=False)
class GridMask(Mask):
    """A mask over tokens of a grid of `shape`, flattened row-major, that asks only for coordinate differences."""

    shape: tuple[int, ...]

    @abstractmethod
    def keep_differences(self, differences: list[Tensor]) -> Tensor:
        """From key coordinate - query coordinate on each axis."""

    @abstractmethod
    def keep_ranges(self, ranges: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """(some, every) when on each axis the difference takes every value of a range, whatever the others take."""

    def check(self, q_len: int, kv_len: int) -> None:
        tokens = math.prod(self.shape)
        if not q_len == kv_len == tokens:
            raise MaskError(
                f"{type(self).__name__} shape",
                expected=f"{q_len} tokens, with q_len {q_len} and kv_len {kv_len}",
                got=f"{tokens}, for shape {self.shape}",
                do="Give the grid of the tokens; other tokens (a class token, say) do not belong to it.",
            )

    def keep(self, at: Indices) -> Tensor:
        pairs = zip(self._coordinates(at.query), self._coordinates(at.key), strict=True)
        return self.keep_differences([key - query for query, key in pairs])

    def block_kinds(self, at: Blocks2d) -> Tensor:
        some = torch.zeros(1, dtype=torch.bool)
        every = torch.ones(1, dtype=torch.bool)
        for row in self._boxes(at.query_first, at.query_last):
            for col in self._boxes(at.key_first, at.key_last):
                is_there = row.is_there & col.is_there
                some_here, every_here = self.keep_ranges(_ranges(row, col))
                some = some | (is_there & some_here)
                every = every & (~is_there | every_here)
        return kinds_of(some, every)

    def _coordinates(self, index: Tensor) -> list[Tensor]:
        return [
            index.div(stride, rounding_mode="floor") % size
            for size, stride in zip(self.shape, strides(self.shape), strict=True)
        ]

    def _boxes(self, first: Tensor, last: Tensor) -> list[_Box]:
        """The run from `first` to `last` as 2 * axes - 1 boxes; some may be empty."""
        cuts = _cuts(first, last + 1, strides(self.shape)[::-1])
        return [
            _Box(self._coordinates(start), self._coordinates(end - 1), start < end)
            for start, end in itertools.pairwise(cuts)
        ]


class _Box(NamedTuple):
    """The least and the greatest coordinate on each axis, and whether the box holds anything."""

    low: list[Tensor]
    high: list[Tensor]
    is_there: Tensor


def _cuts(start: Tensor, end: Tensor, units: list[int]) -> list[Tensor]:
    """Where to cut the run [start, end) into boxes: up to the end of its row, plane, ..., and down again.

    `units` are the strides, the finest (1) first.
    """
    upward = [start]
    for fine, coarse in itertools.pairwise(units):
        # Not past the last whole fine unit, behind which the run may stop in the middle of one.
        stop = torch.minimum(_up(upward[-1], coarse), _down(end, fine))
        upward.append(torch.maximum(stop, upward[-1]))
    downward = [end]
    for coarse in units[1:]:
        downward.append(torch.maximum(_down(downward[-1], coarse), upward[-1]))
    return upward + downward[::-1]


def _down(index: Tensor, unit: int) -> Tensor:
    return index.div(unit, rounding_mode="floor") * unit


def _up(index: Tensor, unit: int) -> Tensor:
    return _down(index + unit - 1, unit)


def _ranges(row: _Box, col: _Box) -> list[tuple[Tensor, Tensor]]:
    """From which to which key coordinate - query coordinate the pairs of two boxes go, on each axis."""
    ends = zip(row.low, row.high, col.low, col.high, strict=True)
    return [(left - bottom, right - top) for top, bottom, left, right in ends]


def strides(shape: tuple[int, ...]) -> list[int]:
    """How far apart neighbours on each axis are in the flattened grid."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def grid_shape(name: str, shape: Integers) -> tuple[int, ...]:
    """A shape with at least one axis and no empty one, or MaskError."""
    checked = wholes(f"{name} shape", shape, least=1)
    if not checked:
        raise MaskError(f"{name} shape", expected="at least one axis", got="()", do="Write it as (height, width).")
    return checked


def for_each_axis(what: str, values: int | Integers, axes: int, *, least: int) -> tuple[int, ...]:
    """One number for each axis; a single one counts for all."""
    checked = wholes(what, (values,) * axes if isinstance(values, int) else values, least=least)
    if len(checked) != axes:
        raise MaskError(
            what, expected=f"one number, or one for each of {axes} axes", got=repr(checked), do="Match the shape."
        )
    return checked
