"""Numbers and layouts of the cases of `verify`, by name, so that the lines of a reproduction can name them too."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from regard.positions import Position

P = TypeVar("P", bound=Position)


def drawn(seed: int, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unit-normal numbers, drawn in float64 and rounded to `dtype`: for one seed the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)


def drawn_tables(position: P, seed: int, dtype: torch.dtype = torch.float32) -> P:
    """The position with unit-normal numbers in everything that it learns, in `dtype`."""
    for number, parameter in enumerate(position.parameters()):
        parameter.data = drawn(seed + number, *parameter.shape)
    return position.to(dtype)


def heads_last(tensor: Tensor) -> Tensor:
    """The same numbers as (batch, length, heads, head_dim) in memory, as a projection leaves them."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def last_stride_not_one(tensor: Tensor) -> Tensor:
    """The same numbers as (batch, heads, head_dim, length) in memory."""
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def every_other(tensor: Tensor) -> Tensor:
    """The same numbers in every second row of a tensor whose other rows hold 1000."""
    return torch.stack([tensor, torch.full_like(tensor, 1e3)], dim=3).flatten(2, 3)[:, :, ::2]


def shared_by_heads(tensor: Tensor) -> Tensor:
    """The numbers of the first head for all, with a stride of 0."""
    return tensor[:, :1].expand(tensor.shape)


def beside_boundary(tensor: Tensor) -> Tensor:
    """The same numbers, one element beside where an allocation begins."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)


LAYOUTS = (heads_last, last_stride_not_one, every_other, shared_by_heads, beside_boundary)
"""How tensors may lie in memory."""
