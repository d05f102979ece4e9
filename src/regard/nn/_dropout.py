"""Dropout of activations, as `torch.nn.Dropout`, without waiting for random numbers.

On the CPU torch draws one number of 64 bits for each activation, one after another on one core: a quarter of the time
of a training step of a small Transformer. Here one draw decides four activations, by 16 bits each:

    output = input * keep / (1 - dropout_p),    keep: 16 random bits >= round(65536 dropout_p)

so the rate is honoured to 1/131072. Numbers come from torch's default generator, hence a seed and a checkpoint's
recomputation do what they do with torch's. Where torch must see the operator (torch.compile, vmap, tracing, other
devices), it is torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.backends._batched_gradients import is_batched
from regard.backends._direct import PLAIN_TENSORS, has_tangent, is_observed

_LEVELS = 1 << 16
_LOWEST = -(1 << 63)


def dropout(x: Tensor, dropout_p: float, training: bool) -> Tensor:  # noqa: FBT001 - torch's own order
    """`torch.nn.functional.dropout(x, dropout_p, training)`: x (...), the same shape and dtype.

    Raises:
        ValueError: of torch, for a dropout_p that is no probability.
    """
    if not (training and 0.0 < dropout_p < 1.0 and _is_ours(x)):
        return functional.dropout(x, dropout_p, training)
    least = min(max(round(dropout_p * _LEVELS), 1), _LEVELS - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(_LOWEST, None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits >= least - _LEVELS // 2).to(x.dtype).mul_(1.0 / (1.0 - dropout_p))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, computed by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """(...) to the same shape."""
        if self.inplace:
            return super().forward(input)
        return dropout(input, self.p, self.training)


def _is_ours(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(x) in PLAIN_TENSORS
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.is_floating_point()
        and not is_batched(x)
        and not is_observed()
        and not has_tangent(x)
    )
