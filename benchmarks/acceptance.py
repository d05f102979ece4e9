"""The acceptance table: what regard promises about its speed, line by line, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.contest import Entry
from benchmarks.peers import READINGS
from benchmarks.problems import Direction, Dtype, Pattern, Problem, square
from benchmarks.verdicts import Claim, faster, of_peak, speed_against, time_against

EAGER = ("eager", "eager-pages-kept")
RUNTIMES = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Line:
    """One contest and what is claimed of it."""

    name: str
    entries: tuple[Entry, ...]
    claims: tuple[Claim, ...]


def lines(ours: str) -> list[Line]:
    """Every line that is a contest, for `regard-BACKEND`. Small shapes and peak memory have files of their own."""
    return [*_forward(ours), *_training(ours), *_windows(ours), *_rest(ours)]


def _line(name: str, ours: str, problem: Problem, peers: tuple[str, ...], **needed: float) -> Line:
    """`needed`: sdpa=2.4 against SDPA, best=2.0 against the best of torch, runtimes=1.35, peak=0.85."""
    mine, sdpa = Entry(ours, problem), Entry("sdpa", problem)
    entries = (mine, *(Entry(peer, problem) for peer in peers))
    of_torch = [entry for entry in entries[1:] if entry.name not in RUNTIMES]
    runtimes = [Entry(peer, problem) for peer in RUNTIMES]
    measures = {
        "sdpa": ("x SDPA", faster(mine, sdpa)),
        "best": ("x best of torch (SDPA, plain eager, pages kept)", faster(mine, *of_torch)),
        "runtimes": ("x the better of OpenVINO and onnxruntime", faster(mine, *runtimes)),
        "peak": ("of the FMA peak", of_peak(mine)),
    }
    claims = tuple(Claim(measures[key][0], number, measures[key][1]) for key, number in needed.items())
    return Line(name, entries, claims)


def _forward(ours: str) -> Iterator[Line]:
    peers = ("sdpa", *RUNTIMES)
    for length in (1024, 2048, 4096):
        name, problem = f"fp32 forward dense n={length}", square(length)
        yield _line(name, ours, problem, peers, sdpa=2.4, peak=0.85, runtimes=1.35)
    for length in (2048, 4096):
        name, problem = f"fp32 forward causal n={length}", square(length, pattern="causal")
        yield _line(name, ours, problem, peers, sdpa=2.8, runtimes=3.0)
    peers = ("sdpa", *EAGER, *RUNTIMES)
    for length in (2048, 4096):
        dense, causal = square(length, dtype="bf16"), square(length, dtype="bf16", pattern="causal")
        yield _line(f"bf16 forward dense n={length}", ours, dense, peers, sdpa=4.6, best=2.0, runtimes=1.9)
        yield _line(f"bf16 forward causal n={length}", ours, causal, peers, sdpa=5.2, best=2.0)


def _training(ours: str) -> Iterator[Line]:
    table: tuple[tuple[Dtype, Pattern, dict[str, float]], ...] = (
        ("fp32", "dense", {"sdpa": 2.4}),
        ("fp32", "causal", {"sdpa": 2.9}),
        ("bf16", "dense", {"sdpa": 3.6, "best": 1.6}),
        ("bf16", "causal", {"sdpa": 4.2, "best": 1.6}),
    )
    for dtype, pattern, needed in table:
        problem = _train(2048, dtype=dtype, pattern=pattern)
        peers = ("sdpa", *EAGER) if "best" in needed else ("sdpa",)
        yield _line(f"{dtype} forward+backward {pattern} n=2048", ours, problem, peers, **needed)
    for dtype in ("fp32", "bf16"):
        problem = _train(4096, dtype=dtype, heads=1, kv_heads=1)
        yield _line(f"{dtype} forward+backward one head n=4096", ours, problem, ("sdpa",), sdpa=2.0)


def _train(length: int, **fields: Any) -> Problem:
    direction: Direction = "forward+backward"
    return square(length, direction=direction, **fields)


def _windows(ours: str) -> Iterator[Line]:
    table: tuple[tuple[Dtype, float], ...] = (("fp32", 22.0), ("bf16", 35.0))
    for dtype, needed in table:
        window, dense = square(4096, dtype=dtype, pattern="window"), square(4096, dtype=dtype)
        mine, sdpa, whole = Entry(ours, window), Entry("sdpa", window), Entry(ours, dense)
        claims = (
            Claim("x SDPA with the same bool mask", needed, faster(mine, sdpa)),
            Claim("in-band speed of the dense speed", 0.8, speed_against(mine, whole)),
        )
        yield Line(f"{dtype} forward window ±256 n=4096", (mine, sdpa, whole), claims)
    trained = _train(4096, pattern="window")
    yield _line("fp32 forward+backward window ±256 n=4096", ours, trained, ("sdpa",), sdpa=14.0)
    long, short = (Entry(ours, square(n, pattern="window+global")) for n in (16384, 4096))
    flex = Entry("flex", long.problem)
    claims = (
        Claim("x FlexAttention compiled", 3.0, faster(long, flex)),
        Claim("time(16384) / time(4096)", 4.4, time_against(long, short), at_most=True),
    )
    yield Line("fp32 forward window ±256 + 16 global n=16384", (long, flex, short), claims)


def _rest(ours: str) -> Iterator[Line]:
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16")
    for dtype in dtypes:
        # Eight sets of keys and values take turns: a cache that the last token filled holds none of them.
        problem = Problem(dtype=dtype, q_len=1, kv_len=8192, heads=32, kv_heads=8, copies=8)
        mine, sdpa = Entry(ours, problem), Entry("sdpa", problem)
        # In turns with ours, since a machine's memory is not equally fast from one second to the next.
        readers = tuple(Entry(name, problem) for name in READINGS)
        claims = (
            Claim("x SDPA", 1.0, faster(mine, sdpa)),
            Claim("of the memory bandwidth", 0.8, faster(mine, *readers)),
        )
        yield Line(f"{dtype} decode q=1 kv=8192 h=32/8", (mine, sdpa, *readers), claims)
    problem = square(2048)
    narrow, sdpa = Entry(f"{ours}-avx2", problem), Entry("sdpa", problem)
    claim = Claim("x SDPA", 1.2, faster(narrow, sdpa))
    yield Line("fp32 forward dense n=2048 AVX2 only", (narrow, sdpa), (claim,))
