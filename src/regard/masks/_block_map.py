"""The answer of `Mask.blocks`: which key blocks a query block needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EMPTY, PARTIAL, FULL, UNSURE = 0, 1, 2, 3


def kinds_of(some: Tensor, every: Tensor) -> Tensor:
    """int8 kinds from "some pair is allowed" and "every pair is allowed".

    The kinds are numbered so that the sum is the answer: neither is EMPTY, both are FULL.
    """
    return some.to(torch.int8) + every.to(torch.int8)


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Kinds of the (size x size) blocks of a mask.

    `kinds` is int8 (batch, heads, q_blocks, kv_blocks), batch or heads 1 where the mask does not
    depend on them: 0 = EMPTY (skip it), 1 = PARTIAL (mask inside), 2 = FULL (no mask needed).
    """

    kinds: Tensor
    size: int
    q_len: int
    kv_len: int

    @property
    def empty(self) -> Tensor:
        return self.kinds == EMPTY

    @property
    def partial(self) -> Tensor:
        return self.kinds == PARTIAL

    @property
    def full(self) -> Tensor:
        return self.kinds == FULL

    @property
    def density(self) -> float:
        """Share of blocks that must be computed; 0.0 when there are no blocks."""
        return float((~self.empty).float().mean()) if self.kinds.numel() else 0.0

    def __repr__(self) -> str:
        partial, full = int(self.partial.sum()), int(self.full.sum())
        return (
            f"BlockMap(size={self.size}, q_len={self.q_len}, kv_len={self.kv_len}: "
            f"{full} full, {partial} partial, {self.kinds.numel() - full - partial} empty)"
        )
