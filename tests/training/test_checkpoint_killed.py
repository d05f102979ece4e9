"""Row F73 of the fault table with a real training and a real `kill -9`, and F78: what a run is not resumed with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from regard._errors import CheckpointError
from regard.training import train
from tests.training.killed import Tiny, config

KILLS = 50
REPOSITORY = Path(__file__).parents[2]


def test_F73_training_that_is_killed_50_times_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The curve in log.jsonl, the weights, the optimizer and the average of a run that nobody disturbed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(tmp_path), str(KILLS)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["faults"] == [], done.stderr
    assert report["kills"] == KILLS
    assert report["runs"] >= 1
    assert report["resumed"] >= 1
    assert report["lines"] > 150
    # Saving takes about half of the time; that not one of 50 kills falls into it would be a test that looks away.
    assert report["in saves"] >= 1


def test_F78_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    first = config().model_copy(update={"steps": 3, "threads": None})
    train(Tiny(), first, tmp_path)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    message = (
        r"holds a run of another configuration \(steps: 3 -> 4; learning_rate: 0\.001 -> 0\.5\)\. "
        r"Take its configuration, or another folder\."
    )
    with pytest.raises(CheckpointError, match=message):
        train(Tiny(), first.model_copy(update={"steps": 4, "learning_rate": 0.5}), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    # How often it is watched and saved may change.
    again = train(
        Tiny(), first.model_copy(update={"checkpoint_every": 2, "log_every": 3, "checkpoint_minutes": 1}), tmp_path
    )
    assert again.step == 3


def test_F78_another_model_is_refused(tmp_path: Path) -> None:
    first = config().model_copy(update={"steps": 3, "threads": None})
    train(Tiny(), first, tmp_path)
    other = Tiny()
    other.model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(0.2))
    with pytest.raises(CheckpointError, match="weights of the checkpoint do not fit the model: missing"):
        train(other, first, tmp_path)
    wide = Tiny()
    wide.model[0] = torch.nn.Linear(6, 13)
    with pytest.raises(CheckpointError, match=r"a tensor of the checkpoint is \(12, 6\), the model's \(13, 6\)"):
        train(wide, first, tmp_path)


def evaluations(folder: Path) -> list[object]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["metrics"]) for line in lines if line["kind"] == "evaluation"]


class Stopped(Tiny):
    """Asks its own process to end, in the middle of step 10."""

    def batch(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.parts = getattr(self, "parts", 0) + 1
        if self.parts == 10 * config().accumulate:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(indices)


def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    short = config().model_copy(update={"steps": 20, "threads": None})
    stopped = train(Stopped(), short, tmp_path / "stopped")
    assert (stopped.step, stopped.finished) == (10, False)
    resumed = train(Tiny(), short, tmp_path / "stopped")
    straight = train(Tiny(), short, tmp_path / "straight")
    assert resumed.finished
    assert evaluations(tmp_path / "stopped") == evaluations(tmp_path / "straight")
    assert_same_weights(resumed.model, straight.model)


def test_a_run_that_had_finished_gives_the_weights_that_it_ended_with(tmp_path: Path) -> None:
    """The average, which is what was evaluated, and not what the model began with."""
    short = config().model_copy(update={"steps": 14, "threads": None})
    first = train(Tiny(), short, tmp_path)
    again = train(Tiny(), short, tmp_path)
    assert again.metrics == first.metrics
    assert_same_weights(again.model, first.model)


def assert_same_weights(one: torch.nn.Module, two: torch.nn.Module) -> None:
    other = two.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other[name]), name
