"""One side of a comparison of modules: what is called with what, how it is run, and how far it is from float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems import SEED, Direction

Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """How large the problems are. The tests take small ones."""

    length: int = 4096
    causal_length: int = 1024
    width: int = 512
    heads: int = 8
    window: int = 256
    slots: int = 256
    block: int = 64
    channels: int = 256
    side: int = 56
    images: int = 8
    grid: int = 64
    scan_length: int = 512
    scan_length_trained: int = 128

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads


def output_of(found: Any) -> Tensor:
    """The tensor of a call that gives more than one."""
    return found if isinstance(found, Tensor) else found[0]


def plainly(module: nn.Module, *inputs: Tensor) -> Any:
    """The way most modules are called."""
    return module(*inputs)


def unchanged(tensor: Tensor) -> Tensor:
    """The layout that is compared is the module's own."""
    return tensor


@dataclass(frozen=True)
class Side:
    """A module with its inputs.

    `call` is how it is called; `compared` brings its tensors into the layout of the other side's, and back.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    call: Callable[..., Any] = plainly
    compared: Callable[[Tensor], Tensor] = unchanged

    def run(self, direction: Direction) -> Callable[[], Results]:
        """One whole run: the output; with backward also the gradients of inputs and weights, in this order."""
        trains = direction == "forward+backward"
        self.module.train(trains)
        return self._trained() if trains else self._inferred

    def _inferred(self) -> Results:
        with torch.no_grad():
            return (output_of(self.call(self.module, *self.inputs)),)

    def _trained(self) -> Callable[[], Results]:
        inputs = tuple(each.detach().requires_grad_() for each in self.inputs)
        wanted = [*inputs, *(weight for weight in self.module.parameters() if weight.requires_grad)]
        directions: list[Tensor] = []

        def both() -> Results:
            output = output_of(self.call(self.module, *inputs))
            if not directions:
                common = normal(*self.compared(output).shape, seed=SEED + 1).to(output.dtype)
                directions.append(self.compared(common).contiguous())
            return (output, *torch.autograd.grad(output, wanted, directions[0], allow_unused=True))

        return both

    def shown(self, results: Results) -> Results:
        """What is compared of the results: the output and the gradients of the inputs, in the common layout."""
        return tuple(self.compared(each.detach()) for each in results[: 1 + len(self.inputs)])

    def in_float64(self) -> Side:
        """The same module with the same weights in double precision."""
        module = copy.deepcopy(self.module).double()
        return replace(self, module=module, inputs=tuple(each.double() for each in self.inputs))


def normal(*shape: int, seed: int = SEED, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of |found - exact| / |exact| in the Frobenius norm; infinite where numbers are not finite."""
    return max(_error(got.double(), expected.double()) for got, expected in zip(found, exact, strict=True))


def _error(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    wrong, whole = float((got - expected).square().sum()), float(expected.square().sum())
    return math.sqrt(wrong / max(whole, 1e-60))
