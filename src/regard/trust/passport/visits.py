"""What is done at the points of a model while it runs: list them, keep them, or compare and replace them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from regard.trust.passport.units import Side, gap
from regard.trust.points import passing


class Survey:
    """Which points there are, in the order in which they end, with shape and dtype."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def meet(self, name: str, tensor: Tensor) -> Tensor:
        """Note a point."""
        self.found[name] = tuple(tensor.shape), tensor.dtype
        return tensor


class Keeping:
    """What the wanted points give, and their gradients, as they are."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = wanted
        self.values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}

    def meet(self, name: str, tensor: Tensor) -> Tensor:
        """Keep a point."""
        if name not in self._wanted:
            return tensor
        self.values[name] = tensor.detach()
        return passing(tensor, None, partial(self._listen, name))

    def _listen(self, name: str, gradient: Tensor) -> Tensor:
        self.gradients[name] = gradient.detach()
        return gradient


class Comparing:
    """The largest error of each point against the true values, which take its place; the same backward.

    With `noise`, what takes its place is first moved by up to one rounding step of its dtype.
    """

    def __init__(
        self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], noise: torch.Generator | None = None
    ) -> None:
        self._true: Mapping[Side, Mapping[str, Tensor]] = {"forward": values, "gradient": gradients}
        self._noise = noise
        self.errors: dict[Side, dict[str, float]] = {"forward": {}, "gradient": {}}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def meet(self, name: str, tensor: Tensor) -> Tensor:
        """Compare a point, and put the truth in its place."""
        if name not in self._true["forward"]:
            return tensor
        self.shapes[name] = tuple(tensor.shape)
        return passing(tensor, self._judged("forward", name, tensor), partial(self._judged, "gradient", name))

    def _judged(self, side: Side, name: str, tensor: Tensor) -> Tensor:
        expected = self._true[side].get(name)
        if expected is None:
            return tensor
        self.errors[side][name] = gap(tensor, expected)
        if tensor.shape != expected.shape:
            return tensor
        return moved(expected, tensor.dtype, self._noise).to(tensor.device)


def moved(expected: Tensor, dtype: torch.dtype, noise: torch.Generator | None) -> Tensor:
    """The true numbers in a dtype, each moved by up to one rounding step when there is noise."""
    if noise is None:
        return expected.to(dtype)
    step = torch.rand(expected.shape, generator=noise, dtype=torch.float64) * 2.0 - 1.0
    return (expected * (1.0 + torch.finfo(dtype).eps * step)).to(dtype)
