"""Row F73 of the fault table with a real training and a real `kill -9`, and F78: what a run is not resumed with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
