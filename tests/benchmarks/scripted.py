"""What the tests of the benchmark share: tiny problems, runners and contests with known times."""

from __future__ import annotations

from benchmarks.contest import Contest, Entry, Outcome
from benchmarks.problems import square
from benchmarks.timing import Plan

QUICK = Plan(repeats=3, seconds=1.0, least_seconds=0.0, settle_seconds=0.0)
TINY = square(24, heads=2, kv_heads=2, head_dim=16, value_dim=16, radius=4, global_tokens=2)


class Scripted:
    """A runner that takes as long as it is told, and writes down when it was asked."""

    def __init__(self, name, log, seconds=1.0, pool="torch"):
        self.name, self.log, self.seconds, self.pool = name, log, seconds, pool

    def sample(self, calls):
        self.log.append((self.name, calls))
        return self.seconds


def contest_of(**seconds_of_name):
    """A contest with these times on one problem; a string is a reason why there are none."""
    outcomes = [
        Outcome(Entry(name, TINY), reason=times) if isinstance(times, str) else Outcome(Entry(name, TINY), list(times))
        for name, times in seconds_of_name.items()
    ]
    return Contest(outcomes, 0.0)


def entry(name, problem=TINY):
    return Entry(name, problem)
