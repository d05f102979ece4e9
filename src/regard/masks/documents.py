"""Packed texts: several documents in one row, none of which sees another.

Packing short texts end to end wastes no padding (Krell et al. 2021, arXiv:2107.02027); variable-length kernels
know it as `cu_seqlens`. Combine with `Causal()` for packed language-model training.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed
from regard.masks._numbers import Integers, wholes


@dataclass(frozen=True, init=False, repr=False)
class Documents(Mask):
    """Keeps the pairs within one document. `Documents([10, 22])`: two texts, of 10 and 22 tokens.

    Args:
        lengths: tokens in each document, in order (a list, a tuple or a 1-D int tensor). A document
            may have none.

    Raises:
        MaskError: a length that is negative or no integer; laid over lengths that they do not sum to.
    """

    lengths: tuple[int, ...]
    _document: Tensor = field(repr=False, compare=False)  # the document of each token

    def __init__(self, lengths: Integers) -> None:
        checked = wholes("Documents lengths", lengths)
        document = torch.repeat_interleave(torch.tensor(checked, dtype=torch.int64))
        assign(self, lengths=checked, _document=document)

    @classmethod
    def from_offsets(cls, offsets: Integers, *, total: int | None = None) -> Documents:
        """From where each document starts and the last one ends: [0, 10, 32] is Documents([10, 22]).

        Args:
            offsets: the `cu_seqlens` of variable-length kernels, int32 or int64.
            total: tokens in the row, when known; the offsets must end there.

        Raises:
            MaskError: offsets that do not start at 0, that decrease, or that do not end at `total`.
        """
        ends = wholes("Documents offsets", offsets)
        if not ends or ends[0] != 0:
            raise MaskError(
                "Documents offsets",
                expected="a first offset of 0",
                got=str(ends[0]) if ends else "no offsets",
                do="Give where each document starts, and where the last one ends.",
            )
        lengths = [end - start for start, end in itertools.pairwise(ends)]
        for place, length in enumerate(lengths):
            if length < 0:
                raise MaskError(
                    "Documents offsets",
                    expected="offsets that never decrease",
                    got=f"{ends[place]} before {ends[place + 1]}",
                    do="Give running totals; for plain lengths use Documents(lengths).",
                )
        if total is not None and ends[-1] != total:
            raise MaskError(
                "Documents offsets",
                expected=f"a last offset of {total}, the total",
                got=str(ends[-1]),
                do="End with the number of tokens in the row.",
            )
        return cls(lengths)

    def check(self, q_len: int, kv_len: int) -> None:
        total = self._document.numel()
        if not q_len == kv_len == total:
            raise MaskError(
                "Documents lengths",
                expected=f"a sum equal to q_len {q_len} and kv_len {kv_len}",
                got=str(total),
                do="Make what is left over (padding, say) a document of its own.",
            )

    def keep(self, at: Indices) -> Tensor:
        document = self._document.to(at.key.device)
        return document[at.query] == document[at.key]

    def block_kinds(self, at: Blocks2d) -> Tensor:
        top, bottom = self._document[at.query_first], self._document[at.query_last]
        left, right = self._document[at.key_first], self._document[at.key_last]
        # Documents are in order, so those of a block are the ones from its first to its last.
        return kinds_of((top <= right) & (left <= bottom), (top == right) & (left == bottom))

    def intervals(self, q_len: int, kv_len: int) -> Tensor:
        length = torch.tensor(self.lengths, dtype=torch.int64)
        end = length.cumsum(0)
        of_token = self._document.view(1, 1, 1, -1)
        return packed((end - length)[of_token], end[of_token], kv_len)


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(Documents([10, 22, 5, 27]))
