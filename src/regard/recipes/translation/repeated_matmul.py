"""A product with the same matrix at every step of a recurrence, whose gradient is made once, after the last of them.

Autograd makes the gradient of a shared matrix anew at each step, as large as the matrix, and adds it up: for a decoder
that looks at its source 40 times that is most of the time. All steps together it is one product,

    d matrix = sum_t x_t^T dy_t = [x_1; x_2; ...]^T [dy_1; dy_2; ...].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

_Pairs = list[tuple[Tensor, Tensor]]


class RepeatedMatmul:
    """`x @ matrix` for one x after another, computed in the dtype of the matrix.

    Args:
        matrix: (..., size, width). Every backward pass through a product has to go on to it, as `backward()` does.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._pairs: _Pairs = []
        self._matrix = _applied(_Gathered, matrix, self._pairs)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., rows, width) of x (..., rows, size)."""
        return _applied(_Product, x.to(self._matrix.dtype), self._matrix, self._pairs)


class _Gathered(torch.autograd.Function):
    """The matrix itself; autograd comes back here when it has been at every product."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, pairs: _Pairs) -> Tensor:
        ctx.pairs = pairs
        return matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        x, of_y = (torch.cat(each, -2) for each in zip(*ctx.pairs, strict=True))
        ctx.pairs.clear()
        return x.mT @ of_y, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, pairs: _Pairs) -> Tensor:
        ctx.save_for_backward(x, matrix)
        ctx.pairs = pairs
        return x @ matrix

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, matrix = ctx.saved_tensors
        (of_y,) = gradients
        ctx.pairs.append((x, of_y))
        return of_y @ matrix.mT, None, None


def _applied(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return cast("Callable[..., Tensor]", cast("Any", function).apply)(*arguments)
