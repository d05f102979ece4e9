"""The machine: what it is, how busy it is, and how fast it can be at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import regard
import regard.measure
from regard.backends._library import isa

LOAD_LIMIT = 0.5
"""Load of the last minute, for each core, above which timings are worthless."""

_PACKAGES = ("regard", "torch", "numpy", "openvino", "onnxruntime", "onnx")


def busy() -> str | None:
    """Why timings would be worthless now, or None."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= LOAD_LIMIT * cores:
        return None
    return f"the load of the last minute is {load:.2f} on {cores} cores; timings need {LOAD_LIMIT * cores:.1f} or less"


def describe() -> dict[str, Any]:
    """What the results file says of the machine and of what was installed."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()} {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "isa_of_torch": torch.backends.cpu.get_cpu_capability(),
        "isa_of_regard": isa_of_regard(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_SETTINGS)},
        "versions": {name: version_of(name) for name in _PACKAGES},
    }


_SETTINGS = ("REGARD_", "OMP_", "MKL_", "GOMP_", "KMP_", "MALLOC_", "GLIBC_TUNABLES", "ONEDNN_", "DNNL_", "LD_PRELOAD")


def version_of(package: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def isa_of_regard() -> str:
    """The instruction set that the native core computes with, or why there is none."""
    try:
        return isa()
    except regard.RegardError as absent:
        return str(absent)


def fma_peak(dtype: str, threads: int) -> tuple[float | None, str]:
    """Floating-point operations a second of a loop of fused multiply-adds, or why it is not known."""
    measure: Callable[[str, int], float] | None = getattr(regard.measure, "fma_peak", None)
    if measure is None:
        return None, "this regard has no measure.fma_peak"
    try:
        return float(measure(dtype, threads)), ""
    except (regard.RegardError, RuntimeError) as failure:
        return None, str(failure)


class OthersTime:
    """How many cores other programs kept busy since this was made. None where the system does not say."""

    def __init__(self, workers: Sequence[int] = ()) -> None:
        self.processes = (os.getpid(), *workers)
        self.start = time.perf_counter()
        self.before = self._busy()

    def cores(self) -> float | None:
        """Until now."""
        elapsed, now = max(time.perf_counter() - self.start, 1e-9), self._busy()
        return None if now is None or self.before is None else max(0.0, now - self.before) / elapsed

    def _busy(self) -> float | None:
        tick = os.sysconf("SC_CLK_TCK")
        try:
            fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
            all_of_them = sum(int(fields[place]) for place in (0, 1, 2, 5, 6, 7))
            return (all_of_them - sum(_ticks(process) for process in self.processes)) / tick
        except (OSError, ValueError, IndexError):
            return None


def _ticks(process: int) -> int:
    """Processor time of a process, in ticks: user and system, without its children."""
    after_name = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return int(after_name[11]) + int(after_name[12])
