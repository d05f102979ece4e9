"""Errors in units of what plain eager torch makes in the same dtype, as `regard.verify` tells them.

`regard.trust.budget` is written for numbers of about 1; activations and gradients are of any size, so both sides are
divided by a power of two first, which rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regard.trust import budget

Side = Literal["forward", "gradient"]
FACTORS: Mapping[Side, float] = {"forward": budget.FORWARD_FACTOR, "gradient": budget.GRADIENT_FACTOR}
FLOORS: Mapping[Side, float] = {"forward": 1.0, "gradient": 2.0}
CAPS: Mapping[Side, float] = {
    "forward": budget.FORWARD_CAP[torch.float64],
    "gradient": budget.GRADIENT_CAP[torch.float64],
}
"""In float64 plain torch and the truth may round alike, so that only a cap can tell, relative to the size."""


@dataclass(frozen=True)
class Yardstick:
    """What plain torch made in some dtype, piece by piece.

    error: its largest. floor: what one rounding makes of numbers of this size. through: its largest error in a run in
    which nothing was replaced by the truth; None where that is not known.
    """

    error: float
    floor: float
    through: float | None = None

    def limit(self, side: Side) -> float:
        """The largest error that passes."""
        return FACTORS[side] * self.error + FLOORS[side] * self.floor


def size_of(expected: Tensor) -> float:
    """The power of two that the largest number stands just below; 1 where there is none but 0."""
    finite = expected.abs()[expected.isfinite()]
    largest = float(finite.max()) if finite.numel() else 0.0
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest else 1.0


def floor(expected: Tensor, dtype: torch.dtype) -> float:
    """What one rounding in `dtype` makes of these numbers."""
    size = size_of(expected)
    return size * budget.floor(expected / size, dtype)


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference; inf where NaN and Inf do not stand in the same places, or the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach().to("cpu", torch.float64), expected.to(torch.float64)
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite) or not _same_where(found, expected, ~finite):
        return math.inf
    return float((found - expected)[finite].abs().max()) if bool(finite.any()) else 0.0


def _same_where(found: Tensor, expected: Tensor, which: Tensor) -> bool:
    return torch.equal(found[which].nan_to_num(nan=0.5), expected[which].nan_to_num(nan=0.5))


def yardstick(
    errors: Iterable[float], expected: Tensor, dtype: torch.dtype, side: Side, through: float | None = None
) -> Yardstick:
    """Of plain torch's errors in some runs, the largest; inf where the dtype cannot hold the numbers."""
    if dtype == torch.float64:
        return Yardstick(max(errors), CAPS[side] * size_of(expected) / FLOORS[side], through)
    return Yardstick(max(errors), floor(expected, dtype), through)


def ratio(error: float, measured: Yardstick, side: Side) -> float:
    """An error in units of plain torch's; `FACTORS[side]` of them are the limit."""
    return budget.ratio(error, measured.limit(side), FACTORS[side])
