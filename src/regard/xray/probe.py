"""Which pairs a layer really lets through, found by probing its own attention function.

With zero queries and keys every allowed pair gets a weight above zero and every forbidden one exactly
zero. One-hot values then read the weights off, `value_dim` keys at a time. What the function was told does
not matter: a window that it ignores shows. A bias below about -100 counts as forbidding: in float32 its weight is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.observation.call import AttentionCall, Through

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
    """Probe a layer's function for these keys (default: up to KEYS_PROBED of them).

    None where it cannot be called apart from its layer, or fails when it is (a cache that is written twice).
    """
    if call.through is None:
        return None
    chosen = _spread(call.value.shape[2]) if keys is None else keys
    try:
        with torch.no_grad():
            allowed = _let_through(call.through, call.value, chosen)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return None
    return Probe(keys=chosen, allowed=allowed)


def _let_through(through: Through, like: Tensor, keys: Tensor) -> Tensor:
    silent = through(torch.zeros_like(like))  # not zero where the function adds what no value brought: Shaw's values
    parts = [silent[..., :0] > 0]
    for some in torch.split(keys, like.shape[3]):
        value = torch.zeros_like(like)
        value[:, :, some, torch.arange(some.numel())] = 1.0
        parts.append((through(value) != silent)[..., : some.numel()])
    return torch.cat(parts, dim=-1)


def _spread(kv_len: int) -> Tensor:
    if kv_len <= KEYS_PROBED:
        return torch.arange(kv_len)
    return (torch.arange(KEYS_PROBED) * (kv_len - 1)) // (KEYS_PROBED - 1)


@dataclass(frozen=True)
class Pattern:
    """A mask in words.

    name: "bidirectional", "causal", "causal, window 4", "window -3..+3", "other: 40 % of pairs", or "nothing".
    causal: no query sees a later key. window: how many keys back a query sees, itself included, or None.
    after: how many keys ahead it sees; None where that is not bounded, or no number.
    """

    name: str
    causal: bool
    window: int | None = None
    after: int | None = None


def describe(allowed: Tensor, keys: Tensor, q_len: int, kv_len: int) -> Pattern:
    """Name the pattern of a bool tensor (..., q_len, k) over these keys; queries stand at the end of the keys.

    "The end" matters only when q_len != kv_len: the last query stands beside the last key, as in decoding.
    """
    if allowed.numel() == 0:
        return Pattern("nothing", causal=True)
    flat = allowed.reshape(-1, *allowed.shape[-2:])
    distance = _distance(keys, q_len, kv_len)
    causal = not bool((flat & (distance > 0)).any())
    if not bool((flat == flat[:1]).all()):
        return Pattern("differs by head or sample", causal=causal)
    one = flat[0]
    if not bool(one.any()):
        return Pattern("nothing", causal=True)
    if bool(one.all()):
        return Pattern("bidirectional", causal=q_len <= 1 and kv_len <= 1)
    return _band(one, distance)


def _band(one: Tensor, distance: Tensor) -> Pattern:
    """Every pattern that is a band: -before <= key - query <= after."""
    before, after = -int(distance[one].min()), int(distance[one].max())
    if not torch.equal(one, (distance >= -before) & (distance <= after)):
        return Pattern(f"other: {100 * float(one.float().mean()):.0f} % of pairs", causal=after <= 0)
    to_start, to_end = before >= -int(distance.min()), after >= int(distance.max())
    window = None if to_start else before + 1
    if after == 0:
        return Pattern("causal" if to_start else f"causal, window {window}", causal=True, window=window, after=0)
    if to_end:
        return Pattern(f"window {-before:+d}..end", causal=False, window=window)
    if to_start:
        return Pattern(f"causal, shifted by {after:+d}", causal=after < 0, after=after)
    return Pattern(f"window {-before:+d}..{after:+d}", causal=after < 0, window=window, after=after)


def _distance(keys: Tensor, q_len: int, kv_len: int) -> Tensor:
    queries = torch.arange(q_len, device=keys.device) + (kv_len - q_len)
    return keys.unsqueeze(0) - queries.unsqueeze(1)
