"""One entry for each mechanism: how it is made and called. tests/nn/test_laws.py holds all of them to the same laws.

A file `tests/nn/cases_<room>.py` has a list CASES of these; they are collected here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tests.nn


@dataclass(frozen=True)
class Case:
    """A mechanism in small.

    Attributes:
        name: of the test.
        make: a new module, in float32, with its weights drawn from torch's generator.
        inputs: the tensors that its forward takes by position for a batch and a length (or image side), in float32;
            the first one is what the laws look through.
        options: keywords of the call for a batch and a length.
        with_padding: keywords that say how many tokens of each sample are real; None where the card says it takes none.
        causal: made so that a token sees no later one.
        output: the main tensor of what the call gives.
        compiles: torch.compile(fullgraph=True) works; a reason where it does not.
        empty: a length of 0 works; images need at least one pixel.
        lengths: some lengths or sides to try, odd ones too.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    options: Callable[[int, int], dict[str, Any]] = lambda _batch, _length: {}
    with_padding: Callable[[list[int]], dict[str, Any]] | None = None
    causal: bool = False
    output: Callable[[Any], Tensor] = lambda found: found if isinstance(found, Tensor) else found[0]
    compiles: bool = True
    empty: bool = True
    lengths: tuple[int, ...] = (1, 2, 7, 33)
    tolerance: dict[torch.dtype, float] = field(default_factory=lambda: {torch.bfloat16: 5e-2})

    def module(self) -> nn.Module:
        """The module with the same weights every time, in evaluation mode."""
        torch.manual_seed(0)
        return self.make().eval()

    def call(self, module: nn.Module, inputs: tuple[Tensor, ...], **more: Any) -> Tensor:
        batch, length = inputs[0].shape[0], inputs[0].shape[1]
        return self.output(module(*inputs, **{**self.options(batch, length), **more}))


def told(value: object) -> str:
    """A test's name for a value: the same in every process, as the place of a function in memory is not."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {told(each)}" for key, each in value.items()) + "}"
    if callable(value) and not isinstance(value, nn.Module):
        return getattr(value, "__name__", type(value).__name__)
    return str(value)


def tokens(width: int, seed: int = 1) -> Callable[[int, int], tuple[Tensor, ...]]:
    """Unit-normal (batch, length, width)."""

    def draw(batch: int, length: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed)),)

    return draw


def images(channels: int, seed: int = 1) -> Callable[[int, int], tuple[Tensor, ...]]:
    """Unit-normal (batch, channels, side, side + 1): no square, so that height and width cannot be mixed up."""

    def draw(batch: int, side: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, channels, side, side + 1, generator=torch.Generator().manual_seed(seed)),)

    return draw


def collected() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for room in pkgutil.iter_modules(tests.nn.__path__):
        if room.name.startswith("cases_"):
            for case in importlib.import_module(f"tests.nn.{room.name}").CASES:
                assert case.name not in found, case.name
                found[case.name] = case
    return found


CASES = collected()
