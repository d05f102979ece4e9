"""A mechanism and the same thing of another library, made to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.problems import Direction
from benchmarks.sides import Side, Sizes


@dataclass(frozen=True)
class Pair:
    """Both sides of a line.

    `exact` is what float64 computes: the other's layer in double precision unless given. `approximate`: both sides
    estimate it, so their errors are told and not limited.
    """

    ours: Side
    theirs: Side
    exact: Side | None = None
    approximate: bool = False

    @property
    def in_float64(self) -> Side:
        """What both are compared with."""
        return (self.theirs if self.exact is None else self.exact).in_float64()


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a forward that nobody can do without: of linear maps, and of attention."""

    maps: float
    attention: float = 0.0

    def of(self, direction: Direction) -> float:
        """With backward: twice the forward's again for a map, two and a half times for attention."""
        return self.maps + self.attention if direction == "forward" else 3 * self.maps + 3.5 * self.attention


@dataclass(frozen=True)
class Line:
    """One comparison: which mechanism with whose layer, and by how much it has to be faster.

    `needed` has a number for each direction that is timed; None where nothing is claimed. `error_needed`: our error is
    at most so much of theirs. `work`, of what is bound by arithmetic: it tells how much faster than theirs the peak of
    the machine would be.
    """

    name: str
    mechanism: str
    peer: str
    pair: Callable[[Sizes, Direction], Pair]
    needed: Mapping[Direction, float | None] = field(
        default_factory=lambda: dict[Direction, float | None]({"forward": None, "forward+backward": None})
    )
    error_needed: float | None = None
    work: Callable[[Sizes], Work] | None = None


def bars(forward: float | None = None, training: float | None = None) -> dict[Direction, float | None]:
    """How many times faster, forward and with backward."""
    return {"forward": forward, "forward+backward": training}
