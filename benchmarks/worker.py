"""A contestant in a process of its own, for an environment that must be there from the start.

`python -m benchmarks.worker` reads one JSON line at a time and answers with one: first the contestant and its
problem, then how many calls to time. So it takes its turn among the contestants of the asking process.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.peers import Cannot, find_peer
from benchmarks.problems import Problem
from benchmarks.timing import Here

MOST_SETTLING_RUNS = 8
FEW_PAGE_FAULTS = 256
ROOT = Path(__file__).resolve().parent.parent


def start_python(module: str, environment: Mapping[str, str], **pipes: Any) -> subprocess.Popen[str]:
    """A fresh Python that runs one module of this folder."""
    return subprocess.Popen(  # noqa: S603 - this interpreter, a module of ours
        [sys.executable, "-m", module], cwd=ROOT, env={**os.environ, **environment}, text=True, **pipes
    )


class Worker:
    """A runner whose calls are timed in another process."""

    pool = "worker"

    def __init__(self, name: str, problem: Problem) -> None:
        environment = dict(find_peer(name).environment)
        self.process = start_python(
            "benchmarks.worker", environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            wish = {"name": name, "problem": asdict(problem), "threads": torch.get_num_threads()}
            self.error = float(self._ask(wish)["error"])
        except BaseException:
            self.close()
            raise

    def sample(self, calls: int) -> float:
        """Seconds for each call, over so many calls."""
        return float(self._ask({"calls": calls})["seconds"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("the worker has no pipes")
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # then it also has no answer, and its exit status is told
        line = self.process.stdout.readline()
        if not line:
            raise Cannot(f"its process ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "cannot" in answer:
            raise Cannot(answer["cannot"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a question that was never read
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def settle(runner: Here) -> None:
    """Run until a run gets no new pages. glibc needs a few: an aligned block does not fit the hole it left at once."""
    for _ in range(MOST_SETTLING_RUNS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        runner.sample(1)
        if resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < FEW_PAGE_FAULTS:
            return


def serve() -> None:
    """Answer questions until there are no more. What libraries print goes to standard error."""
    from benchmarks.contest import prepare_here

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**facts: object) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    wish = json.loads(sys.stdin.readline())
    torch.set_num_threads(wish["threads"])
    try:
        runner, error = prepare_here(wish["name"], Problem(**wish["problem"]))
    except Cannot as why:
        answer(cannot=str(why))
        return
    settle(runner)
    answer(error=error)
    for line in sys.stdin:
        answer(seconds=runner.sample(json.loads(line)["calls"]))


if __name__ == "__main__":
    serve()
