"""A model against true values: piece by piece, where the truth takes the place of each output, or from end to end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.trust.passport.contents import Kind
from regard.trust.passport.runs import Inputs, Ran, run
from regard.trust.passport.units import Side, gap
from regard.trust.passport.visits import Comparing, Keeping

Key = tuple[Kind, str, Side]
"""What is compared: a layer, an output, a float input or a parameter, by name; itself or its gradient."""


@dataclass(frozen=True)
class Runner:
    """How a model is run. `around` makes what is open meanwhile."""

    model: nn.Module
    inputs: Inputs
    seed: int
    gradients: bool
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Kept:
    """Values that are wanted: of layers whole, of all else each `every[key]`-th number, in one row."""

    values: Mapping[Key, Tensor]
    every: Mapping[Key, int]
    shapes: Mapping[Key, tuple[int, ...]]

    def of_layers(self, side: Side) -> dict[str, Tensor]:
        """By name of the point."""
        return {name: value for (kind, name, of), value in self.values.items() if kind == "layer" and of == side}


@dataclass(frozen=True)
class Pieces:
    """The errors of a run piece by piece, and the shapes of what was met; what did not run has none."""

    errors: dict[Key, float]
    shapes: dict[Key, tuple[int, ...]]


class StoppedError(Exception):
    """The model raised; `met` are the points that had ended."""

    def __init__(self, met: frozenset[str], problem: Exception) -> None:
        self.met = met
        super().__init__(f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}")


def piecewise(runner: Runner, truth: Kept, noise: torch.Generator | None = None) -> Pieces:
    """Run with the truth in the place of each output, and say how far each was from it.

    Raises:
        StoppedError: the model raised.
    """
    visit = Comparing(truth.of_layers("forward"), truth.of_layers("gradient"), noise)
    try:
        with runner.around():
            ran = run(runner.model, runner.inputs, visit.meet, seed=runner.seed, gradients=runner.gradients)
    except Exception as problem:
        raise StoppedError(frozenset(visit.shapes), problem) from problem
    errors: dict[Key, float] = {}
    shapes: dict[Key, tuple[int, ...]] = {("layer", name, "forward"): shape for name, shape in visit.shapes.items()}
    for side, found in visit.errors.items():
        errors |= {("layer", name, side): error for name, error in found.items()}
    for key, tensor in others(ran).items():
        if key in truth.values:
            shapes[key] = tuple(tensor.shape)
            same = shapes[key] == truth.shapes[key]
            errors[key] = gap(thinned(tensor, truth.every[key]), truth.values[key]) if same else float("inf")
    return Pieces(errors, shapes)


def through(runner: Runner, points: Collection[str]) -> dict[Key, Tensor]:
    """Run as it is, and keep what the points, the outputs and the gradients are, whole, on the CPU."""
    visit = Keeping(points)
    with runner.around():
        ran = run(runner.model, runner.inputs, visit.meet, seed=runner.seed, gradients=runner.gradients)
    found: dict[Key, Tensor] = {("layer", name, "forward"): value for name, value in visit.values.items()}
    found.update({("layer", name, "gradient"): value for name, value in visit.gradients.items()})
    found.update(others(ran))
    return {key: value.detach().cpu() for key, value in found.items()}


def others(ran: Ran) -> dict[Key, Tensor]:
    """What came out of a run beside its points."""
    found: dict[Key, Tensor] = {("output", name, "forward"): tensor for name, tensor in ran.outputs.items()}
    found.update({("input", name, "gradient"): tensor for name, tensor in ran.inputs.items()})
    found.update({("parameter", name, "gradient"): _dense(tensor) for name, tensor in ran.parameters.items()})
    return found


def thinned(tensor: Tensor, every: int) -> Tensor:
    """Each `every`-th number, in one row."""
    return tensor.detach().reshape(-1)[::every]


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()
