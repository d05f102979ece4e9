"""What is claimed of a contest, and whether it holds: line, needed, measured, met, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field

import torch

from benchmarks import machine
from benchmarks.contest import Contest, Entry, Outcome
from benchmarks.peers import Cannot
from benchmarks.timing import median_ratio


@dataclass
class Limits:
    """How fast this machine can be: the most that was seen since the start, so that no fraction is flattered."""

    peaks: dict[str, float] = field(default_factory=dict[str, float])
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def look(self, dtypes: Collection[str]) -> None:
        """Measure again."""
        for dtype in sorted(dtypes):
            peak, self.reasons[dtype] = machine.fma_peak(dtype, torch.get_num_threads())
            if peak is not None:
                self.peaks[dtype] = max(peak, self.peaks.get(dtype, 0.0))

    def peak(self, dtype: str) -> float:
        """Floating-point operations a second; `Cannot` where that is not known."""
        if dtype not in self.peaks:
            raise Cannot(f"the FMA peak is not known: {self.reasons.get(dtype, 'not measured')}")
        return self.peaks[dtype]

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        return {
            "fma_flops_per_second": {dtype: self.peaks.get(dtype) for dtype in ("fp32", "bf16")},
            "fma_reason": {dtype: reason for dtype, reason in self.reasons.items() if reason},
        }


Measure = Callable[[Contest, Limits], float]


@dataclass(frozen=True)
class Claim:
    """One number that must be at least (or at most) so much."""

    what: str
    needed: float
    measure: Measure
    at_most: bool = False


@dataclass(frozen=True)
class Verdict:
    """`met` is None where it could not be measured, and `reason` says why."""

    line: str
    what: str
    needed: str
    measured: float | None
    met: bool | None
    margin: float | None
    reason: str = ""

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        return asdict(self)


def judge(line: str, claim: Claim, contest: Contest, limits: Limits) -> Verdict:
    """Measure a claim. The margin is a fraction of what is needed, positive on the good side."""
    try:
        measured = claim.measure(contest, limits)
    except Cannot as why:
        needed = needed_words(claim.needed, at_most=claim.at_most)
        return Verdict(line, claim.what, needed, None, None, None, str(why))
    return verdict_of(line, claim.what, measured, needed=claim.needed, at_most=claim.at_most)


def verdict_of(line: str, what: str, measured: float, *, needed: float, at_most: bool) -> Verdict:
    """The verdict on a number."""
    met = measured <= needed if at_most else measured >= needed
    distance = needed - measured if at_most else measured - needed
    margin = distance / needed if needed else distance
    return Verdict(line, what, needed_words(needed, at_most=at_most), measured, met, margin)


def needed_words(needed: float, *, at_most: bool) -> str:
    """As the table shows it."""
    return f"{'<=' if at_most else '>='} {needed:g}"


def faster(ours: Entry, *peers: Entry) -> Measure:
    """How many times longer the best of the peers takes, of those that ran."""

    def measure(contest: Contest, _limits: Limits) -> float:
        mine = _ran(contest, ours)
        others = [contest.of(peer) for peer in peers]
        ratios = [median_ratio(other.seconds, mine.seconds) for other in others if other.ran]
        if not ratios:
            raise Cannot("; ".join(f"{other.entry.name}: {other.reason}" for other in others))
        return min(ratios)

    return measure


def of_peak(ours: Entry) -> Measure:
    """Useful operations a second as a fraction of the FMA peak of this machine."""
    return lambda contest, limits: _ran(contest, ours).speed / limits.peak(ours.problem.dtype)


def speed_against(ours: Entry, other: Entry) -> Measure:
    """Useful operations a second of one entry as a fraction of another's."""

    def measure(contest: Contest, _limits: Limits) -> float:
        ratio = median_ratio(_ran(contest, other).seconds, _ran(contest, ours).seconds)
        return ratio * ours.problem.flops / other.problem.flops

    return measure


def time_against(ours: Entry, other: Entry) -> Measure:
    """How many times longer one entry takes than another."""
    return lambda contest, _limits: median_ratio(_ran(contest, ours).seconds, _ran(contest, other).seconds)


def _ran(contest: Contest, entry: Entry) -> Outcome:
    outcome = contest.of(entry)
    if not outcome.ran:
        raise Cannot(f"{entry.name}: {outcome.reason}")
    return outcome


def all_met(verdicts: Sequence[Verdict]) -> bool:
    """Is every line measured and met?"""
    return bool(verdicts) and all(verdict.met is True for verdict in verdicts)
