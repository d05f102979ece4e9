"""Sums over a text are kept in float32 at least, whatever the tokens are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Sums over a text are kept in float32 at least."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def in_full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """No autocast in here: it would take products of float32 back to half precision."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
