"""Attention on grids of tokens: images, videos, feature maps, flattened row by row.

* `Axial`: along one axis (Ho et al. 2019, arXiv:1912.12180);
* `CrissCross`: along all axes at once, a pixel's row and column (Huang et al. 2019, CCNet, arXiv:1811.11721);
* `GridBlocks`: with tokens spread evenly over the image (Tu et al. 2022, MaxViT, arXiv:2204.01697), the grid
  attention that the guide's chapter 5 names;
* `Neighborhood`: with what is near on every axis (Hassani et al. 2023, NATTEN, arXiv:2204.07143).

All need as many queries as keys: the product of the shape.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import Mask, assign
from regard.masks._grid import GridMask, for_each_axis, grid_shape, strides
from regard.masks._intervals import LIMIT, packed
from regard.masks._numbers import Integers
from regard.masks.dilated import last_multiple

Ranges = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, init=False, repr=False)
class Axial(GridMask):
    """Each token sees its line along `axis`: the tokens with which it shares all other coordinates.

    Args:
        shape: the grid, such as (height, width). For height x width, axis 0 is the column and axis 1 the row.
        axis: the axis along which attention runs; negative ones count from the last.

    Raises:
        MaskError: an empty or negative shape; an axis that it does not have; laid over other lengths.
    """

    axis: int

    def __init__(self, shape: Integers, axis: int) -> None:
        checked = grid_shape("Axial", shape)
        if axis not in range(-len(checked), len(checked)):
            raise MaskError(
                "Axial axis",
                expected=f"an integer from {-len(checked)} to {len(checked) - 1}",
                got=repr(axis),
                do=f"Name an axis of the shape {checked}.",
            )
        assign(self, shape=checked, axis=int(axis) % len(checked))

    def keep_differences(self, differences: list[Tensor]) -> Tensor:
        anywhere = torch.ones_like(differences[self.axis], dtype=torch.bool)
        return _all_of([anywhere if axis == self.axis else step == 0 for axis, step in enumerate(differences)])

    def keep_ranges(self, ranges: Ranges) -> tuple[Tensor, Tensor]:
        others = [reach if axis != self.axis else _nothing(reach) for axis, reach in enumerate(ranges)]
        return _all_of([_holds_zero(reach) for reach in others]), _all_of([_only_zero(reach) for reach in others])

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        size, stride = self.shape[self.axis], strides(self.shape)[self.axis]
        token = torch.arange(q_len)
        first = token - self._coordinates(token)[self.axis] * stride
        if stride == 1:
            return _repeated(first, [0], size, kv_len)
        return _repeated(first, [place * stride for place in range(size)], 1, kv_len)


@dataclass(frozen=True, init=False, repr=False)
class CrissCross(GridMask):
    """Each token sees its lines along every axis: the tokens that differ in one coordinate, and itself.

    Args:
        shape: the grid, such as (height, width).

    Raises:
        MaskError: an empty or negative shape; laid over other lengths.
    """

    def __init__(self, shape: Integers) -> None:
        assign(self, shape=grid_shape("CrissCross", shape))

    def keep_differences(self, differences: list[Tensor]) -> Tensor:
        return _sum_of([step != 0 for step in differences]) <= 1

    def keep_ranges(self, ranges: Ranges) -> tuple[Tensor, Tensor]:
        some = _sum_of([~_holds_zero(reach) for reach in ranges]) <= 1
        return some, _sum_of([~_only_zero(reach) for reach in ranges]) <= 1

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        lines: list[Mask] = [Axial(self.shape, axis) for axis in range(len(self.shape))]
        return functools.reduce(lambda left, right: left | right, lines).intervals(q_len, kv_len)


@dataclass(frozen=True, init=False, repr=False)
class GridBlocks(GridMask):
    """Each token sees `grid` tokens on each axis, spread evenly over the whole of it.

    With shape (height, width) and grid g, the tokens that see each other are height / g apart in one direction
    and width / g in the other: g x g of them, one in each of g x g equal windows.

    Args:
        shape: the grid of tokens, such as (height, width).
        grid: tokens seen on each axis: one number, or one for each axis. It must divide the shape.

    Raises:
        MaskError: an empty or negative shape; a grid that does not divide it; laid over other lengths.
    """

    grid: tuple[int, ...]

    def __init__(self, shape: Integers, grid: int | Integers) -> None:
        checked = grid_shape("GridBlocks", shape)
        counts = for_each_axis("GridBlocks grid", grid, len(checked), least=1)
        if any(size % count for size, count in zip(checked, counts, strict=True)):
            raise MaskError(
                "GridBlocks grid",
                expected=f"divisors of the shape {checked}",
                got=repr(counts),
                do="Pad the tokens to a multiple, or take another grid.",
            )
        assign(self, shape=checked, grid=counts)

    @property
    def _steps(self) -> list[int]:
        return [size // count for size, count in zip(self.shape, self.grid, strict=True)]

    def keep_differences(self, differences: list[Tensor]) -> Tensor:
        return _all_of([difference % step == 0 for difference, step in zip(differences, self._steps, strict=True)])

    def keep_ranges(self, ranges: Ranges) -> tuple[Tensor, Tensor]:
        some = [last_multiple(high, step) >= low for (low, high), step in zip(ranges, self._steps, strict=True)]
        alone = [(low == high) | (step == 1) for (low, high), step in zip(ranges, self._steps, strict=True)]
        return _all_of(some), _all_of(some) & _all_of(alone)

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        steps, apart = self._steps, strides(self.shape)
        token = torch.arange(q_len)
        first = token.clone()
        for place, step, stride in zip(self._coordinates(token), steps, apart, strict=True):
            first -= (place - place % step) * stride
        # The last axes may be seen whole: what they hold is one run. The axes before say where it stands.
        spread = 1 + max((axis for axis, step in enumerate(steps) if step > 1), default=-1)
        jumps = [
            range(0, size * stride, step * stride) for size, step, stride in zip(self.shape, steps, apart, strict=True)
        ][:spread]
        length = apart[spread - 1] if spread else kv_len
        return _repeated(first, [sum(each) for each in itertools.product(*jumps)], length, kv_len)


@dataclass(frozen=True, init=False, repr=False)
class Neighborhood(GridMask):
    """Each token sees those at most `radius` away on every axis.

    At the border the neighbourhood is cut off. NATTEN instead moves it inwards, so that every token sees as many
    others; away from the border the two are the same, with kernel size 2 * radius + 1.

    Args:
        shape: the grid, such as (height, width).
        radius: one number, or one for each axis; 0 sees the token itself.

    Raises:
        MaskError: an empty or negative shape; a negative radius; laid over other lengths.
    """

    radius: tuple[int, ...]

    def __init__(self, shape: Integers, radius: int | Integers) -> None:
        checked = grid_shape("Neighborhood", shape)
        assign(self, shape=checked, radius=for_each_axis("Neighborhood radius", radius, len(checked), least=0))

    def keep_differences(self, differences: list[Tensor]) -> Tensor:
        return _all_of([step.abs() <= radius for step, radius in zip(differences, self.radius, strict=True)])

    def keep_ranges(self, ranges: Ranges) -> tuple[Tensor, Tensor]:
        bounded = list(zip(ranges, self.radius, strict=True))
        some = [(low <= radius) & (high >= -radius) for (low, high), radius in bounded]
        every = [(low >= -radius) & (high <= radius) for (low, high), radius in bounded]
        return _all_of(some), _all_of(every)


def _repeated(first: Tensor, offsets: list[int], length: int, kv_len: int) -> Tensor | None:
    """The intervals of queries (q_len,) that see runs of `length` keys at `first` + each offset; None when many."""
    if len(offsets) > LIMIT:
        return None
    start = (first + torch.tensor(offsets)[:, None])[None, None]
    return packed(start, start + length, kv_len)


def _all_of(conditions: list[Tensor]) -> Tensor:
    return functools.reduce(torch.logical_and, conditions)


def _sum_of(conditions: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [condition.to(torch.int8) for condition in conditions])


def _holds_zero(reach: tuple[Tensor, Tensor]) -> Tensor:
    return (reach[0] <= 0) & (reach[1] >= 0)


def _only_zero(reach: tuple[Tensor, Tensor]) -> Tensor:
    return (reach[0] == 0) & (reach[1] == 0)


def _nothing(reach: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(reach[0]), torch.zeros_like(reach[1])


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(CrissCross((8, 8)))
