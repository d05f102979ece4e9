"""Linear maps, y = x W^T + b: on the native core where it is faster, and torch's everywhere else.

`linear` is torch's `functional.linear` and `LinearMap` its `nn.Linear`, in what they take, give and refuse. The core
(`csrc/matrix_product.inl`) computes float32 on CPU, forward and both products of backward; its error against float64 is
that of torch or less, since it adds the steps of a sum by chunks. Everything that torch must see goes to torch:
other dtypes and devices, tensor subclasses, autocast, vmap, forward mode, tracing, `torch.compile` (whose graphs keep
their linear operator, so that it can be planned and exported), and second derivatives.

Cost: tokens * inputs * outputs multiplications, three times that with backward; memory is the result's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.backends import _library as abi
from regard.backends._batched_gradients import is_batched
from regard.backends._direct import PLAIN_TENSORS, has_tangent, is_observed
from regard.backends._native_struct import address, checked, in_memory

_LEAST_WORK = 1 << 26
"""Multiplications. Below, one sees what the call itself costs, 15 microseconds more than torch's: with 1 and 2 cores of
an AMD EPYC (Zen 4) and torch 2.13.0 it took 0.9 to 1.1 of torch's time at half as many, and less than 1 at twice."""

_LEAST_TOKENS = 8
"""Below, reading the weight is the work, and laying it out anew costs more than it saves: with one token and one core
1.7 of torch's time."""

_LEAST_INPUTS, _LEAST_OUTPUTS = 256, 128
"""Below, there is little to do with a number once it is here, or the weight's gradient is too small a matrix to share
out, however many tokens it is summed over: from width 64 to 64 it took 1.7 of torch's time."""

_torch_backends: Any = torch.backends  # whose modules have no types for what they compute with


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`.

    Args:
        x: (..., inputs), of any strides.
        weight: (outputs, inputs).
        bias: (outputs,), or None.

    Returns:
        (..., outputs), contiguous.

    Raises:
        RuntimeError: of torch, for shapes and dtypes that do not fit.
    """
    if not _is_ours(x, weight, bias):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _differentiable(x, weight, bias)
    return _mapped(x, weight, bias)


class LinearMap(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """(..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)


def _is_ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Does the core compute this, faster than torch, and with nobody looking on?"""
    return (
        not torch.compiler.is_compiling()  # asked first, or a graph is made for one length only
        and _is_worth_it(x, weight)
        and _fits(x, weight, bias)
        and not is_observed()
        and not torch.is_autocast_enabled("cpu")
        and _torch_backends.mkldnn.matmul.fp32_precision != "bf16"  # then torch is asked to round the factors
        and not has_tangent(x, weight, bias)
        and abi.why_absent() is None
    )


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    if not (_is_plain(x) and _is_plain(weight) and x.dim() > 1 and weight.dim() == 2):
        return False
    outputs, inputs = weight.shape
    work = x.numel() * outputs
    return (
        work >= _LEAST_WORK
        and work >= _LEAST_TOKENS * inputs * outputs
        and inputs >= _LEAST_INPUTS
        and outputs >= _LEAST_OUTPUTS
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.shape[-1] == weight.shape[1]
        and 1 in weight.stride()
        and (bias is None or (_is_plain(bias) and bias.shape == weight.shape[:1] and bias.stride() == (1,)))
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in PLAIN_TENSORS
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output = x.new_empty((*x.shape[:-1], weight.shape[0]))
    _multiply(_rows(x), in_memory(weight).t(), output.view(-1, weight.shape[0]), bias)
    return output


def _rows(tensor: Tensor) -> Tensor:
    """(tokens, width): a view wherever one stride leads from token to token."""
    return in_memory(tensor).reshape(-1, tensor.shape[-1])


def _multiply(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None = None) -> None:
    """C = A B, and the bias added to each row."""
    if 1 not in b.stride():
        b = b.contiguous()
    bias = None if bias is None else in_memory(bias)
    product = abi.Product(
        abi.F32, torch.get_num_threads(), *c.shape, a.shape[1], a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(),
        address(bias), c.data_ptr(), c.stride(0),
    )  # fmt: skip
    checked(abi.loaded_core().regard_multiply(ctypes.byref(product)))


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.shape = x.shape
        return _mapped(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad = grad_outputs[0]
        rows = _rows(grad)
        given = (grad, *(tensor for tensor in (x, weight) if tensor is not None))
        by_torch = torch.is_grad_enabled() or is_observed() or is_batched(grad) or not all(map(_is_plain, given))
        multiplied = torch.mm if by_torch else _product
        grad_x = multiplied(rows, weight).view(ctx.shape) if of_x else None
        grad_weight = multiplied(rows.t(), _rows(x)) if of_weight else None
        return grad_x, grad_weight, rows.sum(0) if of_bias else None


def _product(a: Tensor, b: Tensor) -> Tensor:
    c = a.new_empty(a.shape[0], b.shape[1])
    _multiply(a, b, c)
    return c


# torch leaves `apply` without a type.
_differentiable = cast("Callable[[Tensor, Tensor, Tensor | None], Tensor]", _LinearMap.apply)  # pyright: ignore[reportUnknownMemberType]
