"""A short training of the tiny translator, as torchrun starts it: FOLDER key=value ..."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from regard import CheckpointError
from regard.training import train
from regard.training.checkpoint import Checkpoints
from tests.recipes.translation_cases import tiny_task

NO_CHANCE = {
    "dropout_p": 0.0, "dropout_start": None, "dropout_end": None, "precision": "float32", "optimizer": "adamw",
    "learning_rate": 1.5e-3,
}  # fmt: skip
"""Muon iterates in bfloat16, which makes much of a difference in the last bit of a gradient."""


def cannot_save(self: Checkpoints, *_: object, **__: object) -> None:
    """The disk is full for the process that writes."""
    if self._writer:
        raise CheckpointError("the disk is full")


def main() -> None:
    folder, *settings = sys.argv[1:]
    given = dict(setting.split("=") for setting in settings)
    last = int(given.pop("stop_after", 0))
    if given.pop("full_disk", ""):
        Checkpoints.save = cannot_save
    task, config = tiny_task(**{**NO_CHANCE, **given})
    if last:
        units = task.units
        done: list[int] = []

        def counted(indices: Sequence[int]) -> int:
            done.append(1)
            if len(done) == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return units(indices)

        task.units = counted
    train(task, config, Path(folder))


if __name__ == "__main__":
    main()
