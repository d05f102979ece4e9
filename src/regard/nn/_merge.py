"""Attention over several sets of keys that have none in common, from attention over each.

    output = sum_i exp(lse_i - lse) output_i,   lse = log sum_i exp(lse_i)

where lse_i is the log of a set's normaliser (Milakov and Gimelshein 2018, arXiv:1805.02867). Exact but for rounding; a
query that sees nothing of any set has output 0.

The normalisers of `regard.attention` are float32 for every dtype, so in float64 the shares, and with them the output,
are right to about 1e-7 of it and not to 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def merged(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """From pairs of output (..., head_dim) and lse (...), all of one shape; in the dtype of the outputs."""
    lses = torch.stack([lse for _, lse in parts])
    # A constant of each row, which has no gradient; where all are -inf, any number serves.
    largest = lses.detach().amax(0)
    shares = (lses - largest.where(largest > -math.inf, 0.0)).exp()
    shares = shares / shares.sum(0).where(largest > -math.inf, 1.0)
    total = None
    for (output, _), share in zip(parts, shares.unbind(0), strict=True):
        term = output * share.unsqueeze(-1).to(output.dtype)
        total = term if total is None else total + term
    if total is None:
        raise AssertionError("there is nothing to merge")
    return total
