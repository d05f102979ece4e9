"""How much memory a process takes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard.training import memory

_CHILD = """
from regard.training.memory import peak_rss
before = peak_rss()
block = bytearray(2**28)
during = peak_rss()
del block
print(before, during, peak_rss())
"""


def test_peak_rss_rises_by_what_is_touched_and_stays() -> None:
    told = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout
    before, during, after = map(int, told.split())
    slack = 2**23  # the kernel counts in batches
    assert 2**28 - slack <= during - before <= 2**28 + slack
    assert after >= during - slack


def test_peak_rss_is_that_of_the_kernel_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t    300 kB\nVmRSS:\t 100 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    assert memory.peak_rss() == 300 * 1024


def test_without_proc_peak_rss_is_getrusages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert now <= memory.peak_rss() <= now + 2**22


@pytest.mark.parametrize(("available", "initialized"), [(False, False), (True, False), (False, True)])
def test_cuda_memory_is_empty_where_cuda_is_not_in_use(
    monkeypatch: pytest.MonkeyPatch, available: bool, initialized: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    assert memory.cuda_memory() == {}
    assert set(memory.memory_in_use()) == {"peak_rss"}


def test_cuda_memory_tells_three_numbers_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2)
    found = memory.memory_in_use()
    assert {**found, "peak_rss": 0} == {"peak_rss": 0, "cuda_allocated": 1, "cuda_reserved": 3, "cuda_peak": 2}
