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
from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import assign
from regard.masks._grid import GridMask, for_each_axis, grid_shape
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
