"""Models that are compared have equally many parameters: what one mechanism has more, its feed-forward has less."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from regard._errors import ArgumentError

Model = TypeVar("Model", bound=nn.Module)


def parameters_of(model: nn.Module) -> int:
    """How many numbers are learned; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextmanager
def drawn_from(seed: int) -> Generator[None]:
    """Inside, torch's numbers come from this seed; outside, nothing has been drawn."""
    kept = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept)


def fitted(build: Callable[[int], Model], *, like: Callable[[], nn.Module], near: int) -> Model:
    """`build(hidden)` with the hidden width whose parameters are closest to those of `like()`.

    Parameters must grow linearly with the width, as those of feed-forward networks do. `near` is where the search
    begins. Weights are those that torch's generator gives to the last build alone: models that are only counted leave
    it as it was.

    Raises:
        ArgumentError: no width of at least 1 is small enough.
    """
    with drawn_from(0):
        budget = parameters_of(like())
        here, next_one = parameters_of(build(near)), parameters_of(build(near + 1))
    hidden = near + round((budget - here) / (next_one - here))
    if hidden < 1:
        raise ArgumentError(
            "parameters",
            expected=f"a mechanism that fits into {budget}",
            got=f"{here - near * (next_one - here)} without any feed-forward network",
            do="Make it smaller (fewer slots, narrower), or give all variants more width.",
        )
    return build(hidden)
