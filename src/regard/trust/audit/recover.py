"""What attention really does, read off its outputs: the weights of any callable, and the pairs it lets through.

A function f(query, key, value) that computes weights @ value gives its weights away: with one-hot values the output
channels are columns of them, head_dim keys a call. With zero queries and keys every score is zero, so that a pair has
a weight other than zero exactly when it may attend (a bias below about -87 is no weight in float32 either).

The values have the width of the heads: another width sends some libraries down another path than the one that is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regard._shapes import Sizes

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

REPEATS = 24
"""Runs that are laid together when no two are alike: of a weight dropped half of the time, 6e-8 are never seen."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A callable with what it is asked: sizes, dtype, device; the numbers are drawn from a generator of its own.

    repeats: how often each weight is read; more than 1 where dropout cannot be turned off.
    """

    attend: Attend
    sizes: Sizes
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    seed: int = 0
    repeats: int = 1

    def zeros(self) -> tuple[Tensor, Tensor]:
        """A query and a key whose scores are all zero."""
        sizes = self.sizes
        return (
            self._tensor(torch.zeros(sizes.batch, sizes.heads, sizes.q_len, sizes.head_dim)),
            self._tensor(torch.zeros(sizes.batch, sizes.kv_heads, sizes.kv_len, sizes.head_dim)),
        )

    def normal(self, *, draw: int = 0) -> tuple[Tensor, Tensor]:
        """A query and a key of unit-normal numbers; another `draw` gives others."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + draw)
        query, key = (torch.randn(like.shape, generator=generator, dtype=torch.float64) for like in self.zeros())
        return self._tensor(query), self._tensor(key)

    def values(self) -> Tensor:
        """Values of zeros, (batch, kv_heads, kv_len, value_dim)."""
        sizes = self.sizes
        return self._tensor(torch.zeros(sizes.batch, sizes.kv_heads, sizes.kv_len, sizes.value_dim))

    def _tensor(self, numbers: Tensor) -> Tensor:
        return numbers.to(device=self.device, dtype=self.dtype)

    def output(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the callable makes of it, in float64, (batch, heads, q_len, value_dim)."""
        return self.attend(query, key, value).detach().to(device="cpu", dtype=torch.float64)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The weights of every pair, float64 (batch, heads, q_len, kv_len); of dropped ones the mean."""
        found = self._weights_once(query, key)
        for _ in range(1, self.repeats):
            found = found + self._weights_once(query, key)
        return found / self.repeats

    def _weights_once(self, query: Tensor, key: Tensor) -> Tensor:
        silent = self.output(query, key, self.values())  # not zero where the function adds what no value brought
        parts: list[Tensor] = []
        for start in range(0, self.sizes.kv_len, self.sizes.value_dim):
            count = min(self.sizes.value_dim, self.sizes.kv_len - start)
            value, channels = self.values(), torch.arange(count)
            value[:, :, start + channels, channels] = 1.0
            parts.append((self.output(query, key, value) - silent)[..., :count])
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True, eq=False)
class Recovered:
    """What was let through.

    weights: at zero scores, float64 (batch, heads, q_len, kv_len).
    allowed: bool, the pairs whose weight is not zero.
    unknown: bool (batch, heads, q_len), the rows that came back as NaN or infinity.
    """

    weights: Tensor
    allowed: Tensor
    unknown: Tensor

    @property
    def row_sums(self) -> Tensor:
        """Of the weights, (batch, heads, q_len); NaN where the row is unknown."""
        return self.weights.sum(-1)

    def uniform_mask(self) -> Tensor | None:
        """The one mask (q_len, kv_len) of every sample and head, or None when they differ."""
        flat = self.allowed.flatten(0, 1)
        return flat[0] if flat.shape[0] and bool((flat == flat[:1]).all()) else None


def recover(probe: Probe) -> Recovered:
    """The pairs that the callable lets through, whatever it was told."""
    weights = probe.weights(*probe.zeros())
    known = weights.isfinite().all(-1)
    return Recovered(weights, (weights != 0.0) & known[..., None], ~known)


def is_repeatable(probe: Probe) -> bool:
    """Whether the same call gives the same bits twice; numbers that are drawn anew are dropout."""
    query, key = probe.normal()
    value = torch.ones_like(probe.values())
    first, second = (probe.output(query, key, value) for _ in range(2))
    return torch.equal(first.nan_to_num(), second.nan_to_num())


def allowed_at_random(probe: Probe, *, scale: float, draws: int = 2) -> Tensor:
    """The pairs with a weight at random scores: fewer than at zero scores where a mask depends on what is in them.

    The scores are made unit-normal with the scale that was found, so that no weight underflows.
    """
    calm = 1.0 / (abs(scale) * math.sqrt(probe.sizes.head_dim))
    found: list[Tensor] = []
    for draw in range(draws):
        query, key = probe.normal(draw=10 + draw)
        found.append(probe.weights(query * calm, key) != 0.0)
    return torch.stack(found).all(0)


def strays_from_weights(probe: Probe, kv_head: Tensor) -> float:
    """How far the output is from weights @ value, relative to the output: 0 up to rounding for any attention."""
    query, key = probe.normal(draw=3)
    generator = torch.Generator().manual_seed(7)
    value = torch.randn(probe.values().shape, generator=generator, dtype=torch.float64).to(probe.values())
    silent = probe.output(query, key, probe.values())
    met = value.detach().to(device="cpu", dtype=torch.float64)[:, kv_head]
    made = probe.weights(query, key) @ met + silent
    actual = probe.output(query, key, value)
    known = actual.isfinite() & made.isfinite()
    size = float(actual[known].abs().max()) if bool(known.any()) else 0.0
    return float((actual - made)[known].abs().max()) / size if size > 0.0 else 0.0
