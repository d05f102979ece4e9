"""One line held: both sides compared with float64; and, once they give the same answer, timed in turns."""

from __future__ import annotations

import statistics

import torch

from benchmarks import machine
from benchmarks.contest import first_line
from benchmarks.module_pairs import Line, Pair
from benchmarks.peers import Cannot
from benchmarks.problems import SEED, Direction
from benchmarks.sides import Results, Side, Sizes, relative_error
from benchmarks.timing import Here, Plan, interleave, median_ratio, spread

TOLERANCE = 1e-3
"""Relative error above which a side computes something else: rounding in float32 stays far below it."""


def time_line(line: Line, direction: Direction, sizes: Sizes, plan: Plan) -> dict[str, object]:
    """Time both sides in turns, once they have given the same answer."""
    try:
        pair = _made(line, direction, sizes)
        ours, theirs = (_results(side, direction) for side in (pair.ours, pair.theirs))
        if not pair.approximate:
            _check(f"beside {line.peer}", ours, theirs)
    except Cannot as why:
        return {**_facts(line, direction), "reason": str(why)}
    del ours, theirs
    runners = {"ours": Here([pair.ours.run(direction)]), "theirs": Here([pair.theirs.run(direction)])}
    times = interleave(runners, plan)
    theirs_median = statistics.median(times["theirs"])
    return {
        **_facts(line, direction, pair),
        "our_seconds": statistics.median(times["ours"]),
        "their_seconds": theirs_median,
        "most": _most(line, direction, sizes, theirs_median),
        "ratio": median_ratio(times["theirs"], times["ours"]),
        "spread": max(map(spread, times.values())),
        "repeats": len(times["ours"]),
        "threads": torch.get_num_threads(),
    }


def _most(line: Line, direction: Direction, sizes: Sizes, their_seconds: float) -> float | None:
    """How many times faster the work would be at the FMA peak of this machine, where it is bound by arithmetic."""
    peak, _ = machine.fma_peak("fp32", torch.get_num_threads())
    if line.work is None or peak is None:
        return None
    return their_seconds * peak / line.work(sizes).of(direction)


def errors_of_line(line: Line, direction: Direction, sizes: Sizes) -> dict[str, object]:
    """How far both sides are from float64."""
    try:
        pair = _made(line, direction, sizes)
        exact = _results(pair.in_float64, direction)
        ours, theirs = (_results(side, direction) for side in (pair.ours, pair.theirs))
        if not pair.approximate:
            _check("ours", ours, exact)
            _check(line.peer, theirs, exact)
    except Cannot as why:
        return {**_facts(line, direction), "reason": str(why)}
    errors = {"our_error": relative_error(ours, exact), "their_error": relative_error(theirs, exact)}
    return {**_facts(line, direction, pair), **errors}


def _made(line: Line, direction: Direction, sizes: Sizes) -> Pair:
    torch.default_generator.manual_seed(SEED)
    return line.pair(sizes, direction)


def _facts(line: Line, direction: Direction, pair: Pair | None = None) -> dict[str, object]:
    return {
        "line": line.name,
        "mechanism": line.mechanism,
        "peer": line.peer,
        "direction": direction,
        "shape": [] if pair is None else list(pair.ours.inputs[0].shape),
        "needed": line.needed.get(direction),
        "error_needed": line.error_needed,
    }


def _results(side: Side, direction: Direction) -> Results:
    try:
        return side.shown(side.run(direction)())
    except Exception as failure:
        raise Cannot(f"{type(side.module).__name__}: {first_line(failure)}") from failure


def _check(name: str, found: Results, expected: Results) -> None:
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise Cannot(f"{name}: something else is computed: relative error {error:.1e}, allowed {TOLERANCE:.0e}")
