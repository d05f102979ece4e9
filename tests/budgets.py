"""How far from the float64 oracle a result may be: tolerance from data, not from taste.

    output, lse   error <= 2 x the error of plain eager torch in the same dtype, + one rounding floor
    gradients     error <= 3 x that, + two floors, one for each of the two products (four for a table, whose gradient
                  is a sum over all pairs, in whatever order)

Where plain torch is luckily exact in one gradient, its error in those of query and key (for a table: of all tables)
counts instead, and the floor is that of the largest, since all pass through one softmax.

Plain torch is `plain_attention` below, written for nothing but this. float32 has an absolute cap too, and float64
nothing but a cap, since there plain torch and the oracle may round alike. No environment variable changes these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regard import _dropout

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
    tables = {other for other in plain if "." in other} if "." in name else set()
    error = max(_error(plain[near], expected[near]) for near in ({name, "query", "key"} | tables) & set(plain))
    rounding = max(floor(expected[near], dtype) for near in {name, "query", "key", "value"} & set(plain))
    floors = 4.0 if tables else 2.0
    return min(GRADIENT_FACTOR * error + floors * rounding, GRADIENT_CAP.get(dtype, math.inf))


def _error(plain: Tensor, expected: Tensor) -> float:
    return _largest((plain.to(torch.float64) - expected.to(torch.float64)).abs())


def _largest(tensor: Tensor) -> float:
    finite = tensor.abs()[tensor.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


# ------------------------------------------------------------------------- plain torch, as one would write it


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """softmax(query @ key^T ...) @ value in the dtype of the query, with every option and no care."""
    groups = query.shape[1] // max(key.shape[1], 1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = _scores(query, key, options)
    allowed = _allowed(scores, options)
    empty = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, -math.inf).masked_fill(empty, 0.0)
    sink = options.get("sink")
    if sink is not None:
        scores = torch.cat([scores, sink.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]].masked_fill(empty, 0.0)
    output = _combine(_dropped(weights, options), value, options)
    lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)
    return (output, lse) if options.get("return_lse") else output


def _scores(query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    scale = options.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    position, softcap, bias = options.get("position"), options.get("softcap"), options.get("bias")
    terms = () if position is None else position.terms
    distance, known = _pairs(query, key, position)
    if "rotation" in terms:
        query = position.rotate(query, position.query_positions(query.shape[2], key.shape[2]))
        key = position.rotate(key, torch.arange(key.shape[2]))
    scores = (position.content_query(query) if "content" in terms else query) @ key.mT
    if "content" in terms:
        scores = scores + position.distance_scores(query, known).gather(-1, distance.expand(scores.shape))
    scores = scores * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if "bias" in terms:
        scores = scores + position.distance_bias(known)[:, distance].to(scores.dtype)
    return scores if bias is None else scores + bias.to(scores.dtype)


def _pairs(query: Tensor, key: Tensor, position: Any) -> tuple[Tensor, Tensor]:
    """For each pair which of the distances that occur it has, and these."""
    if position is None:
        return torch.zeros(0), torch.zeros(0)
    rows = position.query_positions(query.shape[2], key.shape[2])
    known, which = (torch.arange(key.shape[2])[None] - rows[:, None]).unique(return_inverse=True)
    return which, known


def _allowed(scores: Tensor, options: dict[str, Any]) -> Tensor:
    mask, bias = options.get("mask"), options.get("bias")
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & (mask if isinstance(mask, Tensor) else mask.dense(*scores.shape[-2:]))
    return allowed if bias is None else allowed & (bias != -math.inf)


def _dropped(weights: Tensor, options: dict[str, Any]) -> Tensor:
    probability = options.get("dropout_p", 0.0)
    if probability == 0.0:
        return weights
    if probability == 1.0:
        return torch.zeros_like(weights) * weights
    kept = _dropout.keep_all(options["seed"], probability, weights.shape, weights.device)
    return weights * kept / (1.0 - probability)


def _combine(weights: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    position = options.get("position")
    output = weights @ value
    if position is None or "value" not in position.terms:
        return output
    which, known = _pairs(weights, value, position)
    vectors = position.distance_values(known)[which].to(weights.dtype)
    return output + torch.einsum("bhqk,qkd->bhqd", weights, vectors)
