"""Which blocks of keys each block of queries sees, as a table: any block-sparse pattern, for each head if need be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regard._errors import MaskError
from regard.masks import Indices, Mask
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d


@dataclass(frozen=True, eq=False)
class BlockTable(Mask):
    """Keeps the pairs whose blocks the table keeps.

    Args:
        kept: bool (heads or 1, query blocks, key blocks). It is kept, not copied: leave it unchanged.
        size: tokens in a block; the last one may be shorter.
    """

    kept: Tensor
    size: int

    @property
    def head_count(self) -> int | None:
        return None if self.kept.shape[0] == 1 else self.kept.shape[0]

    def check(self, q_len: int, kv_len: int) -> None:
        blocks = tuple(-(-length // self.size) for length in (q_len, kv_len))
        if tuple(self.kept.shape[1:]) != blocks:
            raise MaskError(
                "table of blocks",
                expected=f"{blocks} blocks of {self.size} tokens, for q_len {q_len} and kv_len {kv_len}",
                got=str(tuple(self.kept.shape[1:])),
                do="Build it for this length.",
            )

    def keep(self, at: Indices) -> Tensor:
        kept = self.kept.to(at.key.device)
        return kept[self._table_of(at.head), self._block(at.query), self._block(at.key)]

    def block_kinds(self, at: Blocks2d) -> Tensor:
        top, bottom = self._block(at.query_first), self._block(at.query_last) + 1
        left, right = self._block(at.key_first), self._block(at.key_last) + 1
        sums = functional.pad(self.kept.to(at.head.device, torch.int64).cumsum(1).cumsum(2), (1, 0, 1, 0))
        head = self._table_of(at.head)
        count = sums[head, bottom, right] - sums[head, top, right] - sums[head, bottom, left] + sums[head, top, left]
        return kinds_of(count > 0, count == (bottom - top) * (right - left))

    def _block(self, index: Tensor) -> Tensor:
        return index.div(self.size, rounding_mode="floor")

    def _table_of(self, head: Tensor) -> Tensor:
        return head if self.head_count is not None else torch.zeros_like(head)
