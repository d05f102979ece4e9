"""Segments of a text that is read piece by piece: how many tokens of each row are real, and what is kept of them.

A memory of fixed capacity stands before the segment, its newest entry last: entry `capacity - 1` is the token before
the segment's first, and the oldest ones of a young dialogue are empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard._errors import UnsupportedError
from regard.masks import Keys, Mask
from regard.nn._real_tokens import real_tokens


def segment_lengths(name: str, mask: Mask | Tensor | None, x: Tensor) -> Tensor | None:
    """How many tokens of each row are real, int64 (batch,), padding standing on the right; None for all.

    Raises:
        UnsupportedError: a mask of pairs, or padding elsewhere, which would stand between a token and its memory.
        MaskError: a mask for another batch or length.
    """
    real = real_tokens(name, mask, x)
    if real is None:
        return None
    lengths = real.sum(1)
    if not torch.compiler.is_compiling() and not torch.equal(real, _first(lengths, x.shape[1])):
        raise UnsupportedError(
            {name: "it reads texts segment by segment, and padding would stand between a token and what came before"},
            do="Put the padding on the right: Padding(lengths), or a bool tensor (batch, length) that ends in False.",
        )
    return lengths


def read_by(lengths: Tensor | None, x: Tensor) -> Tensor | int:
    """How many tokens each row has read in this segment."""
    return x.shape[1] if lengths is None else lengths


def pushed(kept: Tensor, new: Tensor, lengths: Tensor | None, *, dim: int = 1) -> Tensor:
    """The newest entries of `kept` and after it `new`, as many as `kept` has, along `dim`; the batch is dimension 0."""
    capacity, count = kept.shape[dim], new.shape[dim]
    if lengths is None:
        if count >= capacity:
            return new.narrow(dim, count - capacity, capacity).clone()
        return torch.cat([kept.narrow(dim, count, capacity - count), new], dim)
    places = torch.arange(capacity, device=new.device) + lengths.unsqueeze(1)
    shape = [1] * new.dim()
    shape[0], shape[dim] = places.shape[0], capacity
    return torch.take_along_dim(torch.cat([kept, new], dim), places.view(shape), dim)


def remembered(seen: Tensor, capacity: int) -> Tensor:
    """Bool (batch, capacity): the entries that are not empty."""
    return torch.arange(capacity, device=seen.device) >= capacity - seen.unsqueeze(1)


def memory_and_segment(seen: Tensor, capacity: int, lengths: Tensor | None, length: int) -> Mask:
    """Which keys are there when the memory stands before the segment."""
    segment = seen.new_ones((seen.shape[0], length), dtype=torch.bool) if lengths is None else _first(lengths, length)
    return Keys(torch.cat([remembered(seen, capacity), segment], 1))


def _first(lengths: Tensor, length: int) -> Tensor:
    """Bool (batch, length): the first `lengths` of each row."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)
