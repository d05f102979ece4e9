"""The oracle: attention as the guide writes it, in three steps, with every option.

    1. match       scores  = scale * Q K^T          (guide 1.1, step 1; the scale of step 2 is applied at once)
    2. normalise   weights = softmax(scores)        (guide 1.1, step 2)
    3. combine     output  = weights V              (guide 1.1, step 3)

Quadratic, slow and plain on purpose: everything else is compared with this file in float64. The guide
prints `Attention_scores / d_k` in step 2; the text beside it and Vaswani et al. 2017 say sqrt(d_k), and
so does this file. Half precision is computed in float32.

What needs care is only what must not happen: a pair that may not attend has no influence, whatever its
key or value holds, forward and backward; a row that may attend to nothing is zero, not NaN; and a NaN
that may be attended to reaches exactly the outputs that depend on it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from regard import _dropout
from regard._finite import all_finite, finite_part

if TYPE_CHECKING:
    from regard.masks import Mask
    from regard.positions import Position

_NAN, _INFINITY = math.nan, math.inf


class Result(NamedTuple):
    """What attention computed.

    output: (batch, heads, q_len, value_dim), in the dtype of the query.
    weights: (batch, heads, q_len, kv_len), before dropout; each row sums to 1, or to less with a sink, or to 0.
    scores: (batch, heads, q_len, kv_len), after scale, softcap, bias; -inf where a pair may not attend.
    lse: (batch, heads, q_len), log of the sum of exp(scores), with the sink; -inf where nothing may be attended to.
    """

    output: Tensor
    weights: Tensor
    scores: Tensor
    lse: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    position: Position | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    enable_gqa: bool = False,
) -> Result:
    """Scaled dot-product attention (guide 1.1) with every option of `regard.attention`.

    Args:
        query: (batch, heads, q_len, head_dim), any float dtype.
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        mask: which pairs may attend: a Mask, or a bool tensor that broadcasts to (batch, heads, q_len, kv_len).
        position: how distance changes scores or vectors.
        bias: float tensor added to the scores, broadcastable to (batch, heads, q_len, kv_len).
        scale: factor of the dot products; 1 / sqrt(head_dim) unless given.
        softcap: scores become softcap * tanh(scores / softcap), before bias and mask (Gemma 2).
        sink: (heads,), a logit that takes part in each row's softmax and gives nothing (gpt-oss).
        dropout_p: probability of dropping a weight.
        seed: of the dropout; drawn from torch's generator unless given.
        enable_gqa: several query heads share a key/value head.

    Raises nothing of its own: `regard.attention` is the front door that validates.
    """
    dtype = query.dtype
    working = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    query, key, value = (tensor.to(working) for tensor in (query, key, value))
    if enable_gqa and key.shape[1]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)

    scores = match(query, key, position=position, scale=scale, softcap=softcap)
    scores, allowed = restrict(scores, mask=mask, position=position, bias=bias)
    weights, lse = normalise(scores, allowed, sink)
    kept = drop(weights, dropout_p, seed)
    output = combine(kept, value, allowed, position)
    return Result(output.to(dtype), weights, scores, lse)


# --------------------------------------------------------------------------------------- 1. match


def match(
    query: Tensor, key: Tensor, *, position: Position | None, scale: float | None, softcap: float | None
) -> Tensor:
    """Scaled Q K^T, (batch, heads, q_len, kv_len), with the position's rotation and content terms."""
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = _dot_products(query, key) if position is None else _positioned_dot_products(query, key, position)
    scores = scores * factor
    return scores if softcap is None else _cap(scores, softcap)


def _cap(scores: Tensor, softcap: float) -> Tensor:
    # The slope of tanh at NaN is NaN, and times the 0 of a pair that may not attend still NaN: so NaN passes by.
    unknown = scores.isnan()
    return torch.where(unknown, scores, softcap * torch.tanh(scores.masked_fill(unknown, 0.0) / softcap))


def _positioned_dot_products(query: Tensor, key: Tensor, position: Position) -> Tensor:
    q_len, kv_len = query.shape[2], key.shape[2]
    if "rotation" in position.terms:
        query = position.rotate(query, position.query_positions(q_len, kv_len, device=query.device))
        key = position.rotate(key, torch.arange(kv_len, device=key.device))
    if "content" not in position.terms:
        return _dot_products(query, key)
    scores = _dot_products(position.content_query(query), key)
    distances, which = _distances(position, q_len, kv_len, query.device)
    # A NaN of the query is in `scores` already; here it would reach the gradient of the tables from empty rows too.
    met = query if all_finite(query) else finite_part(query)
    by_distance = position.distance_scores(met, distances).to(query.dtype)
    return scores + by_distance.gather(-1, which.expand(scores.shape))


