"""What recipes share: the training loop, crash-safe checkpoints, the log, sources of data.

Needs the group `train`: pip install 'regard[train]'. A recipe gives a `Task` and a `TrainingConfig` to `train`.
"""

from typing import TYPE_CHECKING

from regard._lazy import lazily

if TYPE_CHECKING:
    from regard.training.config import TrainingConfig as TrainingConfig
    from regard.training.loop import Trained as Trained
    from regard.training.loop import train as train
    from regard.training.task import Task as Task

__getattr__ = lazily(
    __name__,
    {
        "regard.training.config": ("TrainingConfig",),
        "regard.training.loop": ("Trained", "train"),
        "regard.training.task": ("Task",),
    },
)

__all__ = ["Task", "Trained", "TrainingConfig", "train"]
