"""Interleaved times: rep 1 of every contestant, then rep 2 of every contestant, and what follows from them."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.peers import Results

LEAST_SECONDS = 0.005
"""A rep of something quicker than this is several calls, so that the clock does not count."""

SETTLE_SECONDS = 0.01
"""Idle workers of a thread pool spin for a while; the next pool's contestant waits for that to end."""

FEWEST_REPEATS = 3


class Runner(Protocol):
    """Something that can be timed: here, or in another process."""

    @property
    def pool(self) -> str:
        """Whose threads compute it."""
        ...

    def sample(self, calls: int) -> float:
        """Seconds for each call, over so many calls."""
        ...


@dataclass(frozen=True)
class Here:
    """A contestant of this process. Several `runs` take turns, call by call."""

    runs: Sequence[Callable[[], Results]]
    pool: str = "torch"
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def sample(self, calls: int) -> float:
        """Seconds for each call, over so many calls."""
        runs, count = self.runs, len(self.runs)
        with self.around():
            start = time.perf_counter()
            for call in range(calls):
                runs[call % count]()
            return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class Plan:
    """How often a contest is run: reps, and the seconds after which fewer must do."""

    repeats: int = 15
    seconds: float = 60.0
    least_seconds: float = LEAST_SECONDS
    settle_seconds: float = SETTLE_SECONDS


def interleave(runners: Mapping[str, Runner], plan: Plan) -> dict[str, list[float]]:
    """Seconds of every rep of every runner. Each rep runs all of them once; the first one takes turns."""
    calls = {name: _calls(runner, plan) for name, runner in runners.items()}
    one_round = sum(seconds * count for seconds, count in calls.values())
    fitting = int(plan.seconds / max(one_round, 1e-9))
    repeats = min(plan.repeats, max(fitting, min(FEWEST_REPEATS, plan.repeats)))
    times: dict[str, list[float]] = {name: [] for name in runners}
    names, last_pool = list(runners), ""
    for rep in range(repeats):
        start = rep % len(names) if names else 0
        for name in names[start:] + names[:start]:
            runner = runners[name]
            if last_pool not in {"", runner.pool}:
                time.sleep(plan.settle_seconds)
            if calls[name][0] < 4 * plan.least_seconds:
                runner.sample(1)  # brings its code and data back into the caches; not counted
            times[name].append(runner.sample(calls[name][1]))
            last_pool = runner.pool
    return times


def _calls(runner: Runner, plan: Plan) -> tuple[float, int]:
    """Seconds of one call, once warm, and how many calls make a rep."""
    runner.sample(1)
    seconds = runner.sample(1)
    if seconds < plan.least_seconds:
        seconds = runner.sample(max(1, min(100, int(plan.least_seconds / max(seconds, 1e-9)))))
    return seconds, max(1, math.ceil(plan.least_seconds / max(seconds, 1e-9)))


def pair_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Rep by rep: how many times longer the first took than the second."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the reps' ratios: what disturbed both of a pair does not count."""
    return statistics.median(pair_ratios(numerator, denominator))


def spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a fraction of the median."""
    if len(times) < 2:
        return 0.0
    lower, middle, upper = statistics.quantiles(times, n=4, method="inclusive")
    return (upper - lower) / 2 / middle
