"""One run of a model, forward and backward, with its points met on the way.

The gradient is that of the sum of all outputs, each element with a sign that its place decides: the same numbers in
every dtype, on every device and with every version of torch, and nothing to be stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.trust.points import Meet, meeting, parts_of

_MIX = 2654435761
"""Knuth's multiplier: its product's middle bits look random."""


@dataclass(frozen=True)
class Inputs:
    """What a model is called with: `model(*args, **named)`."""

    args: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict[str, Any])

    def moved(self, dtype: torch.dtype | None, device: torch.device | str | None) -> Inputs:
        """The same with float tensors in another dtype, and all on another device; None leaves it."""

        def move(entry: Any) -> Any:
            if isinstance(entry, Tensor):
                return entry.to(device=device, dtype=dtype if entry.is_floating_point() else None)
            if isinstance(entry, Mapping):
                return {key: move(part) for key, part in cast("Mapping[Any, Any]", entry).items()}
            if isinstance(entry, (list, tuple)):
                made = cast("Any", type(cast("object", entry)))
                return made(move(part) for part in cast("tuple[Any, ...]", entry))
            return entry

        named = {key: move(entry) for key, entry in self.named.items()}
        return Inputs(tuple(move(entry) for entry in self.args), named)


@dataclass(frozen=True)
class Ran:
    """What came of a run, by name: outputs, gradients of float inputs and of parameters."""

    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]
    parameters: dict[str, Tensor]


def run(model: nn.Module, inputs: Inputs, meet: Meet, *, seed: int, gradients: bool) -> Ran:
    """Run the model in eval mode, with the same random numbers each time. Its modes and gradients stay as they are."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with cast("Any", torch.random).fork_rng(), torch.set_grad_enabled(gradients):
            cast("Any", torch).manual_seed(seed)
            called, leaves = _learning(inputs) if gradients else (inputs, {})
            with meeting(model, meet):
                outputs = float_outputs(model(*called.args, **called.named))
            found = _gradients(leaves | _parameters(model), outputs) if gradients else {}
    finally:
        for module in training:
            module.training = True
    return Ran(
        {name: tensor.detach() for name, tensor in outputs.items()},
        {name: gradient for name, gradient in found.items() if name in leaves},
        {name: gradient for name, gradient in found.items() if name not in leaves},
    )


def float_outputs(output: Any) -> dict[str, Tensor]:
    """The float tensors that a model gives: by name where they have one, else by place."""
    if isinstance(output, Tensor):
        return {"output": output} if output.is_floating_point() else {}
    parts = parts_of(output).items()
    return {str(name): part for name, part in parts if isinstance(part, Tensor) and part.is_floating_point()}


def signs(like: Tensor) -> Tensor:
    """1 or -1 for each element by its place, times a power of two that makes the sum of `like` about its size."""
    place = torch.arange(like.numel(), dtype=torch.int64)
    size = 2.0 ** -math.ceil(math.log2(max(like.numel(), 1)) / 2)
    sign = ((place * _MIX) >> 15 & 1).to(torch.float64) * 2.0 - 1.0
    return (sign * size).reshape(like.shape).to(device=like.device, dtype=like.dtype)


def _learning(inputs: Inputs) -> tuple[Inputs, dict[str, Tensor]]:
    """The inputs with fresh float tensors that want a gradient, and these by the name of their argument."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, entry: Any) -> Any:
        if isinstance(entry, Tensor) and entry.is_floating_point():
            leaves[f"input {name}"] = entry = entry.detach().clone().requires_grad_()
        return entry

    args = tuple(leaf(str(place), entry) for place, entry in enumerate(inputs.args))
    return Inputs(args, {name: leaf(name, entry) for name, entry in inputs.named.items()}), leaves


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _gradients(leaves: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    reached = [output for output in outputs.values() if output.requires_grad]
    if not reached or not leaves:
        return {}
    found = torch.autograd.grad(reached, list(leaves.values()), list(map(signs, reached)), allow_unused=True)
    named = zip(leaves, cast("tuple[Tensor | None, ...]", found), strict=True)
    return {name: tensor for name, tensor in named if tensor is not None}
