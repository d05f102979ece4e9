"""Random numbers that belong to an example, whichever process draws them and in whatever company.

A generator gives the n-th number to whoever asks n-th, so a batch that is split over processes would be drawn
otherwise. Here the number of an example is mixed with the seed (SplitMix64's finaliser: Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators"), as in counter-based generators.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB as signed numbers; products wrap around."""


def uniform(numbers: Tensor, *, seed: int, stream: int) -> Tensor:
    """From 0 to below 1, float32 of the shape of `numbers` (int64): a pure function of number, seed and stream.

    `stream` tells one use from another: what decides the flip must not decide the shift as well.
    """
    bits = _mixed(numbers + _mixed(torch.tensor((seed << 16) + stream)))
    return (_shifted(bits, 40).to(torch.float32)) * 2.0**-24


def integers(numbers: Tensor, below: int, *, seed: int, stream: int) -> Tensor:
    """From 0 to below `below`, int64; see `uniform`."""
    return (uniform(numbers, seed=seed, stream=stream) * below).to(torch.int64).clamp(max=below - 1)


def _mixed(numbers: Tensor) -> Tensor:
    bits = (numbers + 1) * _STEP
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
