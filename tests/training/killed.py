"""Trains a tiny model in processes that are killed. Run by test_checkpoint_killed.py, apart from pytest.

    python -m tests.training.killed FOLDER KILLS

Importing torch is what takes time, so one process imports and forks those that train; it never computes itself, for a
process with threads cannot be forked well. A run that reached its end is compared with one that nobody disturbed.
Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from secrets import SystemRandom
from typing import Any

import torch
import torch._dynamo  # what optimizers import late
import torch.utils.tensorboard
from torch import Tensor, nn

from regard.training import TrainingConfig, train
from regard.training.checkpoint import read_checkpoint
from regard.training.order import shuffled_batches

STEPS = 150
EXAMPLES = 40
LONGEST = 1.2
"""Seconds that a process may live: a few saves long, or a third of an undisturbed run where that is less."""


class Tiny:
    """A classifier of noise, with everything that has a state: dropout, its schedule, a buffer, an average."""

    metric = "accuracy"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Linear(12, 3))
        self._inputs, self._labels = torch.randn(EXAMPLES, 6), torch.randint(0, 3, (EXAMPLES,))

    def order(self, epoch: int) -> list[list[int]]:
        return shuffled_batches(EXAMPLES, 8, seed=3, epoch=epoch)

    def units(self, indices: Any) -> int:
        return len(indices)

    def batch(self, indices: Any) -> tuple[Tensor, Tensor]:
        return self._inputs[indices], self._labels[indices]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        chosen = model(self._inputs)
        return {"accuracy": float((chosen.argmax(-1) == self._labels).double().mean()), "sum": float(chosen.sum())}


def config() -> TrainingConfig:
    return TrainingConfig(
        steps=STEPS,
        accumulate=2,
        warmup_steps=20,
        average_decay=0.9,
        dropout_start=0.3,
        dropout_end=0.1,
        precision="float32",
        threads=1,
        log_every=1,
        evaluate_every=7,
        checkpoint_every=3,
    )


def start(folder: Path) -> int:
    """A process that trains in this folder."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if train(Tiny(), config(), folder).finished else 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def seen(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The curve of a run, without times and memory; and its last checkpoint, without its place in the log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = ("kind", "step", "loss", "learning_rate", "gradient_norm", "epoch", "units", "metrics")
    curve = [{key: line.get(key) for key in told} for line in lines if line["kind"] in {"training", "evaluation"}]
    saved = read_checkpoint(folder)
    weights = {
        f"{name}/{key}": tensor.reshape(-1).view(torch.uint8).tolist()
        for name, named in saved.tensors.items()
        for key, tensor in named.items()
    }
    return curve, {"step": saved.step, "weights": weights, "state": saved.facts["state"]}


def main(folder: Path, kills: int) -> None:
    chance = SystemRandom()
    expected: Any = None
    report: dict[str, Any] = {"kills": 0, "in saves": 0, "runs": 0, "resumed": 0, "lines": 0, "faults": []}
    reference = folder / "reference"
    began = time.monotonic()
    status = os.waitpid(start(reference), 0)[1]
    longest = min(LONGEST, (time.monotonic() - began) / 3)
    if status != 0:
        report["faults"].append("the undisturbed run failed")
    else:
        expected = seen(reference)
        report["lines"] = len(expected[0])
    run = folder / "run"
    while not report["faults"] and (report["kills"] < kills or run.exists()):
        status = killed_after(start(run), chance.uniform(0, longest) if report["kills"] < kills else 300)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            report["kills"] += 1
            left = [path.name for path in (run / "checkpoints").glob("*.tmp-*")]
            report["in saves"] += bool(left)
        elif status != 0:
            report["faults"].append(f"a run that was resumed ended with status {status} after {report['kills']} kills")
        else:
            log = (run / "log.jsonl").read_text()
            report["runs"] += 1
            report["resumed"] += log.count('"kind": "resume"')
            if '"skipped": ["' in log:
                report["faults"].append("a checkpoint was skipped")
            report["faults"] += differences(expected, seen(run))
            shutil.rmtree(run)
    sys.stdout.write(json.dumps(report) + "\n")


def killed_after(child: int, seconds: float) -> int:
    """The status of a process that ended itself, or was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def differences(expected: Any, got: Any) -> list[str]:
    faults = [
        f"line {at}: {one} is {two}"
        for at, (one, two) in enumerate(zip(*(expected[0], got[0]), strict=False))
        if one != two
    ]
    if len(expected[0]) != len(got[0]):
        faults.append(f"{len(expected[0])} lines are {len(got[0])}")
    faults += [f"{key} differs" for key in ("step", "weights", "state") if expected[1][key] != got[1][key]]
    return faults[:5]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
