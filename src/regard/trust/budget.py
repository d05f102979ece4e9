"""How far from the float64 oracle a result may be: tolerance from data, not from taste.

    output, lse   error <= 2 x the error of plain eager torch in the same dtype, + one rounding floor
    gradients     error <= 3 x that, + two floors, one for each of the two products (four for a table, whose gradient
                  is a sum over all pairs, in whatever order)

Where plain torch is luckily exact in one gradient, its error in those of query and key (for a table: of all tables)
counts instead, and the floor is that of the largest, since all pass through one softmax.

Plain torch is `regard.trust.plain`, written for nothing but this. float32 has an absolute cap too, and float64
nothing but a cap, since there plain torch and the oracle may round alike. No environment variable changes these.

Reports tell an error as a ratio, in units of what plain torch makes: the limit is `FORWARD_FACTOR` or
`GRADIENT_FACTOR` of them, roundings and caps included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

FORWARD_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
FORWARD_CAP = {torch.float32: 1e-5, torch.float64: 1e-12}
GRADIENT_CAP = {torch.float32: 1e-4, torch.float64: 1e-11}


def floor(expected: Tensor, dtype: torch.dtype) -> float:
    """What one rounding in `dtype` makes of numbers as large as these."""
    rounded = expected[expected.isfinite()].to(dtype)
    if not rounded.numel():
        return 0.0
    # A single number may survive the sum by luck, so at least the half ulp of the largest counts.
    lost = float((rounded + 0.3 - 0.3 - rounded).abs().max())
    half_ulp = math.ldexp(torch.finfo(dtype).eps, math.frexp(float(rounded.abs().max()))[1] - 2)
    return 2.0 * max(lost, half_ulp)


def forward(plain: Tensor, expected: Tensor) -> float:
    """The largest error an output or an lse may have."""
    if plain.dtype == torch.float64:
        return FORWARD_CAP[plain.dtype]
    limit = FORWARD_FACTOR * _error(plain, expected) + floor(expected, plain.dtype)
    return min(limit, FORWARD_CAP.get(plain.dtype, math.inf))


def gradient(name: str, plain: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest error the gradient of `name` may have, given all gradients of the problem."""
    dtype = max(plain[name].dtype, plain["query"].dtype, key=lambda kind: torch.finfo(kind).eps)
    if dtype == torch.float64:
        return GRADIENT_CAP[dtype]
    tables = {other for other in plain if "." in other and "." in name}
    error = max(_error(plain[near], expected[near]) for near in ({name, "query", "key"} | tables) & set(plain))
    rounding = max(floor(expected[near], dtype) for near in {name, "query", "key", "value"} & set(plain))
    floors = 4.0 if tables else 2.0
    return min(GRADIENT_FACTOR * error + floors * rounding, GRADIENT_CAP.get(dtype, math.inf))


def ratio(error: float, limit: float, factor: float) -> float:
    """An error in units of plain torch's: `factor` of them are the limit."""
    return error * factor / limit if limit else math.inf if error else 0.0


def _error(plain: Tensor, expected: Tensor) -> float:
    return _largest((plain.to(torch.float64) - expected.to(torch.float64)).abs())


def _largest(tensor: Tensor) -> float:
    finite = tensor.abs()[tensor.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0
