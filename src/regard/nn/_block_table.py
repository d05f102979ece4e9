"""Which blocks of keys each block of queries sees, as a table: any block-sparse pattern, for each head if need be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks import Indices, Mask


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
        row = at.query.div(self.size, rounding_mode="floor")
        col = at.key.div(self.size, rounding_mode="floor")
        head = at.head if self.head_count is not None else torch.zeros_like(at.head)
        return kept[head, row, col]
