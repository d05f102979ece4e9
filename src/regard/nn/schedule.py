"""Dropout that begins high and falls as training goes on. The guide's 3.3: 0.3 early against overfitting, then 0.1.

    linear    rate(t) = start + (end - start) t / steps
    cosine    rate(t) = end + (start - end) (1 + cos(pi t / steps)) / 2

for t = 0 .. steps, and `end` after that. (Others have found the opposite order useful against underfitting: Liu et al.
2023, "Dropout Reduces Underfitting", https://arxiv.org/abs/2303.01500, drops only early. start < end is allowed.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from torch import nn

from regard._errors import ArgumentError
from regard.nn._arguments import require_positive, require_probability

Shape = Literal["linear", "cosine"]
_OF_TORCH = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class DropoutSchedule:
    """Sets the dropout rate of every module of a model; made once, then `step()` after each step or epoch.

    It sets `dropout_p` of the modules of regard.nn, `p` of torch's dropout modules, and `dropout` of
    nn.MultiheadAttention; at once to `start`. What has rate 0 follows too: leave it out with `only`.
    A compiled model is compiled again for each new rate: there, step once an epoch.

    Args:
        model: whose modules follow, as they are when this is made.
        start, end: rates at step 0, and from step `steps` on.
        steps: how many calls of `step()` lead from one to the other.
        shape: "linear" or "cosine".
        only: says of a module, by its name in the model and itself, whether it follows; all do unless given.

    Raises:
        ArgumentError: a rate that is no probability, steps < 1, an unknown shape, or a model without dropout.
    """

    def __init__(
        self,
        model: nn.Module,
        start: float = 0.3,
        end: float = 0.1,
        *,
        steps: int,
        shape: Shape = "linear",
        only: Callable[[str, nn.Module], bool] | None = None,
    ) -> None:
        require_probability(start=start, end=end)
        require_positive(steps=steps)
        if shape not in {"linear", "cosine"}:
            raise ArgumentError("shape", expected="'linear' or 'cosine'", got=repr(shape), do="Name one of these.")
        self.start, self.end, self.steps, self.shape = start, end, steps, shape
        self.count = 0
        self._followers: list[tuple[nn.Module, str]] = []
        named: dict[str, nn.Module] = dict(cast("Any", model).named_modules())
        for name, module in named.items():
            rate = _rate_name(module)
            if rate is not None and (only is None or only(name, module)):
                self._followers.append((module, rate))
        if not self._followers:
            raise ArgumentError(
                "model",
                expected="a model with dropout",
                got=f"{type(model).__name__}, in which nothing follows",
                do="Modules of regard.nn with dropout_p, torch's dropout modules and nn.MultiheadAttention follow.",
            )
        self._apply()

    @property
    def rate(self) -> float:
        """The rate that is set now."""
        done = min(self.count / self.steps, 1.0)
        if self.shape == "linear":
            return self.start + (self.end - self.start) * done
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0

    def step(self) -> float:
        """One step further; returns the new rate."""
        self.count += 1
        self._apply()
        return self.rate

    def state_dict(self) -> dict[str, int]:
        """How many steps have been taken."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, and set its rate."""
        self.count = int(state["count"])
        self._apply()

    def _apply(self) -> None:
        for module, name in self._followers:
            setattr(module, name, self.rate)


def _rate_name(module: nn.Module) -> str | None:
    """The attribute in which a module has its dropout rate, or None."""
    if isinstance(module, _OF_TORCH):
        return "p"
    if isinstance(module, nn.MultiheadAttention):
        return "dropout"
    of_regard = any(kind.__module__.startswith("regard.nn") for kind in type(module).__mro__)
    return "dropout_p" if of_regard and isinstance(getattr(module, "dropout_p", None), (int, float)) else None
