"""Prefix language models: the question is read both ways, the answer is written causally.

Raffel et al. 2020 (T5, arXiv:1910.10683, 3.2.1) and Dong et al. 2019 (UniLM, arXiv:1905.03197): the first tokens
attend to each other as in an encoder, the rest as in a decoder, in one stack.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._align import Align, known_align, require_align, shift
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed
from regard.masks._numbers import whole


@dataclass(frozen=True, init=False, repr=False)
class PrefixLM(Mask):
    """Keeps the first `length` keys for every query, and for the rest what `Causal(align)` keeps.

    Args:
        length: tokens in the prefix.
        align: as in Causal; it may be left out when q_len == kv_len.

    Raises:
        MaskError: a `length` that is negative, no integer, or above kv_len; an unknown `align`; or none,
            laid over q_len != kv_len.
    """

    length: int
    align: Align | None

    def __init__(self, length: int, *, align: Align | None = None) -> None:
        assign(self, length=whole("PrefixLM length", length), align=known_align("PrefixLM", align))

    def check(self, q_len: int, kv_len: int) -> None:
        require_align("PrefixLM", self.align, q_len, kv_len)
        if self.length > kv_len:
            raise MaskError(
                "PrefixLM length",
                expected=f"at most kv_len {kv_len}",
                got=str(self.length),
                do="Give the length of this text's prefix.",
            )

    def keep(self, at: Indices) -> Tensor:
        return (at.key < self.length) | (at.key <= at.query + shift(self.align, at.q_len, at.kv_len))

    def block_kinds(self, at: Blocks2d) -> Tensor:
        beside = shift(self.align, at.q_len, at.kv_len)
        return kinds_of(
            (at.key_first < self.length) | (at.key_first <= at.query_last + beside),
            (at.key_last < self.length) | (at.key_last <= at.query_first + beside),
        )

    def intervals(self, q_len: int, kv_len: int) -> Tensor:
        beside = torch.arange(q_len).view(1, 1, 1, -1) + shift(self.align, q_len, kv_len)
        return packed(torch.zeros_like(beside), (beside + 1).clamp(min=self.length), kv_len)


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(PrefixLM(20))
