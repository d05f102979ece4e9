"""What a layer's attention costs under each backend, at this text's length and at a longer one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard import masks
from regard._attention import attention, dispatch
from regard._errors import RegardError
from regard._front_door import Options
from regard.measure.cost import Cost, available_bytes, cost_of, growth
from regard.observation import ObservedLayer
from regard.xray.probe import Pattern

FIRST_LENGTH = 512
SECONDS_A_LENGTH = 3.0
"""Lengths are doubled until one run is expected to take longer than this; the rest is extrapolated."""
MEMORY_SHARE = 0.4
"""A length is not run when it is expected to need more than this share of the memory that is free."""


@dataclass(frozen=True)
class BackendCost:
    """One backend's row for one layer."""

    backend: str
    supported: bool
    reason: str
    cost: Cost | None

    def as_json(self) -> dict[str, Any]:
        """As the report has it."""
        return {
            "backend": self.backend,
            "supported": self.supported,
            "reason": self.reason,
            "milliseconds": None if self.cost is None else self.cost.milliseconds,
            "peak_bytes": None if self.cost is None else self.cost.peak_bytes,
        }


def signature(layer: ObservedLayer) -> tuple[object, ...]:
    """Layers with the same signature cost the same: shapes, dtype and kinds of options."""
    call = layer.call
    options = tuple((name, _kind(option)) for name, option in sorted(call.options.items()))
    return (call.query.shape, call.key.shape, call.value.shape, call.query.dtype, call.implementation, options)


def _kind(option: object) -> object:
    if isinstance(option, Tensor):
        return tuple(option.shape)
    return type(option).__name__ if isinstance(option, masks.Mask) else option


def layer_costs(layer: ObservedLayer) -> list[BackendCost]:
    """Time and peak memory of this very problem under each backend that supports it."""
    call = layer.call
    options: Options = {**call.options, "enable_gqa": True, "additive": True}
    inputs = (call.query, call.key, call.value)
    rows: list[BackendCost] = []
    with torch.no_grad():
        for choice in dispatch(*inputs, **options).choices:
            run = _run(inputs, choice.backend, options)
            cost = None if choice.status == "refused" else cost_of(run)
            rows.append(BackendCost(choice.backend, choice.status != "refused", choice.reason, cost))
    return rows


def _run(inputs: tuple[Tensor, Tensor, Tensor], backend: str, options: Options) -> Callable[[], Tensor]:
    return lambda: attention(*inputs, backend=backend, **options)


def at_length(layer: ObservedLayer, pattern: Pattern | None, length: int) -> dict[str, Any]:
    """Time and peak memory of a problem like this one at `length` tokens, measured as far as is cheap.

    Random q, k, v of the layer's heads and width; the mask that was found, if it has a name. FlexAttention is
    left out on CPU: it would compile for seconds at each length.
    """
    rows = [_backend_at_length(layer, pattern, length, name) for name in ("sdpa", "eager")]
    return {"length": length, "backends": [row for row in rows if row is not None]}


def _backend_at_length(
    layer: ObservedLayer, pattern: Pattern | None, length: int, backend: str
) -> dict[str, Any] | None:
    measured: list[tuple[int, Cost]] = []
    size = min(FIRST_LENGTH, length)
    while True:
        try:
            measured.append((size, _cost_at(layer, pattern, size, backend)))
        except RegardError:  # this backend refuses such a problem
            return None
        following = min(2 * size, length)
        if following == size or not _affordable(measured, following):
            break
        size = following
    return _extrapolated(backend, length, measured)


def _cost_at(layer: ObservedLayer, pattern: Pattern | None, length: int, backend: str) -> Cost:
    call = layer.call
    query, key, value = (
        torch.randn(1, like.shape[1], length, like.shape[3], dtype=like.dtype, device=like.device)
        for like in (call.query, call.key, call.value)
    )
    options: Options = {"mask": _mask(pattern), "enable_gqa": True, "softcap": call.options.get("softcap")}
    with torch.no_grad():
        return cost_of(_run((query, key, value), backend, options), seconds=0.3, runs=3)


def _mask(pattern: Pattern | None) -> masks.Mask | None:
    if pattern is None or not pattern.causal:
        return None
    causal = masks.Causal()
    return causal if pattern.window is None else causal & masks.SlidingWindow(pattern.window - 1, 0)


def _affordable(measured: list[tuple[int, Cost]], length: int) -> bool:
    """Would a run at `length` be short and small enough? Quadratic growth is assumed, the worst there is."""
    size, cost = measured[-1]
    factor = (length / size) ** 2
    free = available_bytes()
    fits = free == 0 or cost.peak_bytes * factor < MEMORY_SHARE * free
    return fits and cost.milliseconds * factor < 1000 * SECONDS_A_LENGTH


def _extrapolated(backend: str, length: int, measured: list[tuple[int, Cost]]) -> dict[str, Any]:
    size, cost = measured[-1]
    time_growth = memory_growth = 2.0
    if len(measured) > 1:
        (before, earlier) = measured[-2]
        time_growth = growth(before, size, earlier.milliseconds, cost.milliseconds)
        memory_growth = growth(before, size, earlier.peak_bytes, cost.peak_bytes)
    factor = length / size
    return {
        "backend": backend,
        "milliseconds": cost.milliseconds * factor**time_growth,
        "peak_bytes": round(cost.peak_bytes * factor**memory_growth),
        "measured_to": size,
        "extrapolated": size < length,
        "growth": memory_growth,
    }
