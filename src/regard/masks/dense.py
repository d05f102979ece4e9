"""A mask written out: any bool tensor, True = may attend.

What `torch.nn.functional.scaled_dot_product_attention` takes as a bool `attn_mask`. It costs memory for every
pair; the other masks do not, so take one of those where one says what is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._numbers import numbers_of
from regard.masks.keys import share


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Dense(Mask):
    """Keeps the pairs at which `tensor` is True.

    Args:
        tensor: bool (q_len, kv_len), or (batch or 1, heads or 1, q_len, kv_len). It is kept, not copied:
            leave it unchanged.

    Two are equal when their tensors are.

    Raises:
        MaskError: another dtype (a number could be a weight or a bias); three dimensions (batch or
            heads?) or another number; laid over other lengths.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dtype != torch.bool:
            raise MaskError(
                "Dense mask",
                expected="a bool tensor, True = may attend",
                got=str(tensor.dtype),
                do="Take .bool() where nonzero means may attend; numbers to be added to the scores are a bias.",
            )
        if tensor.ndim not in {2, 4}:
            raise MaskError(
                "Dense mask",
                expected="shape (q_len, kv_len) or (batch or 1, heads or 1, q_len, kv_len)",
                got=str(tuple(tensor.shape)),
                do="Say which dimension the first is: mask[:, None] for one mask a sample, mask[None] for one a head.",
            )
        assign(self, tensor=tensor)

    @property
    def batch_size(self) -> int | None:
        return self._size_unless_one(-4)

    @property
    def head_count(self) -> int | None:
        return self._size_unless_one(-3)

    def _size_unless_one(self, dim: int) -> int | None:
        return None if self.tensor.ndim == 2 or self.tensor.shape[dim] == 1 else self.tensor.shape[dim]

    def check(self, q_len: int, kv_len: int) -> None:
        if tuple(self.tensor.shape[-2:]) != (q_len, kv_len):
            raise MaskError(
                "Dense mask",
                expected=f"(q_len, kv_len) = {(q_len, kv_len)} in the last two dimensions",
                got=str(tuple(self.tensor.shape)),
                do="Build it for these lengths; use Padding.from_attention_mask for a mask (batch, kv_len).",
            )

    def keep(self, at: Indices) -> Tensor:
        # The indices go to the tensor, and not the tensor to them: it may be large, on another device.
        query, key = at.query.to(self.tensor.device), at.key.to(self.tensor.device)
        if self.tensor.ndim == 2:
            return self.tensor[query, key].to(at.key.device)
        batch = at.batch.to(query.device) if self.batch_size is not None else torch.zeros_like(query)
        head = at.head.to(query.device) if self.head_count is not None else torch.zeros_like(query)
        return self.tensor[batch, head, query, key].to(at.key.device)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        if at.query_first.ndim != 4:
            return super().block_kinds(at)  # a list of rectangles: its elements are looked up
        tensor = self.tensor.cpu()[None, None] if self.tensor.ndim == 2 else self.tensor.cpu()
        ends = zip(numbers_of(at.query_first.flatten()), numbers_of(at.query_last.flatten()), strict=True)
        rows = [tensor[:, :, first : last + 1] for first, last in ends]
        if not rows:
            return super().block_kinds(at)
        some = _count(torch.stack([row.any(2) for row in rows], 2), at)
        every = _count(torch.stack([row.all(2) for row in rows], 2), at)
        return kinds_of(some > 0, every == at.key_last - at.key_first + 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dense):
            return NotImplemented
        return self.tensor.shape == other.tensor.shape and torch.equal(self.tensor.cpu(), other.tensor.cpu())

    def __hash__(self) -> int:
        return hash((Dense, self.tensor.shape))

    def __repr__(self) -> str:
        return f"Dense(bool {'x'.join(map(str, self.tensor.shape))}, {share(self.tensor)} kept)"


def _count(keys: Tensor, at: Blocks2d) -> Tensor:
    """How many of each block's keys are set: (..., kv_len) bool to (..., kv_blocks)."""
    below = torch.nn.functional.pad(keys.cumsum(-1), (1, 0))
    return below[..., at.key_last.flatten() + 1] - below[..., at.key_first.flatten()]


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    step = torch.arange(64)
    demonstrate(Dense((step[:, None] * step) % 7 < 3))
