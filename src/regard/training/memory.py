"""How much memory this process takes: what the machine has to have, and what CUDA's allocator holds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_rss() -> int:
    """The most main memory that this process has had resident since it began, in bytes.

    Linux: VmHWM (proc_pid_status(5)). Not getrusage's ru_maxrss there: after a fork and exec it still counts what the
    parent had (getrusage(2), and the kernel's `setmax_mm_hiwater_rss` in exec). Elsewhere: ru_maxrss; 0 where there is
    neither.
    """
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else _peak_by_getrusage()


def cuda_memory() -> dict[str, int]:
    """Bytes on the current CUDA device: "cuda_allocated" and "cuda_reserved" now, "cuda_peak" allocated at most.

    Allocated is what tensors take, reserved what torch's caching allocator holds for them and other programs cannot
    have (`torch.cuda.memory_allocated`, `memory_reserved`, `max_memory_allocated`). Empty where CUDA is not in use; to
    ask does not begin to use it.
    """
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {
        "cuda_allocated": torch.cuda.memory_allocated(),
        "cuda_reserved": torch.cuda.memory_reserved(),
        "cuda_peak": torch.cuda.max_memory_allocated(),
    }


def memory_in_use() -> dict[str, int]:
    """In bytes, of this process alone: "peak_rss" and, where CUDA is in use, what `cuda_memory` says."""
    return {"peak_rss": peak_rss(), **cuda_memory()}


def _peak_by_getrusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
