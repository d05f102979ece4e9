"""Attention in plain eager torch, as one would write it: the yardstick of every error here.

Every option and no care, in the dtype of the query. It shares nothing with `regard.reference`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regard import _dropout


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
    alone = allowed.sum(-1, keepdim=True) == 1
    if sink is None and bool(alone.any()):
        output = torch.where(alone, _divided_last(scores, value, options), output)
    lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)
    return (output, lse) if options.get("return_lse") else output


def _divided_last(scores: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """The same with the division after the product, as fused kernels write it.

    In softmax's own backward, P (dP - sum P dP), a row with one key gives exact zeros: a number less itself. Here the
    second term is a sum over channels, dO O, and what is left are the roundings of both. A yardstick has to have them:
    to be exact by luck is no measure.
    """
    raised = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return _combine(_dropped(raised, options), value, options) / raised.sum(-1, keepdim=True)


def _scores(query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    scale = options.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    position = _position(options)
    softcap, bias = options.get("softcap"), options.get("bias")
    terms = _terms(position)
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


def _position(options: dict[str, Any]) -> Any:
    return options.get("position")


def _terms(position: Any) -> frozenset[str]:
    return frozenset() if position is None else position.terms


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
    position = _position(options)
    output = weights @ value
    if position is None or "value" not in position.terms:
        return output
    which, known = _pairs(weights, value, position)
    vectors = position.distance_values(known)[which].to(weights.dtype)
    return output + torch.einsum("bhqk,qkd->bhqd", weights, vectors)
