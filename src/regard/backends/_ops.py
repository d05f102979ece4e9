"""`regard::attention` and `regard::attention_backward`: the native core as operators of torch.

Registered by `define` and `impl`, with fakes and autograd, so that torch.compile sees two opaque operators
with known shapes. Backward of backward is refused by name. A plain call, with nothing that traces or transforms it,
does not go through them but through `_direct.py`: the way through the dispatcher costs more than a small problem.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import library as operator_library

from regard._errors import UnsupportedError
from regard.backends._native_call import DIFFERENTIABLE, backward, forward, like_rows, new_output
from regard.backends._native_struct import Inputs

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, float scale, float? softcap, "
    "SymInt? before, SymInt? after, SymInt offset, Tensor? intervals, Tensor? tile_first, Tensor? tile_keys, "
    "Tensor? tile_word, Tensor? words, int tile_batches, int tile_heads, Tensor? dense, Tensor? bias, "
    "SymInt distance_offset, Tensor? distance_bias, Tensor? distance_query, Tensor? distance_keys, "
    "Tensor? distance_values, Tensor? sink, Tensor? seed, float dropout_p"
)
_PLACES = tuple(Inputs._fields.index(name) for name in DIFFERENTIABLE)

_library: Any = operator_library  # whose functions have types for some of their arguments only
_library.define("regard::attention", f"({_INPUTS}) -> (Tensor output, Tensor lse, Tensor lse_low)")
_library.define(
    "regard::attention_backward",
    f"(Tensor grad_output, Tensor? grad_lse, Tensor output, Tensor lse, Tensor lse_low, bool[] wanted, {_INPUTS})"
    " -> Tensor[]",
)


@_library.impl("regard::attention", "CPU")
def _attention(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    output, lse, low = forward(Inputs(*arguments))
    if lse is None or low is None:
        raise AssertionError("forward gives the lse unless told not to")
    return output, lse, low


@_library.impl("regard::attention_backward", "CPU")
def _attention_backward(  # noqa: PLR0917 - the operator's signature
    grad_output: Tensor,
    grad_lse: Tensor | None,
    output: Tensor,
    lse: Tensor,
    lse_low: Tensor,
    wanted: list[bool],
    *arguments: Any,
) -> list[Tensor]:
    gradients = backward(Inputs(*arguments), grad_output, grad_lse, (output, lse, lse_low), tuple(wanted))
    return [gradient for gradient in gradients if gradient is not None]


@_library.register_fake("regard::attention")
def _attention_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(*arguments)
    rows = inputs.query.shape[:3]
    lse = inputs.query.new_empty(rows, dtype=inputs.working)
    return new_output(inputs.query, inputs.value), lse, torch.empty_like(lse)


@_library.register_fake("regard::attention_backward")
def _attention_backward_fake(*given: Any) -> list[Tensor]:
    *_, wanted = given[:6]
    inputs = Inputs(*given[6:])
    asked = [name for name, want in zip(DIFFERENTIABLE, wanted, strict=True) if want]
    return [
        like_rows(tensor) if name in ("query", "key", "value") else tensor.new_empty(tensor.shape)
        for name in asked
        if isinstance(tensor := getattr(inputs, name), Tensor)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.places = [place for place, value in enumerate(inputs) if isinstance(value, Tensor)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*output, *tensors)


def _differentiate(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    output, lse, lse_low, *tensors = ctx.saved_tensors
    arguments = list(ctx.others)
    for place, tensor in zip(ctx.places, tensors, strict=True):
        arguments[place] = tensor
    wanted = [arguments[place] is not None and ctx.needs_input_grad[place] for place in _PLACES]
    found: list[Tensor | None] = [None] * len(arguments)
    if grad_output is None and grad_lse is None:
        return tuple(found)
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    gradients = torch.ops.regard.attention_backward(grad_output, grad_lse, output, lse, lse_low, wanted, *arguments)
    given = iter(gradients)
    for place, want in zip(_PLACES, wanted, strict=True):
        found[place] = next(given) if want else None
    return tuple(found)


def _refuse_twice(*_: Any) -> None:
    raise UnsupportedError(
        {"native": "it has no second derivative"}, do="Take backend='eager' where gradients are differentiated again."
    )


_library.register_autograd("regard::attention", _differentiate, setup_context=_save)
_library.register_autograd("regard::attention_backward", _refuse_twice)


def attention(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: output, lse, and what rounding took from the lse."""
    return torch.ops.regard.attention(*inputs)
