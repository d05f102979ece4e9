"""How far an estimate of attention by random features is to be believed, and what to believe instead.

To first order in the scores s_j = q . k_j / sqrt(d), softmax attention is

    mean(v) + mean_j (s_j - mean(s)) v_j

a linear function of the query, whose sums cost as much as d features. For Gaussian keys, with sigma^2 the variance of
the scores, the weights relative to their mean have the variance exp(sigma^2) - 1, of which sigma^2 is of first order.
What remains is the signal that random features have to tell; their own variance is the noise. Of an estimate, signal /
(signal + noise) is taken and the rest of the first order, as James and Stein 1961 do with an estimate that varies more
than what it estimates.

None of this is in Choromanski et al. 2021. It is near to exact where scores are small, and a better guess elsewhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from regard.nn._causal_scan import causal_scan


class Sizes(NamedTuple):
    """What the variances depend on.

    Attributes:
        query: (batch, heads, length, head_dim).
        key_square: (batch, heads, length or 1), the mean squared norm of the keys that are seen.
        tokens: (batch, heads, length or 1), how many they are.
        features: how many there are.
        opposites: does each direction stand beside its opposite?
    """

    query: Tensor
    key_square: Tensor
    tokens: Tensor
    features: int
    opposites: bool


def shrunk(found: Tensor, mean: Tensor, slope: Tensor, sizes: Sizes) -> Tensor:
    """Between the first order and `found`, (batch, heads, length, value_dim), where the noise puts it.

    Args:
        found: the estimate.
        mean: of the values that are seen.
        slope: mean_j (s_j - mean(s)) v_j.
        sizes: of queries and keys.
    """
    width = sizes.query.shape[3]
    query, key = sizes.query.square().sum(-1), sizes.key_square
    variance = query * key / width**2
    # Of few tokens no score is further from the mean than sigma sqrt(2 log n), and the first order must not be either.
    reach = (2 * sizes.tokens.clamp_min(2).log() / variance.clamp_min(1e-12)).sqrt().clamp_max(1.0)
    first_order = torch.addcmul(mean, slope, reach.unsqueeze(-1))
    noise = _log_noise(query / math.sqrt(width), key / math.sqrt(width), opposites=sizes.opposites)
    trust = torch.sigmoid(_log_signal(variance) - noise + math.log(sizes.features))
    return torch.lerp(first_order, found, trust.unsqueeze(-1))


def _log_signal(variance: Tensor) -> Tensor:
    """log(exp(x) - 1 - x): what there is beyond the first order."""
    beyond = -torch.expm1(-variance) - variance * torch.exp(-variance)
    small = variance.square() * (0.5 + variance / 6)
    return torch.where(variance < 0.01, _log(small), variance + _log(beyond))


def _log_noise(query: Tensor, key: Tensor, *, opposites: bool) -> Tensor:
    """log of the variance of a weight as one feature estimates it, without the part that a query's weights share.

    E[phi(q)^2 phi(k)^2] is exp(|q|^2 + |k|^2 + 4 q . k) for scaled and independent q and k (Choromanski et al. 2021,
    lemma 2), and exp(|q|^2) is shared: exp(x) - exp(y) in all. Opposites make 2 cosh of each exp.
    """
    if not opposites:
        return query + key + _log(-torch.expm1(-key))
    # 2 cosh(q + k) - 2 cosh(q) = 4 sinh(q + k / 2) sinh(k / 2)
    return query + key + _log(-torch.expm1(-2 * query - key)) + _log(-torch.expm1(-key))


def _log(number: Tensor) -> Tensor:
    return number.clamp_min(torch.finfo(number.dtype).tiny).log()


def slope_in_order(query: Tensor, key: Tensor, value: Tensor, *, kept: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """mean_j (s_j - mean(s)) v_j over the tokens so far, (batch, heads, length, value_dim).

    A scan wants weights that are not negative, so each score is raised by the largest that there could be, b: it gives
    u = sum_j (b + s_j) v_j / sum_j (b + s_j), and the slope is (b + mean(s)) (u - mean(v)).

    Args:
        query, key, value: (batch, heads, length, width), 0 for keys and values that are not real.
        kept: (batch or 1, heads or 1, length, 1), 1 for real tokens.
        mean: of the values so far. count: (batch, heads, length, 1), of the real tokens so far, at least 1.
    """
    query = query / math.sqrt(query.shape[3])
    longest = key.detach().square().sum(-1).cummax(-1).values.sqrt().unsqueeze(-1)
    raised = query.detach().square().sum(-1, keepdim=True).sqrt() * longest * 1.01 + 1e-6
    scores = (query * (key.cumsum(2) / count)).sum(-1, keepdim=True)
    ones = kept.expand(*key.shape[:3], 1)
    found, _ = causal_scan(torch.cat([query, raised], -1), torch.cat([key, ones], -1), value)
    return (raised + scores) * (found - mean)
