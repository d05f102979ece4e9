"""Tokens that are a multiple of `step` apart, side by side: a dilated text is `step` plain texts.

`fold` cuts (batch, length, ...) into its residue classes, (batch * step, ceil(length / step), ...): row b * step + r
holds the tokens r, r + step, r + 2 step, ... of sample b, with zeros at the end of those that are one shorter. `unfold`
puts them back. A distance of `step` is a distance of 1 there.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def fold(tokens: Tensor, step: int) -> Tensor:
    """(batch, length, ...) to (batch * step, ceil(length / step), ...)."""
    batch, length = tokens.shape[:2]
    missing = -length % step
    if missing:
        tokens = functional.pad(tokens, (0, 0) * (tokens.dim() - 2) + (0, missing))
    most = (length + missing) // step
    classes = tokens.reshape(batch, most, step, *tokens.shape[2:])
    return classes.transpose(1, 2).reshape(batch * step, most, *tokens.shape[2:])


def unfold(folded: Tensor, step: int, length: int) -> Tensor:
    """(batch * step, ceil(length / step), ...) back to (batch, length, ...)."""
    batch = folded.shape[0] // step
    classes = folded.reshape(batch, step, *folded.shape[1:]).transpose(1, 2)
    return classes.reshape(batch, step * folded.shape[1], *folded.shape[2:])[:, :length]


def folded_lengths(length: int, step: int) -> list[int]:
    """How many tokens each of the `step` classes has."""
    return [(length - first + step - 1) // step for first in range(step)]
