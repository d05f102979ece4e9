"""Global tokens: a few tokens that see everything and are seen by all.

The other half of Longformer (Beltagy et al. 2020, arXiv:2004.05150) and of the guide's 3.1:
`SlidingWindow(256) | GlobalTokens(16)`. Whatever two tokens must tell each other over a long distance passes
through a global one in two layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._align import Align, known_align, shift
from regard.masks._base import Mask, assign
from regard.masks._block_map import kinds_of
from regard.masks._indices import Blocks2d, Indices
from regard.masks._intervals import packed, runs_of
from regard.masks._numbers import Integers, whole, wholes


@dataclass(frozen=True, init=False, repr=False)
class GlobalTokens(Mask):
    """Keeps the rows and the columns of these tokens: they see every key, and every query sees them.

    Args:
        tokens: how many of the first tokens are global, or the indices of those that are (a list, a tuple or
            a 1-D int tensor, in any order).
        align: which token a query is. None and "top_left" take its index as it is; "bottom_right" makes
            the last query the last token, for decoding with a cache.

    Raises:
        MaskError: an index that is negative or no integer, or that neither a query nor a key has; an
            unknown `align`.
    """

    tokens: tuple[int, ...]
    align: Align | None
    _below: Tensor = field(repr=False, compare=False)  # _below[i]: how many tokens have an index below i

    def __init__(self, tokens: int | Integers, *, align: Align | None = None) -> None:
        if isinstance(tokens, Iterable):
            chosen = tuple(sorted(set(wholes("GlobalTokens tokens", tokens))))
        else:
            chosen = tuple(range(whole("GlobalTokens count", tokens)))
        flags = torch.zeros(chosen[-1] + 2 if chosen else 1, dtype=torch.int64)
        flags[torch.tensor(chosen, dtype=torch.int64) + 1] = 1
        assign(self, tokens=chosen, align=known_align("GlobalTokens", align), _below=flags.cumsum(0))

    def check(self, q_len: int, kv_len: int) -> None:
        if self.tokens and self.tokens[-1] >= max(q_len, kv_len):
            raise MaskError(
                "GlobalTokens tokens",
                expected=f"indices below {max(q_len, kv_len)}, for q_len {q_len} and kv_len {kv_len}",
                got=str(self.tokens[-1]),
                do="Name tokens of this text, or fewer.",
            )

    def keep(self, at: Indices) -> Tensor:
        row = at.query + shift(self.align, at.q_len, at.kv_len)
        return (self._count(row, row) > 0) | (self._count(at.key, at.key) > 0)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        beside = shift(self.align, at.q_len, at.kv_len)
        rows = self._count(at.query_first + beside, at.query_last + beside)
        cols = self._count(at.key_first, at.key_last)
        return kinds_of(
            (rows > 0) | (cols > 0),
            (rows == at.query_last - at.query_first + 1) | (cols == at.key_last - at.key_first + 1),
        )

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        runs = runs_of(self._below.diff()[None, :kv_len] > 0)
        if runs is None:
            return None
        row = torch.arange(q_len) + shift(self.align, q_len, kv_len)
        sees_all = self._count(row, row) > 0
        start, end = runs
        whole = torch.zeros_like(end)  # a global query has one run, of all keys
        whole[:, :, 0] = kv_len
        return packed(torch.where(sees_all, 0, start), torch.where(sees_all, whole, end), kv_len)

    def _count(self, first: Tensor, last: Tensor) -> Tensor:
        """How many global tokens there are from `first` to `last`, which may lie outside the text."""
        below, end = self._below.to(first.device), self._below.numel() - 1
        return below[(last + 1).clamp(0, end)] - below[first.clamp(0, end)]

    def __repr__(self) -> str:
        """The call that makes an equal mask, with the count alone when the tokens are the first ones."""
        count = len(self.tokens)
        told = repr(count) if self.tokens == tuple(range(count)) else repr(list(self.tokens))
        return f"GlobalTokens({told})" if self.align is None else f"GlobalTokens({told}, align={self.align!r})"


if __name__ == "__main__":
    from regard.masks._draw import demonstrate

    demonstrate(GlobalTokens([0, 1, 32]))
