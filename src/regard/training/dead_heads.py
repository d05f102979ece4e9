"""Heads that do not look at what asks: whatever the query, they give the same weights.

    near = mean over neighbours i, j of  TV(w_i, w_j) - TV(u_i, u_j)
    far  = mean over queries i, j half a text apart of  TV(w_i | S, w_j | S)
    dependence = max(near, far),   TV(p, q) = sum_k |p_k - q_k| / 2

w_i are the weights of query i; u_i are uniform over the keys that its mask lets it see, which is what the mask alone
makes of a head that does not choose; w | S is w over the keys S that both may see, scaled to sum 1. Neighbours alone
may be alike (patches of a black sky); far queries alone share old keys, and do not show that a head looks at what is
recent. 0: every query gets the same; near 1: no two agree.

A head below `DEAD_BELOW` is called dead: uniform weights, and everything on one key (the dormant heads of Guo et al.
2024, https://arxiv.org/abs/2410.13835), are its two usual forms. A trained model can often do without many of its heads
(Michel, Levy, Neubig 2019, https://arxiv.org/abs/1905.10650). Measure and limit are ours: they ask for no gradient and
no labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard._front_door import Options, build_problem
from regard.observation.layer import ObservedLayer
from regard.observation.tiles import score_tile, without_autocast

DEAD_BELOW = 0.05
"""Two queries of such a head share 95 % of their weights."""
_PAIRS = 16
_WEIGHTS = 2**21
"""Weights that are held at once; long texts are looked at in fewer places."""


def query_dependence(layer: ObservedLayer, real: Tensor) -> Tensor:
    """How far the weights of each head depend on the query: (heads,), float64 on the CPU, from 0 to 1.

    NaN where it cannot be told: no two queries that both see two keys or more, or weights that are NaN themselves.

    Args:
        layer: as observed.
        real: bool (batch, q_len): queries that count; padding does not.
    """
    length = layer.q_len
    if length < 2:
        return torch.full((layer.heads,), torch.nan, dtype=torch.float64)
    batch = layer.call.query.shape[0]
    pairs = max(2, min(_PAIRS, _WEIGHTS // max(1, 4 * batch * layer.heads * layer.kv_len)))
    near = _mean_variation(layer, real, *_pairs(length, pairs, apart=1), shared_only=False)
    far = _mean_variation(layer, real, *_pairs(length, pairs, apart=(length + 1) // 2), shared_only=True)
    return torch.where(far.isnan(), near, torch.where(near.isnan(), far, torch.maximum(near, far))).clamp(min=0.0)


def _pairs(length: int, count: int, *, apart: int) -> tuple[Tensor, Tensor]:
    """Queries spread evenly, and for each the one so far after it."""
    first = torch.linspace(0, length - apart - 1, min(count, length - apart)).round().long()
    return first, first + apart


def _mean_variation(layer: ObservedLayer, real: Tensor, first: Tensor, second: Tensor, *, shared_only: bool) -> Tensor:
    """`near` or, over shared keys only, `far` of the definition; (heads,)."""
    rows = torch.cat([first, second]).to(real.device)
    one, other = slice(0, len(first)), slice(len(first), None)
    weights, allowed = layer.weights(rows=rows).double(), _allowed(layer, rows)
    both = allowed[:, :, one] & allowed[:, :, other]
    if shared_only:
        apart = _variation(_scaled(weights[:, :, one] * both), _scaled(weights[:, :, other] * both))
    else:
        most = torch.maximum(allowed[:, :, one].sum(-1), allowed[:, :, other].sum(-1))
        forced = 1.0 - both.sum(-1) / most.clamp(min=1)
        apart = _variation(weights[:, :, one], weights[:, :, other]) - forced
    known = (real[:, rows[one]] & real[:, rows[other]]).unsqueeze(1)
    counts = (both.sum(-1) >= 2) & known
    return (torch.where(counts, apart, 0.0).sum((0, 2)) / counts.sum((0, 2))).cpu()  # 0 / 0 is NaN


def _variation(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().sum(-1) / 2


def _scaled(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _allowed(layer: ObservedLayer, rows: Tensor) -> Tensor:
    """Which keys these queries may see, bool (batch, heads, rows, kv_len)."""
    call = layer.call
    device = call.query.device
    options: Options = {**call.options, "enable_gqa": True, "additive": True}
    heads, cols = torch.arange(layer.heads, device=device), torch.arange(layer.kv_len, device=device)
    with torch.no_grad(), without_autocast(device):
        problem = build_problem(call.query, call.key, call.value, **options)
        scores, allowed = score_tile(problem, heads, rows, cols)
    return torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed
