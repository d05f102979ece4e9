"""Query, key and value as views of one projection, whose gradients come back without being put together.

The projection is (batch, length, count, heads, head_dim) in memory. Attention on the native core writes the gradients
of such views where the projection's gradient has them (`regard.backends._native_call`); then that gradient is there,
and torch's own way, which copies its parts into a new tensor, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from regard.backends._batched_gradients import is_batched
from regard.backends._direct import PLAIN_TENSORS, has_tangent, is_observed


def heads_apart(projected: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """(batch, length, count * heads * head_dim) as `count` views (batch, heads, length, head_dim)."""
    if count > 1 and _is_plain(projected):
        return _differentiable(projected, count, heads)
    return _parts(projected, count, heads)


def _is_plain(projected: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and projected.requires_grad
        and type(projected) in PLAIN_TENSORS
        and projected.device.type == "cpu"
        and not is_observed()
        and not has_tangent(projected)
    )


def _parts(projected: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    batch, length, width = projected.shape
    parts = projected.view(batch, length, count, heads, width // (count * heads))
    return tuple(part.transpose(1, 2) for part in parts.unbind(2))


class _HeadsApart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
        ctx.shape = projected.shape
        return _parts(projected, count, heads)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grads: tuple[Tensor, ...] = grad_outputs
        whole = None if torch.is_grad_enabled() else _whole(grads)
        if whole is None:
            whole = torch.stack([grad.transpose(1, 2) for grad in grads], 2).reshape(ctx.shape)
        return whole, None, None


def _whole(grads: Sequence[Tensor]) -> Tensor | None:
    """The tensor that these are parts of, as `_parts` makes them; None where they are not."""
    first = grads[0]
    if not all(type(grad) in PLAIN_TENSORS and not is_batched(grad) for grad in grads):
        return None
    batch, heads, length, head_dim = first.shape
    width = heads * head_dim
    row = len(grads) * width
    strides, memory = (length * row, head_dim, row, 1), first.untyped_storage().data_ptr()
    for place, grad in enumerate(grads):
        if (
            grad.shape != first.shape
            or grad.stride() != strides
            or grad.dtype != first.dtype
            or grad.storage_offset() != first.storage_offset() + place * width
            or grad.untyped_storage().data_ptr() != memory
        ):
            return None
    return first.as_strided((batch, length, row), (length * row, row, 1))


# torch leaves `apply` without a type.
_differentiable = cast("Callable[[Tensor, int, int], tuple[Tensor, ...]]", _HeadsApart.apply)  # pyright: ignore[reportUnknownMemberType]
