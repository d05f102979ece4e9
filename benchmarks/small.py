"""Small shapes: nobody who switches may lose. Every length to 256, head size, dtype and direction against SDPA."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.contest import Contest, Entry, Outcome, hold
from benchmarks.problems import Direction, Dtype, Problem, square
from benchmarks.timing import Plan
from benchmarks.verdicts import Verdict, verdict_of

LENGTHS = (1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 48, 64, 65, 96, 100, 127, 128, 160, 200, 255, 256)
WIDTHS = (16, 32, 64, 80, 128)
LEAST_RATIO = 0.95
SLACK_SECONDS = 15e-6


@dataclass(frozen=True)
class Cell:
    """One shape by one way in. `excess`: seconds beyond what is allowed; above 0 it is a hole."""

    way: str
    problem: Problem
    ours: float
    sdpa: float
    excess: float
    reason: str = ""

    @property
    def hole(self) -> bool:
        """Slower than allowed, or not computed at all?"""
        return bool(self.reason) or self.excess > 0

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        return {
            "contestant": self.way,
            "name": self.problem.name,
            "microseconds": None if self.reason else 1e6 * self.ours,
            "sdpa_microseconds": None if self.reason else 1e6 * self.sdpa,
            "excess_microseconds": None if self.reason else 1e6 * self.excess,
            "hole": self.hole,
            "reason": self.reason,
        }


def problems(lengths: Sequence[int] = LENGTHS, widths: Sequence[int] = WIDTHS) -> Iterator[Problem]:
    """Every small shape."""
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16")
    directions: tuple[Direction, ...] = ("forward", "forward+backward")
    for dtype in dtypes:
        for direction in directions:
            for width in widths:
                for length in lengths:
                    yield square(length, dtype=dtype, direction=direction, head_dim=width, value_dim=width)


def excess(ours: Sequence[float], sdpa: Sequence[float]) -> float:
    """Median over the reps of the seconds beyond 0.95x SDPA or 15 microseconds, whichever allows more."""
    limits = (max(seconds / LEAST_RATIO, seconds + SLACK_SECONDS) for seconds in sdpa)
    return statistics.median(mine - limit for mine, limit in zip(ours, limits, strict=True))


def measure(ways: Sequence[str], some: Sequence[Problem], plan: Plan) -> list[Cell]:
    """Time every shape; what looks like a hole is timed again with three times the reps, and that counts."""
    cells: list[Cell] = []
    for problem in some:
        found = _cells(ways, problem, plan)
        if any(cell.hole and not cell.reason for cell in found):
            found = _cells(ways, problem, replace(plan, repeats=3 * plan.repeats))
        cells += found
    return cells


def _cells(ways: Sequence[str], problem: Problem, plan: Plan) -> list[Cell]:
    sdpa = Entry("sdpa", problem)
    contest = hold([sdpa, *(Entry(way, problem) for way in ways)], plan)
    return [_cell(contest, contest.of(sdpa), way) for way in ways]


def _cell(contest: Contest, sdpa: Outcome, way: str) -> Cell:
    problem = sdpa.entry.problem
    mine = contest.of(Entry(way, problem))
    if not (mine.ran and sdpa.ran):
        return Cell(way, problem, 0.0, 0.0, 0.0, mine.reason or sdpa.reason)
    return Cell(way, problem, mine.median, sdpa.median, excess(mine.seconds, sdpa.seconds))


def verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    """One for each way, dtype and direction: how many holes there are, and their names."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((f"{cell.problem.dtype} {cell.problem.direction}", cell.way), []).append(cell)
    return [_verdict(kind, way, group) for (kind, way), group in groups.items()]


def _verdict(kind: str, way: str, cells: Sequence[Cell]) -> Verdict:
    line, what = f"small shapes {kind}", f"holes of {len(cells)} shapes by {way}"
    if all(cell.reason for cell in cells):
        return Verdict(line, what, "<= 0", None, None, None, cells[0].reason)
    holes = [cell for cell in cells if cell.hole]
    verdict = verdict_of(line, what, len(holes), needed=0, at_most=True)
    return replace(verdict, reason="; ".join(_named(cell) for cell in holes))


def _named(cell: Cell) -> str:
    size = f"n={cell.problem.q_len} d={cell.problem.head_dim}"
    if cell.reason:
        return f"{size}: {cell.reason}"
    return f"{size}: {1e6 * cell.ours:.0f} against {1e6 * cell.sdpa:.0f} us"
