"""Peak memory of one run in a fresh process: how far the resident memory rises above the inputs.

`python -m benchmarks.memory` reads one JSON line, the contestant and its problem, and answers with one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Entry, first_line
from benchmarks.peers import Cannot, callable_of, find_peer
from benchmarks.problems import Problem, make_inputs
from benchmarks.worker import start_python

TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Memory:
    """Bytes above the inputs of one entry, or why they are not known."""

    entry: Entry
    peak_bytes: int | None
    reason: str = ""

    @property
    def beyond_results(self) -> float:
        """Peak for each byte that must be returned anyway: outputs and gradients."""
        return (self.peak_bytes or 0) / self.entry.problem.result_bytes

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        facts = {"contestant": self.entry.name, "problem": asdict(self.entry.problem), "name": self.entry.problem.name}
        if self.peak_bytes is None:
            return {**facts, "reason": self.reason}
        return {**facts, "peak_bytes": self.peak_bytes, "result_bytes": self.entry.problem.result_bytes}


def peak_of(entry: Entry) -> Memory:
    """Ask a fresh process."""
    wish = {"name": entry.name, "problem": asdict(entry.problem), "threads": torch.get_num_threads()}
    answer = asked("benchmarks.memory", wish, dict(find_peer(entry.name).environment))
    return Memory(entry, answer.get("peak_bytes"), answer.get("cannot", ""))


def asked(module: str, wish: Mapping[str, object], environment: Mapping[str, str]) -> dict[str, Any]:
    """What a fresh process that runs `module` answers to one question; `cannot` says why it did not."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with start_python(module, environment, **pipes) as process:
        try:
            line, _ = process.communicate(json.dumps(wish), timeout=TIMEOUT_SECONDS)
        except BaseException as problem:
            process.kill()
            if isinstance(problem, subprocess.TimeoutExpired):
                return {"cannot": f"it took longer than {TIMEOUT_SECONDS} s"}
            raise
    if process.returncode != 0 or not line:
        return {"cannot": f"its process ended with status {process.returncode}"}
    answer: dict[str, Any] = json.loads(line)
    return answer


def peak_here(name: str, problem: Problem) -> int:
    """The rise of this process's high-water mark while the problem runs once.

    A small run comes first, so that libraries and threads are not counted; what compiles for each length runs in full.
    """
    peer = find_peer(name)
    small = dataclasses.replace(problem, q_len=min(problem.q_len, 128), kv_len=min(problem.kv_len, 128))
    with peer.around():
        callable_of(name, small, make_inputs(small))()
        run = callable_of(name, problem, make_inputs(problem))
        if peer.compiles:
            run()
        return rise_of(run)


def rise_of(run: Callable[[], object]) -> int:
    """Bytes by which the high-water mark of this process rises while `run` runs and what it gives is kept."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    before = _status("VmHWM")
    kept = run()
    after = _status("VmHWM")
    del kept
    return max(0, after - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def answer_one(answer: Callable[[dict[str, Any]], dict[str, object]]) -> None:
    """Answer the one question on standard input. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    wish = json.loads(sys.stdin.readline())
    torch.set_num_threads(wish["threads"])
    try:
        facts = answer(wish)
    except Cannot as why:
        facts = {"cannot": str(why)}
    except Exception as failure:
        facts = {"cannot": first_line(failure)}
    answers.write(json.dumps(facts) + "\n")
    answers.flush()


if __name__ == "__main__":
    answer_one(lambda wish: {"peak_bytes": peak_here(wish["name"], Problem(**wish["problem"]))})
