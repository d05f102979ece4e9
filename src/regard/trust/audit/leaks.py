"""What a mask does not hold back: weight on forbidden keys at extreme scores, their share in the sum, their NaN.

A mask may look right at ordinary scores and still leak: -1e5 instead of -inf gives way to scores below it, weights that
are multiplied by the mask after the softmax leave the forbidden keys in its sum, and 0 * NaN is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.trust.audit.recover import Probe, Recovered

ORDINARY, FAR = 1e6, 1e12
"""Scores that models reach in float32, and scores that no model does."""
ROWS = 2
"""As many queries are tried, one after another: a key has one vector for all of them."""


@dataclass(frozen=True)
class Leaks:
    """What got through.

    in_sum: the largest relative change of an allowed key's weight when only forbidden keys change their scores.
    constant: what forbidden scores are held back by when it is finite, about; None when nothing was seen to give way.
    nan_of_key, nan_of_value: rows that turn NaN because of a key that they may not attend to (none where NaN is
        refused).
    """

    in_sum: float
    constant: float | None
    nan_of_key: int
    nan_of_value: int


def look_for_leaks(probe: Probe, base: Recovered, scale: float, *, capped: bool) -> Leaks:
    """Try all of it. `scale` is the recovered one; with a softcap (`capped`) scores never get low enough to leak."""
    rows = list(_mixed_rows(base))
    return Leaks(
        in_sum=max((_change_of_sum(probe, base, row, scale) for row in rows), default=0.0),
        constant=None if capped or not rows else _constant(probe, base, rows[-1], scale),
        nan_of_key=_rows_of_nan(probe, base, of="key"),
        nan_of_value=_rows_of_nan(probe, base, of="value"),
    )


def _mixed_rows(base: Recovered) -> Iterator[int]:
    """Queries that may attend to some keys and not to others, in every sample and head where possible."""
    mixed = base.allowed.any(-1) & ~base.allowed.all(-1)
    shares = mixed.float().mean((0, 1))
    best = [row for row in range(shares.numel()) if float(shares[row]) == float(shares.max()) > 0.0]
    step = max(1, len(best) // ROWS)
    yield from best[::step][:ROWS]


def _forbidden_keys(probe: Probe, base: Recovered, row: int) -> Tensor:
    """bool (batch, kv_heads, kv_len): the keys that no query head of the group may attend to in this row."""
    allowed = base.allowed[:, :, row]
    groups = probe.sizes.heads // probe.sizes.kv_heads if probe.sizes.kv_heads else 1
    return ~allowed.reshape(allowed.shape[0], probe.sizes.kv_heads, groups, -1).any(2)


def _aligned(
    probe: Probe, forbidden: Tensor, on_forbidden: float, on_allowed: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A query, keys of zeros, and what to add to the keys so that forbidden and allowed ones get these scores."""
    sizes = probe.sizes
    query, key = probe.zeros()
    strength = math.sqrt(max(abs(on_forbidden), abs(on_allowed)) / abs(scale) / sizes.head_dim)
    size = sizes.head_dim * scale * strength
    levels = torch.where(forbidden, on_forbidden / size, on_allowed / size)
    return query + strength, key, levels[..., None].to(key)


def _change_of_sum(probe: Probe, base: Recovered, row: int, scale: float) -> float:
    """With the same queries, forbidden keys score 0 and then 8: what do the allowed ones lose?"""
    forbidden = _forbidden_keys(probe, base, row)
    query, key, levels = _aligned(probe, forbidden, 8.0, 0.0, scale)
    before, after = (probe.weights(query, keys)[:, :, row] for keys in (key, key + levels))
    allowed = base.allowed[:, :, row]
    change = ((after - before) / before.abs().clamp(min=1e-30)).abs()
    known = allowed & after.isfinite()
    return float(change[known].max()) if bool(known.any()) else 0.0


def _constant(probe: Probe, base: Recovered, row: int, scale: float) -> float | None:
    """About where weight moves to forbidden keys as allowed ones sink to lower and lower scores."""
    forbidden = _forbidden_keys(probe, base, row)
    places = forbidden.repeat_interleave(probe.sizes.heads // probe.sizes.kv_heads, dim=1)

    def gives_way(score: float) -> bool:
        query, key, levels = _aligned(probe, forbidden, 0.0, -score, scale)
        found = probe.weights(query, key + levels)[:, :, row]
        return float(found[places & found.isfinite()].abs().sum()) > 1e-3

    level = next((level for level in (ORDINARY, FAR) if gives_way(level)), None)
    if level is None:
        return None
    low, high = 0.0, math.log(level)
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if gives_way(math.exp(middle)) else (middle, high)
    return -math.exp(high)


def _rows_of_nan(probe: Probe, base: Recovered, *, of: str) -> int:
    """Fill one key (or its value) with NaN, the one that most rows may not see, and count those that turn NaN."""
    hidden = (~base.allowed & base.allowed.any(-1, keepdim=True)).sum((0, 1, 2))
    if not hidden.numel() or int(hidden.max()) == 0:
        return 0
    place = int(hidden.argmax())
    query, key = probe.normal(draw=8)
    value = probe.values() + 1.0
    before = probe.output(query, key, value).isfinite().all(-1)
    (key if of == "key" else value)[:, :, place] = math.nan
    try:
        after = probe.output(query, key, value).isfinite().all(-1)
    except ValueError:  # UnsupportedError among them: a refusal leaks nothing
        return 0
    forbidden = ~base.allowed[..., place] & base.allowed.any(-1)
    return int((before & ~after & forbidden).sum())
