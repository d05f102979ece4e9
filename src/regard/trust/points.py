"""The points of a model: the first float tensor of what each module gives, seen in passing and, if wanted, replaced.

A model whose every point is replaced by the true value is examined piece by piece: an error in one module reaches no
other, forward or backward. So the piece that differs is told from those behind it, and rounding does not add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

Meet = Callable[[str, Tensor], Tensor]
"""Told of a point's name and tensor, in the order in which modules end; what it gives goes on in its place."""
Listen = Callable[[Tensor], Tensor]
"""Told of the gradient of a point; what it gives goes on in its place."""


@contextmanager
def meeting(model: nn.Module, meet: Meet) -> Generator[None]:
    """While open, `meet` is told of every point of the model, which may run once.

    A module that runs again has its number behind its name, as in `regard.observe`. The model itself is no point, and
    neither is a module that hands on what it was given.
    """
    times: dict[str, int] = {}

    def listener(name: str) -> Callable[..., Any]:
        def leave(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            times[name] = times.get(name, 0) + 1
            found = first_tensor(output)
            if found is None or _is_handed_on(found.tensor, (*args, *named.values())):
                return None
            shown = name if times[name] == 1 else f"{name} (call {times[name]})"
            replaced = meet(shown, found.tensor)
            return None if replaced is found.tensor else found.put(replaced)

        return leave

    with ExitStack() as stack:
        for name, module in cast("Any", model.named_modules()):
            if name:
                handle = module.register_forward_hook(listener(name), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def passing(given: Tensor, value: Tensor | None, listen: Listen) -> Tensor:
    """A copy of `given`, or of `value` in its place; backward, the gradient goes through `listen`."""
    if not given.requires_grad:
        return (given if value is None else value).clone()
    return cast("Any", _Passing).apply(given, value, listen)


class _Passing(torch.autograd.Function):
    """A copy, so that what a module gave stays as it was when the next one writes into it."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, value: Tensor | None, listen: Listen) -> Tensor:
        ctx.listen = listen
        return (given if value is None else value).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.listen(gradients[0]), None, None


class First(NamedTuple):
    """The first float tensor of an output, and how to make the same output with another in its place."""

    tensor: Tensor
    put: Callable[[Tensor], Any]


def first_tensor(output: Any) -> First | None:
    """Of a tensor, a sequence, a mapping, a dataclass or a namespace; None where there is none."""
    if isinstance(output, Tensor):
        return First(output, _itself) if output.is_floating_point() else None
    for key, entry in parts_of(output).items():
        if isinstance(entry, Tensor) and entry.is_floating_point():
            return First(entry, partial(_with, output, key))
    return None


def parts_of(output: Any) -> dict[Any, Any]:
    """What an output is made of, by key, index or name of the field."""
    if isinstance(output, Mapping):
        return dict(cast("Mapping[Any, Any]", output))
    if isinstance(output, (tuple, list)):
        return dict(enumerate(cast("tuple[Any, ...]", output)))
    if isinstance(output, SimpleNamespace):
        return vars(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {}


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _with(output: Any, key: Any, tensor: Tensor) -> Any:
    if isinstance(output, Mapping):
        cast("Any", output)[key] = tensor  # it is new, and its class may be one that only itself can make
        return cast("Any", output)
    if isinstance(output, (tuple, list)):
        parts = [tensor if place == key else part for place, part in enumerate(cast("tuple[Any, ...]", output))]
        made = cast("Any", type(cast("object", output)))
        return made(*parts) if hasattr(made, "_fields") else made(parts)
    if isinstance(output, SimpleNamespace):
        return SimpleNamespace(**{**vars(output), key: tensor})
    return dataclasses.replace(output, **{key: tensor})


def _is_handed_on(tensor: Tensor, given: tuple[Any, ...]) -> bool:
    """Dropout in eval mode, Identity: nothing was computed."""
    return any(
        isinstance(entry, Tensor)
        and entry.data_ptr() == tensor.data_ptr()
        and (entry.shape, entry.stride(), entry.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        for entry in given
    )
