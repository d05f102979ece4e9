"""What a recipe gives to the training loop.

The loss of a part of a batch is a *sum*, and how many units it is a sum over is known before anything is computed.
So the loop can cut a batch into parts, over processes and one after another, and still get the gradient of the mean
over the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Any
"""Tensors of one part of a batch: a tensor, or any tuple, list or dict of them."""


class Task(Protocol):
    """A model, its examples, its loss and its metric.

    Attributes:
        model: in float32, on the CPU; the loop moves and wraps it.
        metric: the key of `evaluate` by which one evaluation is better than another; higher is better.

    A task may have three methods more: `keep(folder)` writes what its weights are of no use without, such as a
    vocabulary, when training begins; `health_batch()` gives the batch whose attention is looked at; `data_digest()`
    (`regard.training.data_digest`) says by which data are told from others, and a run goes on with the same only.
    """

    model: nn.Module
    metric: str

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        """The batches of an epoch, each the numbers of its examples: a pure function of the epoch (and the seed)."""
        ...

    def units(self, indices: Sequence[int]) -> int:
        """How many units (target tokens, images) the loss of these examples is a sum over."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The tensors of these examples, on the CPU."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of losses over the units of this part, a float32 number. Called under autocast."""
        ...

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Metrics on the validation split. The model is in eval mode and no gradient is kept."""
        ...
