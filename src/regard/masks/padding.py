"""Padding: texts of unequal length in one batch, filled up with tokens that nobody may see.

Only keys are masked. A padding token as a *query* keeps its row and computes something that nobody reads; mask
the loss there. Libraries disagree on what True means in a padding mask, so the two ways to read one have two
names: `from_attention_mask` (Hugging Face, 1 = real) and `from_key_padding_mask` (torch.nn.MultiheadAttention,
True = padding).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed
from regard.masks._numbers import Integers, wholes
from regard.masks.keys import Keys

Side = Literal["right", "left"]


@dataclass(frozen=True, init=False, repr=False)
class Padding(Mask):
    """Keeps the real keys of each sample; all queries alike. `dense` is (batch, 1, q_len, kv_len).

    Args:
        lengths: real keys in each sample of the batch (a list, a tuple or a 1-D int tensor).
        side: where the padding stands: "right" of the text, or "left" as for batched generation.

    A sample of length 0 has no key at all: its rows attend to nothing.

    Raises:
        MaskError: a length that is negative, no integer, or above kv_len; an unknown `side`.
    """

    lengths: tuple[int, ...]
    side: Side
    _length: Tensor = field(repr=False, compare=False)  # `lengths` as a tensor

    def __init__(self, lengths: Integers, *, side: Side = "right") -> None:
        if side not in {"right", "left"}:
            raise MaskError(
                "Padding side", expected="'right' or 'left'", got=repr(side), do="Say where the padding stands."
            )
        checked = wholes("Padding lengths", lengths)
        assign(self, lengths=checked, side=side, _length=torch.tensor(checked, dtype=torch.int64))

    @staticmethod
    def from_attention_mask(real: Tensor) -> Keys:
        """From a Hugging Face `attention_mask` (batch, kv_len): 1 or True = real, 0 or False = padding.

        Any pattern is taken, so the answer keeps every key by itself.

        Raises:
            MaskError: another shape; a float mask; numbers other than 0 and 1.
        """
        _two_dimensional("attention_mask", real)
        if real.dtype.is_floating_point or real.dtype.is_complex:
            raise MaskError(
                "attention_mask",
                expected="bool, or integers 0 and 1",
                got=str(real.dtype),
                do="Take .bool() where 1 means real; an additive mask of 0 and -inf is a bias.",
            )
        if bool(((real != 0) & (real != 1)).any()):
            raise MaskError(
                "attention_mask",
                expected="only 0 (padding) and 1 (real)",
                got=f"values from {int(real.min())} to {int(real.max())}",
                do="Use Documents(lengths) when the numbers name packed texts.",
            )
        return Keys(real.bool())

    @staticmethod
    def from_key_padding_mask(padded: Tensor) -> Keys:
        """From the `key_padding_mask` of torch.nn.MultiheadAttention, bool (batch, kv_len): True = padding.

        Raises:
            MaskError: another shape; another dtype than bool, in which 1 could mean either.
        """
        _two_dimensional("key_padding_mask", padded)
        if padded.dtype != torch.bool:
            raise MaskError(
                "key_padding_mask",
                expected="bool, True = padding",
                got=str(padded.dtype),
                do="Take .bool() where 1 means padding, or from_attention_mask where 1 means real.",
            )
        return Keys(~padded)

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    def check(self, q_len: int, kv_len: int) -> None:
        longest = max(self.lengths, default=0)
        if longest > kv_len:
            raise MaskError(
                "Padding lengths",
                expected=f"at most kv_len {kv_len}",
                got=f"{longest} in sample {self.lengths.index(longest)}",
                do="Count real keys only, in the keys of this call.",
            )

    def keep(self, at: Indices) -> Tensor:
        real = self._length.to(at.batch.device)[at.batch]
        return at.key < real if self.side == "right" else at.key >= at.kv_len - real

    def block_kinds(self, at: Blocks2d) -> Tensor:
        real = self._length[at.batch]
        if self.side == "right":
            return kinds_of(at.key_first < real, at.key_last < real)
        return kinds_of(at.key_last >= at.kv_len - real, at.key_first >= at.kv_len - real)

    def intervals(self, q_len: int, kv_len: int) -> Tensor:
        real = self._length.view(-1, 1, 1, 1).expand(-1, 1, 1, q_len)
        nothing = torch.zeros_like(real)
        return packed(*((nothing, real) if self.side == "right" else (kv_len - real, nothing + kv_len)), kv_len)


def _two_dimensional(name: str, mask: Tensor) -> None:
    if mask.ndim != 2:
        raise MaskError(
            name,
            expected="shape (batch, kv_len)",
            got=str(tuple(mask.shape)),
            do="Use Dense(mask) for a mask over pairs (query, key).",
        )


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(Padding([40, 64]))
