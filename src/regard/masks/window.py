"""Sliding-window attention: each token sees its neighbourhood.

The local part of Longformer (Beltagy et al. 2020, arXiv:2004.05150) and of the guide's 3.1. The cost grows
with the length instead of its square. Libraries disagree on whether a window counts the token itself and
whether it reaches both ways; here both sides are said in tokens: `SlidingWindow(128, 0)` sees 128 tokens
before and itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.masks._align import Align, known_align, shift
from regard.masks._band import Band
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._numbers import whole


@dataclass(frozen=True, init=False, repr=False)
class SlidingWindow(Mask):
    """Keeps -before <= key - query <= after.

    Args:
        before: how many keys before its own a query sees; 0 for none.
        after: how many after it; None takes the same as `before`.
        align: which key is a query's own. None and "top_left" compare the indices as they are;
            "bottom_right" puts the last query beside the last key, for decoding with a cache.

    A window wider than the text is full attention; `SlidingWindow(0)` keeps the diagonal.

    Raises:
        MaskError: a size that is negative or no integer; an unknown `align`.
    """

    before: int
    after: int
    align: Align | None

    def __init__(self, before: int, after: int | None = None, *, align: Align | None = None) -> None:
        before = whole("SlidingWindow before", before)
        after = before if after is None else whole("SlidingWindow after", after)
        assign(self, before=before, after=after, align=known_align("SlidingWindow", align))

    def keep(self, at: Indices) -> Tensor:
        distance = at.key - (at.query + shift(self.align, at.q_len, at.kv_len))
        return (distance >= -self.before) & (distance <= self.after)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        beside = shift(self.align, at.q_len, at.kv_len)
        # Every distance between these two occurs in the rectangle.
        nearest = at.key_first - (at.query_last + beside)
        farthest = at.key_last - (at.query_first + beside)
        return kinds_of(
            (nearest <= self.after) & (farthest >= -self.before),
            (nearest >= -self.before) & (farthest <= self.after),
        )

    def band(self, q_len: int, kv_len: int) -> Band:
        return Band(self.before, self.after, shift(self.align, q_len, kv_len))


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(SlidingWindow(8, 0))
