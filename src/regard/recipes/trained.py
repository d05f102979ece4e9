"""What a finished or running training left in its folder, opened again for use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from torch import Tensor

from regard._errors import CheckpointError
from regard.training.checkpoint import read_checkpoint
from regard.training.config import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)


def open_run(folder: Path, config: type[C], recipe: str) -> tuple[C, dict[str, Tensor]]:
    """The configuration of a run, and the weights of its newest good checkpoint: the average, where one was kept.

    Raises:
        CheckpointError: no run is there, or one of another recipe, or its checkpoints are corrupt.
    """
    if not folder.exists():
        raise CheckpointError(f"{str(folder)!r}: nothing was trained there. Train first: regard train {recipe}")
    saved = read_checkpoint(folder)
    kept: object = saved.facts.get("config")
    if isinstance(kept, dict):
        kept = config.completed(cast("Mapping[str, Any]", kept))
    try:
        made = config.model_validate(kept)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise CheckpointError(
            f"{str(folder)!r}: expected a run of {recipe}, got one whose configuration does not fit ({where}). "
            f"Take the folder of a `regard train {recipe}`."
        ) from error
    return made, {**saved.tensors["model"], **saved.tensors.get("average", {})}
