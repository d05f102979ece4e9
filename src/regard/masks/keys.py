"""Some keys of each sample, in any pattern: what a padding mask is when the padding is not at one end.

Hugging Face's `attention_mask` and torch's `key_padding_mask` are such masks; see Padding for both. Only keys
are masked, never queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed, runs_of


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Keys(Mask):
    """Keeps these keys of each sample, for every query. `dense` is (batch, 1, q_len, kv_len).

    Args:
        real: bool (batch, kv_len), True = may be attended to. It is kept, not copied: leave it unchanged.

    Two are equal when their tensors are.

    Raises:
        MaskError: another dtype or number of dimensions; laid over another kv_len.
    """

    real: Tensor
    _below: Tensor = field(repr=False)  # _below[b, i]: how many of sample b's keys before i are real

    def __init__(self, real: Tensor) -> None:
        if real.dtype != torch.bool or real.ndim != 2:
            raise MaskError(
                "Keys",
                expected="a bool tensor of shape (batch, kv_len)",
                got=f"{real.dtype} of shape {tuple(real.shape)}",
                do="Take .bool() where nonzero means real; use Padding(lengths) for plain lengths.",
            )
        count = real.long().cpu().cumsum(1)
        assign(self, real=real, _below=torch.cat([count.new_zeros(real.shape[0], 1), count], 1))

    @property
    def batch_size(self) -> int:
        return self.real.shape[0]

    def check(self, q_len: int, kv_len: int) -> None:
        if self.real.shape[1] != kv_len:
            raise MaskError(
                "Keys",
                expected=f"kv_len {kv_len} keys",
                got=str(self.real.shape[1]),
                do="Give one flag for each key of this call, those in the cache included.",
            )

    def keep(self, at: Indices) -> Tensor:
        return self.real.to(at.key.device)[at.batch, at.key]

    def block_kinds(self, at: Blocks2d) -> Tensor:
        count = self._below[at.batch, at.key_last + 1] - self._below[at.batch, at.key_first]
        return kinds_of(count > 0, count == at.key_last - at.key_first + 1)

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        runs = runs_of(self.real.cpu())
        if runs is None:
            return None
        start, end = runs
        each = torch.zeros(q_len, dtype=torch.int64)  # every query sees the same
        return packed(start + each, end + each, kv_len)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keys):
            return NotImplemented
        return self.real.shape == other.real.shape and torch.equal(self.real.cpu(), other.real.cpu())

    def __hash__(self) -> int:
        return hash((Keys, self.real.shape))

    def __repr__(self) -> str:
        batch, kv_len = self.real.shape
        return f"Keys(bool {batch}x{kv_len}, {share(self.real)} kept)"


def share(kept: Tensor) -> str:
    """How much of a bool tensor is True, as "40%"; a trace is never shown as nothing, nor a gap as all."""
    if torch.compiler.is_compiling():  # the numbers are not known, and an error must be worded all the same
        return "some"
    if kept.numel() == 0:
        return "0%"
    percent = 100 * int(kept.sum()) / kept.numel()
    shown = round(percent)
    return f"{shown}%" if shown == percent or 0 < shown < 100 else "<1%" if shown == 0 else ">99%"


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(Keys(torch.arange(64)[None] % 5 != 0))
