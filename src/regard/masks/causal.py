"""Causal attention: no token sees what comes after it.

The mask of every decoder (Vaswani et al. 2017, "Attention Is All You Need", 3.2.3). With as many queries as
keys there is one meaning. With other lengths there are two, and libraries differ in which they take: so
regard asks. `bottom_right` puts the last query beside the last key, which is right for decoding with a
cache; `top_left` puts the first beside the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.masks._align import Align, known_align, require_align, shift
from regard.masks._band import Band
from regard.masks._base import Mask
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """Each query sees the key beside it and those before.

    Args:
        align: "top_left" keeps key <= query, "bottom_right" keeps key <= query + kv_len - q_len. It may be
            left out when q_len == kv_len, where both are the same.

    With "bottom_right" and q_len > kv_len the first q_len - kv_len queries see nothing.

    Raises:
        MaskError: an unknown `align`; or none, laid over q_len != kv_len.
    """

    align: Align | None = None

    def __post_init__(self) -> None:
        known_align("Causal", self.align)

    def check(self, q_len: int, kv_len: int) -> None:
        require_align("Causal", self.align, q_len, kv_len)

    def keep(self, at: Indices) -> Tensor:
        return at.key <= at.query + shift(self.align, at.q_len, at.kv_len)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        beside = shift(self.align, at.q_len, at.kv_len)
        return kinds_of(at.key_first <= at.query_last + beside, at.key_last <= at.query_first + beside)

    def band(self, q_len: int, kv_len: int) -> Band:
        return Band(None, 0, shift(self.align, q_len, kv_len))


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(Causal())
