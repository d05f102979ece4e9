"""What is run when no acceptance table is asked for, and what peak memory is measured of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from benchmarks.contest import Entry
from benchmarks.memory import Memory
from benchmarks.peers import find_peer
from benchmarks.problems import Direction, Dtype, Pattern, Problem, square
from benchmarks.verdicts import Verdict, needed_words, verdict_of

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (64, 128)
PEERS = ("sdpa", "flex", "eager", "eager-pages-kept", "openvino", "onnxruntime")
PARTS = (*(f"{dtype}-{direction}" for dtype in DTYPES for direction in DIRECTIONS), "memory")

MEMORY_LENGTH = 8192
MEMORY_FROM = 1024
MEMORY_FACTOR = 1.3


@dataclass(frozen=True)
class Survey:
    """Which problems, and who takes part."""

    ours: str
    parts: tuple[str, ...] = PARTS
    lengths: tuple[int, ...] = LENGTHS
    widths: tuple[int, ...] = WIDTHS
    patterns: tuple[Pattern, ...] = ("dense", "causal", "window")
    peers: tuple[str, ...] = PEERS

    def __post_init__(self) -> None:
        """Refuse names that nobody has."""
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise ValueError(f"no part is called {unknown[0]!r}; there are: {', '.join(PARTS)}")
        for name in (self.ours, *self.peers):
            find_peer(name)

    def contests(self) -> list[list[Entry]]:
        """The entries of each contest: one problem, everybody."""
        wanted = (problem for problem in self._problems() if f"{problem.dtype}-{problem.direction}" in self.parts)
        return [self._entries(problem) for problem in wanted]

    def peaks(self) -> list[Entry]:
        """Of what peak memory is measured: fp32, dense and windows, long texts; then the extras at one length."""
        if "memory" not in self.parts:
            return []
        longest, width = max(self.lengths), min(self.widths)
        long = [length for length in self.lengths if length >= MEMORY_FROM] or [longest]
        shapes = [
            square(length, direction=direction, pattern=pattern, head_dim=width, value_dim=width)
            for direction in DIRECTIONS
            for pattern in self.patterns
            for length in long
            if pattern != "causal"
        ]
        length = MEMORY_LENGTH if MEMORY_LENGTH in self.lengths else longest
        extras = [problem for direction in DIRECTIONS for problem in _with_extras(direction, length)[1:]]
        return [entry for problem in (*shapes, *extras) for entry in self._entries(problem)]

    def _entries(self, problem: Problem) -> list[Entry]:
        return [Entry(name, problem) for name in (self.ours, *self.peers)]

    def _problems(self) -> list[Problem]:
        return [
            square(length, dtype=dtype, direction=direction, pattern=pattern, head_dim=width, value_dim=width)
            for dtype in DTYPES
            for direction in DIRECTIONS
            for width in self.widths
            for pattern in self.patterns
            for length in self.lengths
        ]


def quick(ours: str) -> Survey:
    """Small enough for two minutes; FlexAttention alone would take that long to compile."""
    peers = tuple(peer for peer in PEERS if peer != "flex")
    return Survey(ours, PARTS[:-1], (256, 1024), (64,), ("dense", "causal"), peers)


def patterns_of(names: Sequence[str]) -> tuple[Pattern, ...]:
    """The patterns of these names."""
    unknown = [name for name in names if name not in PATTERNS]
    if unknown:
        raise ValueError(f"no pattern is called {unknown[0]!r}; there are: {', '.join(PATTERNS)}")
    return tuple(pattern for pattern in PATTERNS if pattern in names)


def _with_extras(direction: Direction, length: int = MEMORY_LENGTH) -> list[Problem]:
    """The plain case, then dropout, a learned table, and a value twice as wide."""
    plain = square(length, direction=direction)
    extras = (replace(plain, extra="dropout"), replace(plain, extra="bias-table"))
    return [plain, *extras, replace(plain, value_dim=2 * plain.head_dim)]


def memory_entries(ours: str, direction: Direction) -> list[Entry]:
    """Of what the acceptance table asks the peak memory."""
    return [Entry(ours, problem) for problem in _with_extras(direction)]


def memory_verdicts(found: Sequence[Memory]) -> list[Verdict]:
    """Each extra against the plain case, which comes first.

    Peaks are compared for each byte that must be returned: a value twice as wide has an output and gradients of
    up to twice the bytes, and no algorithm can do without those. The plain ratio stands beside it.
    """
    plain = found[0]
    return [_verdict(plain, extra) for extra in found[1:]]


def _verdict(plain: Memory, extra: Memory) -> Verdict:
    problem = extra.entry.problem
    line = f"peak memory {problem.direction} n={problem.q_len}"
    what = f"{problem.extra if problem.extra != 'none' else 'value width 2d'} against plain, for each byte returned"
    for one in (plain, extra):
        if one.peak_bytes is None:
            needed, why = needed_words(MEMORY_FACTOR, at_most=True), f"{one.entry.problem.name}: {one.reason}"
            return Verdict(line, what, needed, None, None, None, why)
    factor = extra.beyond_results / max(plain.beyond_results, 1e-9)
    verdict = verdict_of(line, what, factor, needed=MEMORY_FACTOR, at_most=True)
    raw = (extra.peak_bytes or 0) / max(plain.peak_bytes or 0, 1)
    return replace(verdict, reason=f"bytes against bytes: {raw:.2f}")
