"""Block-diagonal attention: the text is cut into equal pieces, and each piece sees itself.

The "blockwise" attention of Qiu et al. 2019 (arXiv:1911.02972) in its plain form, and the window attention of
Swin (Liu et al. 2021) and MaxViT on one axis. It is the cheapest sparse mask, and alone it never lets one piece
hear of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.masks._align import Align, known_align, shift
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed
from regard.masks._numbers import whole


@dataclass(frozen=True, init=False, repr=False)
class Blocks(Mask):
    """Keeps the pairs within one block of `size` tokens; the last block may be shorter.

    Args:
        size: tokens in a block.
        align: which token a query is. None and "top_left" take its index as it is; "bottom_right" makes
            the last query the last token, for decoding with a cache.

    Raises:
        MaskError: `size` below 1 or no integer; an unknown `align`.
    """

    size: int
    align: Align | None

    def __init__(self, size: int, *, align: Align | None = None) -> None:
        assign(self, size=whole("Blocks size", size, least=1), align=known_align("Blocks", align))

    def keep(self, at: Indices) -> Tensor:
        row = at.query + shift(self.align, at.q_len, at.kv_len)
        return self._block(row) == self._block(at.key)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        beside = shift(self.align, at.q_len, at.kv_len)
        top, bottom = self._block(at.query_first + beside), self._block(at.query_last + beside)
        left, right = self._block(at.key_first), self._block(at.key_last)
        return kinds_of((top <= right) & (left <= bottom), (top == right) & (left == bottom))

    def intervals(self, q_len: int, kv_len: int) -> Tensor:
        row = torch.arange(q_len).view(1, 1, 1, -1) + shift(self.align, q_len, kv_len)
        start = self._block(row) * self.size
        return packed(start, start + self.size, kv_len)

    def _block(self, index: Tensor) -> Tensor:
        return index.div(self.size, rounding_mode="floor")


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(Blocks(12))