def _distances(position: Position, q_len: int, kv_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All distances key - query that occur, ascending, and for each pair (q_len, kv_len) which one it is."""
    queries = position.query_positions(q_len, kv_len, device=device)
    distance = torch.arange(kv_len, device=device) - queries.unsqueeze(-1)
    if q_len == 0 or kv_len == 0:
        return torch.zeros(1, dtype=torch.int64, device=device), distance
    first = -queries[-1]  # the last query and the first key; a tensor, so that torch.compile need not read it
    return torch.arange(q_len + kv_len - 1, device=device) + first, distance - first


def _dot_products(query: Tensor, key: Tensor) -> Tensor:
    if all_finite(query, key):
        return query @ key.transpose(-2, -1)
    # 0 * NaN is NaN: in the gradient a NaN in one key would reach every query, allowed or not. So the
    # product is taken of the finite parts, and what the others add is put back pair by pair.
    clean_query, clean_key = finite_part(query), finite_part(key)
    clean = clean_query @ clean_key.transpose(-2, -1)
    raw = query.detach() @ key.detach().transpose(-2, -1)
    touched = _non_finite(query).unsqueeze(-1) | _non_finite(key).unsqueeze(-2)
    return clean + torch.where(touched, raw - clean.detach(), 0.0)


# ----------------------------------------------------------------------------------- which, and bias


def restrict(
    scores: Tensor, *, mask: Mask | Tensor | None, position: Position | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Add what is added, then -inf where a pair may not attend. Returns the scores and who may (or None: all)."""
    allowed: Tensor | None = None
    if position is not None and "bias" in position.terms:
        distances, which = _distances(position, scores.shape[-2], scores.shape[-1], scores.device)
        scores = scores + position.distance_bias(distances).to(scores.dtype)[:, which]
    if bias is not None:
        bias = bias.to(scores.dtype)
        scores = scores + bias
        allowed = (bias != -_INFINITY).expand(scores.shape)
    if mask is not None:
        dense = mask if isinstance(mask, Tensor) else mask.dense(*scores.shape[-2:], device=scores.device)
        allowed = dense.expand(scores.shape) if allowed is None else allowed & dense
    return (scores if allowed is None else scores.masked_fill(~allowed, -_INFINITY)), allowed


# ----------------------------------------------------------------------------------- 2. normalise


def normalise(scores: Tensor, allowed: Tensor | None, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the keys (and the sink): weights (batch, heads, q_len, kv_len), lse (batch, heads, q_len)."""
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -_INFINITY)
    empty = None if allowed is None else ~allowed.any(-1, keepdim=True)
    logits = scores if empty is None else scores.masked_fill(empty, 0.0)
    if sink is not None:
        column = sink.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        logits = torch.cat([logits, column], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : scores.shape[-1]]
    lse = torch.logsumexp(logits, dim=-1)
    if allowed is not None and empty is not None:
        weights = weights.masked_fill(~allowed, 0.0)
        lse = lse.masked_fill(empty.squeeze(-1), -_INFINITY)
    return weights, lse


def drop(weights: Tensor, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Weights with dropout: each kept with probability 1 - dropout_p and scaled up, by counter."""
    if dropout_p == 0.0:
        return weights
    if dropout_p == 1.0:
        return weights * 0.0
    seed = _dropout.draw_seed().to(weights.device) if seed is None else seed
    kept = _dropout.keep_all(seed, dropout_p, weights.shape, weights.device)
    return weights / (1.0 - dropout_p) * kept  # a product, so that a NaN is not dropped


# ------------------------------------------------------------------------------------- 3. combine


def combine(weights: Tensor, value: Tensor, allowed: Tensor | None, position: Position | None) -> Tensor:
    """The weighted sum of the values, (batch, heads, q_len, value_dim), with the position's value term."""
    output = _weighted_sum(weights, value, allowed)
    if position is None or "value" not in position.terms:
        return output
    distances, which = _distances(position, weights.shape[-2], weights.shape[-1], weights.device)
    spread = weights.new_zeros(*weights.shape[:-1], distances.numel())
    spread = spread.scatter(-1, which.expand(weights.shape), weights)
    return output + spread @ position.distance_values(distances).to(weights.dtype)


def _weighted_sum(weights: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    if all_finite(value):
        return weights @ value
    clean = weights @ finite_part(value)
    visible = torch.ones_like(weights) if allowed is None else allowed.to(weights.dtype)
    has_nan, has_plus, has_minus = (
        visible @ found.to(weights.dtype) > 0 for found in (value.isnan(), value == _INFINITY, value == -_INFINITY)
    )
    has_nan = has_nan | (has_plus & has_minus)
    infinite = torch.where(has_plus, _INFINITY, torch.where(has_minus, -_INFINITY, 0.0))
    return clean * torch.where(has_nan, _NAN, 1.0) + infinite


# ------------------------------------------------------------------------------------- NaN and Inf


def _non_finite(tensor: Tensor) -> Tensor:
    return ~tensor.isfinite().all(-1)
