"""Are these numbers finite? Asked of every problem, because fused kernels lose or leak what is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def all_finite(*tensors: Tensor) -> bool | None:
    """Whether these hold only finite numbers; None where values cannot be read (torch.compile, vmap, meta)."""
    if torch.compiler.is_compiling():
        return None
    try:
        return all(_is_finite(tensor.detach()) for tensor in tensors)
    except RuntimeError:
        return None


def finite_part(tensor: Tensor) -> Tensor:
    """The tensor with 0 in place of NaN and Inf."""
    return torch.where(tensor.isfinite(), tensor, 0.0)


def _is_finite(tensor: Tensor) -> bool:
    # One sum reads each element once and keeps every NaN and Inf; a sum that overflows is looked at again.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())
