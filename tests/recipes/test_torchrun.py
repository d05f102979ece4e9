"""Every recipe trains over two processes as over one: the command line under torchrun, at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.test_smoke import SMALL, data_of

EXACT = ["steps=3", "warmup_steps=1", "precision=float32", "log_every=1", "average_decay=0"]
WITHOUT_DROPOUT = ("translation", "word_alignment", "summarization", "dialogue", "language_model", "image_text")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "training"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", list(SMALL))
def test_two_processes_train_as_one(name, tmp_path):
    settings = [*SMALL[name].split(), *EXACT, *data_of(name, tmp_path)]
    if name in WITHOUT_DROPOUT:
        settings.append("dropout_p=0")
    if name == "translation":
        settings += ["dropout_start=null", "dropout_end=null"]
    given = [part for setting in settings for part in ("--set", setting)]
    for processes, launcher in ((1, []), (2, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        command = [sys.executable, *launcher, "-m", "regard", "train", name, *given, "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        ended = subprocess.run(
            [*command, "--out", str(tmp_path / str(processes))],
            env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert json.loads(ended.stdout)["finished"]
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 3
    assert two == pytest.approx(one, abs=1e-4)
