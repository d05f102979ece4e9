"""Where a mask is asked: at pairs of indices, or at rectangles of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Indices:
    """Pairs: index tensors that broadcast to (batch, heads, queries, keys), and the lengths they index into."""

    batch: Tensor
    head: Tensor
    query: Tensor
    key: Tensor
    q_len: int
    kv_len: int


@dataclass(frozen=True)
class Blocks2d:
    """Rectangles of pairs: first and last index (inclusive) of their queries and of their keys.

    All six are int64 tensors that broadcast together: a grid of blocks has batch (batch, 1, 1, 1), head
    (1, heads, 1, 1), queries (1, 1, q_blocks, 1) and keys (1, 1, 1, kv_blocks); a list of n rectangles
    has six tensors of shape (n,). No rectangle is empty.
    """

    batch: Tensor
    head: Tensor
    query_first: Tensor
    query_last: Tensor
    key_first: Tensor
    key_last: Tensor
    q_len: int
    kv_len: int

    @property
    def shape(self) -> torch.Size:
        """The shape that the tensors broadcast to."""
        # Not torch.broadcast_shapes, which imports sympy: half a second.
        tensors = (self.batch, self.head, self.query_first, self.key_first)
        return cast("Any", torch).broadcast_tensors(*tensors)[0].shape


def block_grid(batch: int, heads: int, q_len: int, kv_len: int, size: int) -> Blocks2d:
    """Every (size x size) block of a (q_len, kv_len) mask; the last ones may be shorter."""
    query_first = torch.arange(0, q_len, size).view(1, 1, -1, 1)
    key_first = torch.arange(0, kv_len, size).view(1, 1, 1, -1)
    return Blocks2d(
        batch=torch.arange(batch).view(-1, 1, 1, 1),
        head=torch.arange(heads).view(1, -1, 1, 1),
        query_first=query_first,
        query_last=(query_first + size - 1).clamp(max=q_len - 1),
        key_first=key_first,
        key_last=(key_first + size - 1).clamp(max=kv_len - 1),
        q_len=q_len,
        kv_len=kv_len,
    )
