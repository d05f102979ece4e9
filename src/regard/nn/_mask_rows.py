"""Some rows of a mask: what a mechanism lays over a block of its queries and the keys up to the last of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.masks import Mask
from regard.masks._band import Band
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed


@dataclass(frozen=True, repr=False)
class Rows(Mask):
    """Queries `first`, `first` + 1, ... of a mask over (length, length), with as many keys as the call has.

    Args:
        mask: the whole mask.
        first: the query that comes first here.
        length: tokens of the whole text.
    """

    mask: Mask
    first: int
    length: int

    @property
    def batch_size(self) -> int | None:
        return self.mask.batch_size

    @property
    def head_count(self) -> int | None:
        return self.mask.head_count

    def check(self, q_len: int, kv_len: int) -> None:
        self.mask.check(self.length, self.length)

    def keep(self, at: Indices) -> Tensor:
        whole = Indices(
            batch=at.batch, head=at.head, query=at.query + self.first, key=at.key, q_len=self.length, kv_len=self.length
        )
        return self.mask.keep(whole)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        whole = Blocks2d(
            batch=at.batch,
            head=at.head,
            query_first=at.query_first + self.first,
            query_last=at.query_last + self.first,
            key_first=at.key_first,
            key_last=at.key_last,
            q_len=self.length,
            kv_len=self.length,
        )
        return self.mask.block_kinds(whole)

    def band(self, q_len: int, kv_len: int) -> Band | None:
        band = self.mask.band(self.length, self.length)
        return None if band is None else Band(band.before, band.after, band.offset + self.first)

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        runs = self.mask.intervals(self.length, self.length)
        if runs is None:
            return None
        start, end = runs[..., self.first : self.first + q_len].unbind(3)
        return packed(start, end, kv_len)
