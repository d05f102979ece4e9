"""Which pairs a layer really lets through, found by probing its own attention function.

With zero queries and keys every allowed pair gets a weight above zero and every forbidden one exactly
zero. One-hot values then read the weights off, `value_dim` keys at a time. What the function was told does
not matter: a window that it ignores shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.observation.call import AttentionCall

KEYS_PROBED = 512
"""Up to this many keys are probed, spread over the text; each costs 1/value_dim of a run of the layer."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What was let through.

    keys: the key indices that were probed, (k,).
    allowed: bool (batch, heads, q_len, k).
    """

    keys: Tensor
    allowed: Tensor


def probe(call: AttentionCall, keys: Tensor | None = None) -> Probe | None:
    """Probe a layer's function for these keys (default: up to KEYS_PROBED of them); None where it cannot be called."""
    if call.through is None:
        return None
    kv_len, width = call.value.shape[2], call.value.shape[3]
    chosen = _spread(kv_len) if keys is None else keys
    parts: list[Tensor] = []
    with torch.no_grad():
        for some in chosen.split(width):
            value = torch.zeros_like(call.value)
            value[:, :, some, torch.arange(some.numel())] = 1.0
            parts.append(call.through(value)[..., : some.numel()] > 0)
    return Probe(keys=chosen, allowed=torch.cat(parts, dim=-1))


def _spread(kv_len: int) -> Tensor:
    if kv_len <= KEYS_PROBED:
        return torch.arange(kv_len)
    return torch.linspace(0, kv_len - 1, KEYS_PROBED).round().long().unique()


@dataclass(frozen=True)
class Pattern:
    """A mask in words.

    name: "bidirectional", "causal", "causal, window 4", "window -3..+3", "other: 40 % of pairs", or "nothing".
    causal: no query sees a later key. window: how many keys back a query sees, itself included, or None.
    """

    name: str
    causal: bool
    window: int | None


def describe(allowed: Tensor, keys: Tensor, q_len: int, kv_len: int) -> Pattern:
    """Name the pattern of a bool tensor (..., q_len, k) over these keys; queries stand at the end of the keys.

    "The end" matters only when q_len != kv_len: the last query stands beside the last key, as in decoding.
    """
    flat = allowed.reshape(-1, *allowed.shape[-2:])
    if not bool((flat == flat[:1]).all()):
        return Pattern("differs by head or sample", causal=not bool(_ahead(flat, keys, q_len, kv_len).any()), window=None)
    one = flat[0]
    if bool(one.all()):
        return Pattern("bidirectional", causal=q_len <= 1 and kv_len <= 1, window=None)
    if not bool(one.any()):
        return Pattern("nothing", causal=True, window=None)
    return _with_bounds(one, keys, q_len, kv_len)


def _with_bounds(one: Tensor, keys: Tensor, q_len: int, kv_len: int) -> Pattern:
    """Every pattern that is a band: -before <= key - query <= after."""
    distance = _distance(keys, q_len, kv_len)
    before, after = -int(distance[one].min()), int(distance[one].max())
    if not torch.equal(one, (distance >= -before) & (distance <= after)):
        return Pattern(f"other: {100 * one.float().mean():.0f} % of pairs", causal=after <= 0, window=None)
    reaches_start = before >= int(-distance.min())
    if after == 0:
        return Pattern("causal" if reaches_start else f"causal, window {before + 1}", True, None if reaches_start else before + 1)
    if after >= int(distance.max()):
        return Pattern(f"window -{before}..end", causal=False, window=before + 1)
    if reaches_start:
        return Pattern(f"causal shifted by {after}", causal=False, window=None)
    return Pattern(f"window -{before}..+{after}", causal=False, window=before + 1)


def _distance(keys: Tensor, q_len: int, kv_len: int) -> Tensor:
    queries = torch.arange(q_len, device=keys.device) + (kv_len - q_len)
    return keys.unsqueeze(0) - queries.unsqueeze(1)


def _ahead(allowed: Tensor, keys: Tensor, q_len: int, kv_len: int) -> Tensor:
    return allowed & (_distance(keys, q_len, kv_len) > 0)
