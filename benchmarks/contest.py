"""One contest: several contestants, each with a problem, prepared, compared with float64, and timed in turns."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.checking import TOLERANCE, is_right, relative_error
from benchmarks.machine import OthersTime
from benchmarks.peers import Cannot, Results, callable_of, find_peer
from benchmarks.problems import Problem, make_inputs
from benchmarks.timing import Here, Plan, Runner, interleave, spread
from benchmarks.worker import Worker


@dataclass(frozen=True)
class Entry:
    """Who takes part with which problem."""

    name: str
    problem: Problem

    @property
    def label(self) -> str:
        """Unique within a contest."""
        return f"{self.name} | {self.problem.name}"


@dataclass
class Outcome:
    """Every rep's seconds of one entry, or why there are none."""

    entry: Entry
    seconds: list[float] = field(default_factory=list[float])
    error: float = math.nan
    reason: str = ""

    @property
    def ran(self) -> bool:
        """Was it timed?"""
        return bool(self.seconds)

    @property
    def median(self) -> float:
        """Median seconds; NaN when it was not timed."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def speed(self) -> float:
        """Useful floating-point operations a second, by the median."""
        return self.entry.problem.flops / self.median

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        facts = {"contestant": self.entry.name, "problem": asdict(self.entry.problem), "name": self.entry.problem.name}
        if not self.ran:
            return {**facts, "reason": self.reason}
        return {
            **facts,
            "median_seconds": self.median,
            "spread": spread(self.seconds),
            "gflops": self.speed / 1e9,
            "relative_error": None if math.isnan(self.error) else self.error,
            "seconds": self.seconds,
        }


@dataclass
class Contest:
    """What one contest showed. `others`: processor time that other programs took meanwhile, in cores."""

    outcomes: list[Outcome]
    others: float | None

    def of(self, entry: Entry) -> Outcome:
        """The outcome of one entry."""
        return next(outcome for outcome in self.outcomes if outcome.entry == entry)

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        return {"other_processor_time": self.others, "outcomes": [outcome.as_json() for outcome in self.outcomes]}


def hold(entries: Sequence[Entry], plan: Plan) -> Contest:
    """Prepare every entry, drop those that cannot or are wrong, and time the rest in turns."""
    outcomes = {entry.label: Outcome(entry) for entry in entries}
    with contextlib.ExitStack() as open_workers:
        runners: dict[str, Runner] = {}
        for label, outcome in outcomes.items():
            try:
                runners[label] = _prepare(outcome, open_workers)
            except Cannot as why:
                outcome.reason = str(why)
        workers = [runner.process.pid for runner in runners.values() if isinstance(runner, Worker)]
        others = OthersTime(workers)
        for label, seconds in interleave(runners, plan).items():
            outcomes[label].seconds = seconds
        return Contest(list(outcomes.values()), others.cores())


def _prepare(outcome: Outcome, open_workers: contextlib.ExitStack) -> Runner:
    name, problem = outcome.entry.name, outcome.entry.problem
    if find_peer(name).environment:
        runner = open_workers.enter_context(Worker(name, problem))
        outcome.error = runner.error
        return runner
    runner, outcome.error = prepare_here(name, problem)
    return runner


def prepare_here(name: str, problem: Problem) -> tuple[Here, float]:
    """A contestant of this process and its error, once it has given one right answer."""
    peer = find_peer(name)
    try:
        sets = [make_inputs(problem, copy=copy) for copy in range(problem.copies)]
        runs = [callable_of(name, problem, inputs) for inputs in sets]
        with peer.around():
            results: Results = runs[0]()
    except Cannot:
        raise
    except Exception as failure:
        raise Cannot(first_line(failure)) from failure
    if not peer.attends:
        return Here(runs, peer.pool, peer.around), math.nan
    error = relative_error(problem, sets[0], results)
    if not is_right(problem, error):
        raise Cannot(f"its answer is wrong: relative error {error:.1e}, allowed {TOLERANCE[problem.dtype]:.0e}")
    return Here(runs, peer.pool, peer.around), error


def first_line(failure: Exception) -> str:
    """What went wrong, in one line."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else 'no message'}"
