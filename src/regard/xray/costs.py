"""What a layer's attention costs under each backend, at this text's length and at a longer one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from regard import masks
from regard._attention import attention, dispatch
from regard._errors import RegardError
from regard._front_door import Options
from regard.measure.cost import Cost, available_bytes, cost_of, growth
from regard.observation import ObservedLayer
from regard.xray.chinese import in_chinese
from regard.xray.probe import Pattern

FIRST_LENGTH = 512
SECONDS_A_LENGTH = 3.0
"""Lengths are doubled until one run is expected to take longer than this; the rest is extrapolated."""
MEMORY_SHARE = 0.4
"""A length is not run when it is expected to need more than this share of the memory that is free."""
MASKING = -1e4
"""Numbers below this are masks written as numbers."""


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
            "reason_zh": in_chinese(self.reason),
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

    Random q, k, v of the layer's heads and width; the mask that was found, if it has a name, and a bias where
    the layer adds one. FlexAttention is left out on CPU: it would compile for seconds at each length.
    """
    rows = [_backend_at_length(layer, pattern, length, name) for name in ("sdpa", "eager")]
    return {"length": length, "backends": [row for row in rows if row is not None]}


def _backend_at_length(
    layer: ObservedLayer, pattern: Pattern | None, length: int, backend: str
) -> dict[str, Any] | None:
    measured: list[tuple[int, Cost]] = []
    size = max(1, min(FIRST_LENGTH, length // 2))  # two lengths at least, or growth could not be told
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
    bias = _bias(layer, length)
    options["sink"], options["bias"] = call.options.get("sink"), bias
    with torch.no_grad():
        cost = cost_of(_run((query, key, value), backend, options), seconds=0.3, runs=3)
    return cost if bias is None else Cost(cost.milliseconds, cost.peak_bytes + bias.nbytes)  # the model makes it too


def _mask(pattern: Pattern | None) -> masks.Mask | None:
    if pattern is None or pattern.after is None:
        return None
    if pattern.window is None:
        return masks.Causal() if pattern.after == 0 else None
    return masks.SlidingWindow(pattern.window - 1, pattern.after) if pattern.after >= 0 else None


def _bias(layer: ObservedLayer, length: int) -> Tensor | None:
    """A bias over all pairs when the layer adds one that is more than a mask written in numbers."""
    bias = layer.call.options.get("bias")
    if bias is None:
        return None
    is_mask = bias.shape[1] == 1 and not bool(((bias != 0) & (bias > MASKING)).any())
    if is_mask:
        return None
    return torch.randn(1, bias.shape[1], length, length, dtype=bias.dtype, device=bias.device)


def _affordable(measured: list[tuple[int, Cost]], length: int) -> bool:
    """Would a run at `length` be short and small enough? Quadratic growth is assumed, the worst there is."""
    size, cost = measured[-1]
    factor = (length / size) ** 2
    free = available_bytes()
    fits = free == 0 or cost.peak_bytes * factor < MEMORY_SHARE * free
    return fits and cost.milliseconds * factor < 1000 * SECONDS_A_LENGTH


def _extrapolated(backend: str, length: int, measured: list[tuple[int, Cost]]) -> dict[str, Any]:
    size = measured[-1][0]
    times = [(at, cost.milliseconds) for at, cost in measured]
    bytes_ = [(at, float(cost.peak_bytes)) for at, cost in measured]
    return {
        "backend": backend,
        "milliseconds": _continued(times, length),
        "peak_bytes": round(_continued(bytes_, length)),
        "measured_to": size,
        "extrapolated": size < length,
        "growth": exponent(bytes_),
    }


def exponent(points: list[tuple[int, float]]) -> float:
    """How cost grows with length: p of a + b * length**p through the last three points; from 1 to 2.

    The constant matters: a kernel's scratch memory is the same for every length. Of two points, a = 0.
    """
    doubled = all(later == 2 * earlier for (earlier, _), (later, _) in pairwise(points[-3:]))
    steps = [after - before for (_, before), (_, after) in pairwise(points[-3:])]
    if len(steps) == 2 and doubled and min(steps) > 0:
        return min(2.0, max(1.0, math.log2(steps[1] / steps[0])))
    if not steps:
        return 0.0
    (earlier, before), (later, after) = points[-2:]
    return min(2.0, max(0.0, growth(earlier, later, before, after)))


def _continued(points: list[tuple[int, float]], length: int) -> float:
    """The cost at `length` >= the last one measured, by the same law."""
    size, cost = points[-1]
    if size == length:
        return cost
    power = max(1.0, exponent(points))
    step = cost - points[-2][1] if len(points) > 1 else 0.0
    if step <= 0:  # times are noisy
        return cost * (length / size) ** power
    return cost + step * ((length / size) ** power - 1) / (1 - 0.5**power)
