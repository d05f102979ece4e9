"""A moving average of weights, which is often better than the last weights themselves.

    average <- decay_t average + (1 - decay_t) weights,   decay_t = min(decay, (1 + t) / (10 + t))

(Polyak & Juditsky 1992; the rising decay lets early averages forget the random start.) Buffers are taken over.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a model's parameters, in float32; `update` after each step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._named = dict(model.named_parameters())
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone(memory_format=torch.contiguous_format)
            for name, parameter in self._named.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step 1, 2, ..."""
        rest = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        for name, parameter in self._named.items():
            self.tensors[name].lerp_(parameter.detach(), rest)
