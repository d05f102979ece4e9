"""Time and peak memory of one function, measured on this machine."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Cost:
    """milliseconds: median of the runs. peak_bytes: most that was allocated at once, beyond what went in."""

    milliseconds: float
    peak_bytes: int


def cost_of(function: Callable[[], object], *, seconds: float = 0.2, runs: int = 9) -> Cost:
    """Median time of up to `runs` runs, stopping after `seconds`, and the peak memory of one more.

    The first run is not counted: it warms caches and compiles what compiles.
    """
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return Cost(milliseconds=1000 * statistics.median(times), peak_bytes=peak_bytes(function))


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator held at once during `function`, beyond what it held before.

    Counts kernels' scratch memory too, which no look at tensors can see. While it measures, the process's
    standard error is closed: torch's profiler writes a line to it for each start and stop.
    """
    kept: list[object] = []
    with _muted_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept.append(function())
    held = most = 0
    for event in _events(seen):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def growth(shorter: int, longer: int, cost_shorter: float, cost_longer: float) -> float:
    """The exponent p of cost ~ length**p between two lengths; 0.0 when it cannot be told."""
    if min(shorter, longer, cost_shorter, cost_longer) <= 0 or shorter == longer:
        return 0.0
    return math.log(cost_longer / cost_shorter) / math.log(longer / shorter)


def available_bytes() -> int:
    """Physical memory that could be had now; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a device, not a path
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else torch.backends.cpu.get_cpu_capability()


def _events(seen: profile) -> Any:
    results: Any = getattr(seen.profiler, "kineto_results", None)
    return [] if results is None else results.events()


@contextlib.contextmanager
def _muted_stderr() -> Generator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # already closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    _flush()
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        _flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # none, broken or closed
        sys.stderr.flush()
