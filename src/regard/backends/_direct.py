"""The short way to the native core, for calls that nothing traces or transforms.

torch's dispatcher and its generic autograd wrapper cost a few hundred microseconds for an operator with this many
arguments; a short text is attended to in less. What must be seen by torch (torch.compile, torch.func, modes,
tensor subclasses) takes the operators in `_ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage] - no public question
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from regard._errors import UnsupportedError
from regard.backends._batched_gradients import is_batched, one_after_the_other
from regard.backends._native_call import DIFFERENTIABLE, backward, forward
from regard.backends._native_struct import Inputs, with_packed_mask

PLAIN_TENSORS = frozenset({Tensor, torch.nn.Parameter})
_PLAIN = PLAIN_TENSORS | {int, float, bool, type(None)}
_Found = tuple[Tensor, Tensor | None]


def attend(inputs: Inputs, *, with_lse: bool) -> _Found:
    """Output, and the lse when asked for; by the short way when the call is plain."""
    if not _is_plain(inputs):
        from regard.backends import _ops  # registers the operators on first use

        output, lse, _ = _ops.attention(inputs)
        return output, lse if with_lse else None
    if torch.is_grad_enabled():
        learned = [getattr(inputs, name) for name in DIFFERENTIABLE]
        if any(tensor is not None and tensor.requires_grad for tensor in learned):
            output, lse = _differentiable(inputs, *learned)
            return output, lse if with_lse else None
    output, lse, _ = forward(inputs, with_lse=with_lse)
    return output, lse


def is_observed() -> bool:
    """Does something trace or transform the calls of torch?"""
    return (
        torch.compiler.is_compiling() or is_transformed() or _len_torch_dispatch_stack() > 0 or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - documented all the same
    )


def is_transformed() -> bool:
    """Is a transform of torch.func (vmap, grad, jvp) at work?"""
    return maybe_current_level() is not None


def is_transformed_twice() -> bool:
    """Is one transform of torch.func at work within another, as in a second derivative?"""
    return (maybe_current_level() or 0) > 1


def has_tangent(*tensors: Tensor | None) -> bool:
    """Does forward-mode differentiation follow one of these?"""
    if forward_ad._current_level < 0:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        return False
    unpack = cast("Callable[[Tensor], Any]", forward_ad.unpack_dual)  # pyright: ignore[reportUnknownMemberType]
    return any(tensor is not None and unpack(tensor).tangent is not None for tensor in tensors)


def _is_plain(inputs: Inputs) -> bool:
    return set(map(type, inputs)) <= _PLAIN and not is_observed()


def _settled(inputs: Inputs) -> Inputs:
    """With a mask and a seed of our own: backward must not see what becomes of the caller's."""
    if inputs.seed is not None:
        inputs = inputs._replace(seed=inputs.seed.clone())
    return with_packed_mask(inputs)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Inputs, *learned: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = _settled(inputs)
        output, lse, low = forward(inputs)
        if lse is None or low is None:
            raise AssertionError("forward gives the lse unless told not to")
        ctx.inputs = inputs._replace(**dict.fromkeys(DIFFERENTIABLE))
        ctx.save_for_backward(output, lse, low, *learned)
        ctx.set_materialize_grads(False)
        return output, lse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        grad_output, grad_lse = grad_outputs
        output, lse, low, *learned = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        inputs = ctx.inputs._replace(**dict(zip(DIFFERENTIABLE, learned, strict=True)))
        wanted = ctx.needs_input_grad[1:]
        if is_batched(grad_output) or is_batched(grad_lse):
            each = partial(backward, inputs, results=(output, lse, low), wanted=wanted)
            return (None, *one_after_the_other(each, grad_output, grad_lse))
        if torch.is_grad_enabled():  # with create_graph=True
            return (None, *_gradients(inputs, wanted, low, grad_output, grad_lse, output, lse, *learned))
        return (None, *backward(inputs, grad_output, grad_lse, (output, lse, low), wanted))


class _Gradients(torch.autograd.Function):
    """Backward as a step of a graph that cannot be differentiated again, and says so."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes what it differentiates by position
        ctx: FunctionCtx,  # noqa: ARG004 - torch's signature
        inputs: Inputs,
        wanted: tuple[bool, ...],
        low: Tensor,
        grad_output: Tensor,
        grad_lse: Tensor | None,
        output: Tensor,
        lse: Tensor,
        *learned: Tensor | None,  # noqa: ARG004 - what the gradients depend on, for autograd to see
    ) -> tuple[Tensor | None, ...]:
        return tuple(backward(inputs, grad_output, grad_lse, (output, lse, low), wanted))

    @staticmethod
    def backward(ctx: FunctionCtx, *_: Any) -> Any:  # noqa: ARG004 - torch's signature
        raise UnsupportedError(
            {"native": "it has no second derivative"},
            do="Take backend='eager' where gradients are differentiated again.",
        )


# torch leaves `apply` without a type.
_differentiable = cast("Callable[..., tuple[Tensor, Tensor]]", _Attention.apply)  # pyright: ignore[reportUnknownMemberType]
_gradients = cast("Callable[..., tuple[Tensor | None, ...]]", _Gradients.apply)  # pyright: ignore[reportUnknownMemberType]
