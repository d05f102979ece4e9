"""A mask given as a function of indices, as FlexAttention and transformers write theirs. Evaluated where asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from regard.masks import Mask
from regard.masks._indices import Indices

PairFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) -> may attend."""


class Pairs(Mask):
    """Keeps the pairs for which the function says so. The function sees one pair at a time (torch.vmap)."""

    def __init__(self, function: PairFunction, batch: int = 1, heads: int = 1) -> None:
        self.function, self._batch, self._heads = function, batch, heads

    @property
    def batch_size(self) -> int | None:
        """See `Mask`."""
        return None if self._batch == 1 else self._batch

    @property
    def head_count(self) -> int | None:
        """See `Mask`."""
        return None if self._heads == 1 else self._heads

    def keep(self, at: Indices) -> Tensor:
        """See `Mask`."""
        every: list[Tensor] = cast("Any", torch).broadcast_tensors(at.batch, at.head, at.query, at.key)
        shape = every[0].shape
        if every[0].numel() == 0:
            return torch.zeros(shape, dtype=torch.bool, device=at.query.device)
        return torch.vmap(self.function)(*(index.flatten() for index in every)).view(shape)

    def __repr__(self) -> str:
        return f"Pairs({getattr(self.function, '__name__', 'function')})"


def inside(lengths: list[int], device: torch.device) -> Pairs:
    """Samples of these lengths in one batch: the padding behind them is neither asked nor seen."""
    ends = torch.tensor(lengths, device=device)

    def function(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        return (query < ends[batch]) & (key < ends[batch])

    return Pairs(function, batch=len(lengths))
