"""Several gradients of one output at a time, as torch.autograd.grad(..., is_grads_batched=True) and
torch.autograd.functional.jacobian(vectorize=True) ask for them: torch stacks them in a dimension that is out of sight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

_hidden: Any = torch  # whose functions for this dimension have no public names


def is_batched(tensor: Tensor | None) -> bool:
    """Has the tensor such a dimension?"""
    return tensor is not None and is_legacy_batchedtensor(tensor)


def one_after_the_other(
    gradients: Callable[..., Sequence[Tensor | None]], *stacked: Tensor | None
) -> list[Tensor | None]:
    """gradients(*stacked) for each place of that dimension, stacked again."""
    level = _hidden._C._vmapmode_increment_nesting() - 1  # noqa: SLF001
    _hidden._C._vmapmode_decrement_nesting()  # noqa: SLF001
    stacks = [None if each is None else _hidden._remove_batch_dim(each, level, 1, 0) for each in stacked]  # noqa: SLF001
    count = max(len(stack) for stack in stacks if stack is not None)
    found = [
        gradients(*(None if stack is None else stack[min(place, len(stack) - 1)] for stack in stacks))
        for place in range(count)
    ]
    return [_stacked(parts, level) for parts in zip(*found, strict=True)]


def _stacked(parts: tuple[Tensor | None, ...], level: int) -> Tensor | None:
    some = [part for part in parts if part is not None]
    return _hidden._add_batch_dim(torch.stack(some), 0, level) if some else None  # noqa: SLF001
