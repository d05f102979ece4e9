"""What a mask is: which pairs (query, key) may attend. True = may attend.

A mask is an immutable value. It answers two questions, both by formula:

* `keep(at)`: may these queries attend to these keys? Elementwise, for any index tensors, so the
  same definition serves a dense tensor, one tile of it, and FlexAttention's `mask_mod`;
* `block_kinds(at)`: is a rectangle of pairs empty, partly or wholly allowed? From the end points of
  the rectangle, so that block lists never build a (q_len, kv_len) object.

Where it has a shorter form than its pairs it says so, for kernels: `band` and `intervals`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import torch
from torch import Tensor

from regard._errors import MaskError
from regard.masks._band import Band
from regard.masks._block_map import EMPTY, FULL, UNSURE, BlockMap
from regard.masks._indices import Blocks2d, Indices, block_grid
from regard.masks._intervals import complement, intersection, limited, of_band, union
from regard.masks._numbers import whole
from regard.masks._refine import refine


class Mask(ABC):
    """Which pairs (query, key) may attend. Combine with `&`, `|`, `~`."""

    @property
    def batch_size(self) -> int | None:
        """The batch this mask was made for, or None when it is the same for every sample."""
        return None

    @property
    def head_count(self) -> int | None:
        """The number of heads this mask was made for, or None when it is the same for every head."""
        return None

    def check(self, q_len: int, kv_len: int) -> None:
        """Raise MaskError when this mask cannot be laid over (q_len, kv_len)."""

    @abstractmethod
    def keep(self, at: Indices) -> Tensor:
        """Bool tensor, broadcast from `at`: True where the query may attend to the key."""

    def block_kinds(self, at: Blocks2d) -> Tensor:
        """int8 tensor, broadcast from `at`: what each rectangle of pairs holds.

        EMPTY, PARTIAL or FULL where the formula decides, UNSURE where only the elements can tell.
        """
        return torch.full(at.shape, UNSURE, dtype=torch.int8)

    def band(self, q_len: int, kv_len: int) -> Band | None:
        """The band of distances that is this mask over these lengths, or None when it is no band."""
        return None

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        """The runs of keys that each query may attend to, or None when some query has many (see `_intervals.py`).

        int32 (batch or 1, heads or 1, count, 2, q_len): start and end (exclusive) of each run, ascending and
        apart from each other; a query with fewer has 0, 0 at the end. The lengths are not validated.
        """
        band = self.band(q_len, kv_len)
        return None if band is None else of_band(band, q_len, kv_len)

    @property
    def conjuncts(self) -> tuple[Mask, ...]:
        """The masks that this one is the intersection of: those joined by `&`, or itself alone."""
        return (self,)

    def tile(self, rows: Tensor, cols: Tensor, q_len: int, kv_len: int) -> Tensor:
        """`dense(q_len, kv_len)` restricted to these query rows and key columns (1-D int64 indices).

        Returns (rows, cols), or (batch, heads, rows, cols) with either 1 where the mask does not
        depend on it. The lengths are those of the whole problem; nothing is validated.
        """
        batch, heads = self._batch_and_heads
        at = Indices(
            batch=torch.arange(batch, device=rows.device).view(-1, 1, 1, 1),
            head=torch.arange(heads, device=rows.device).view(1, -1, 1, 1),
            query=rows.view(1, 1, -1, 1),
            key=cols.view(1, 1, 1, -1),
            q_len=q_len,
            kv_len=kv_len,
        )
        kept = self.keep(at).expand(batch, heads, rows.numel(), cols.numel())
        return kept[0, 0] if self.batch_size is None and self.head_count is None else kept

    @property
    def _batch_and_heads(self) -> tuple[int, int]:
        batch, heads = self.batch_size, self.head_count
        return 1 if batch is None else batch, 1 if heads is None else heads

    def dense(self, q_len: int, kv_len: int, *, device: torch.device | str | None = None) -> Tensor:
        """The whole mask as a bool tensor, True = may attend.

        Shape (q_len, kv_len), or (batch, heads, q_len, kv_len) with either 1 when it depends on the
        sample or the head. Raises MaskError when the lengths do not fit.
        """
        self.check(q_len, kv_len)
        rows = torch.arange(q_len, device=device)
        cols = torch.arange(kv_len, device=device)
        return self.tile(rows, cols, q_len, kv_len).contiguous()

    def blocks(self, q_len: int, kv_len: int, size: int = 128) -> BlockMap:
        """Which (size x size) blocks are empty, partly or wholly allowed, found from the structure.

        Cost: O((q_len / size) * (kv_len / size)) for the structure, and at most size**2 for each block
        that only its elements can decide. The last blocks may be shorter than `size`. Raises MaskError
        when the lengths do not fit.
        """
        size = whole("block size", size, least=1)
        self.check(q_len, kv_len)
        batch, heads = self._batch_and_heads
        at = block_grid(batch, heads, q_len, kv_len, size)
        kinds = self.block_kinds(at).expand(at.shape)
        return BlockMap(kinds=refine(self, kinds, at).contiguous(), size=size, q_len=q_len, kv_len=kv_len)

    def draw(
        self,
        path: str | Path | None = None,
        *,
        q_len: int = 64,
        kv_len: int | None = None,
        title: str | None = None,
        block_size: int | None = None,
    ) -> object:
        """Draw the mask with matplotlib, both axes labelled; write it to `path` (.png, .svg, .pdf).

        `block_size` adds the lines between blocks. Returns the matplotlib figure. Needs the optional
        group `plot`; raises DependencyError without it, DataError when `path` cannot be written.
        """
        from regard.masks._draw import draw_mask

        kv_len = q_len if kv_len is None else kv_len
        return draw_mask(self, path, q_len=q_len, kv_len=kv_len, title=title, block_size=block_size)

    def __and__(self, other: Mask) -> Mask:
        return _Both(self, other) if _is_mask(other) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return _Either(self, other) if _is_mask(other) else NotImplemented

    def __invert__(self) -> Mask:
        return self.mask if isinstance(self, _Not) else _Not(self)

    def __bool__(self) -> bool:
        # `Causal() and Padding(...)` would silently drop the first of the two.
        raise TypeError("a mask is neither true nor false: combine masks with & | ~, and compare with `is None`")

    def __repr__(self) -> str:
        """The call that makes an equal mask; options left at None are left out."""
        if not is_dataclass(self):
            return super().__repr__()
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.repr}
        told = [f"{name}={value!r}" for name, value in named.items() if value is not None]
        return f"{type(self).__name__}({', '.join(told)})"


def assign(mask: Mask, **values: object) -> None:
    """Set the fields of a mask under construction; afterwards they are frozen."""
    for name, value in values.items():
        object.__setattr__(mask, name, value)


def _is_mask(other: object) -> bool:
    return isinstance(other, Mask)


def _agreed(what: str, left: int | None, right: int | None) -> int | None:
    if left is not None and right is not None and left != right:
        raise MaskError(
            f"masks combined with & or | differ in {what}",
            expected=f"the same {what}",
            got=f"{left} and {right}",
            do="Build both for one problem.",
        )
    return left if left is not None else right


@dataclass(frozen=True)
class _Pair(Mask):
    left: Mask
    right: Mask

    def __post_init__(self) -> None:
        _agreed("batch size", self.left.batch_size, self.right.batch_size)
        _agreed("head count", self.left.head_count, self.right.head_count)

    @property
    def batch_size(self) -> int | None:
        return _agreed("batch size", self.left.batch_size, self.right.batch_size)

    @property
    def head_count(self) -> int | None:
        return _agreed("head count", self.left.head_count, self.right.head_count)

    def check(self, q_len: int, kv_len: int) -> None:
        self.left.check(q_len, kv_len)
        self.right.check(q_len, kv_len)

    def _sides(self, q_len: int, kv_len: int) -> tuple[Tensor, Tensor] | None:
        left, right = self.left.intervals(q_len, kv_len), self.right.intervals(q_len, kv_len)
        return None if left is None or right is None else (left, right)


def _combined(left: Tensor, right: Tensor, *, neutral: int, absorbing: int) -> Tensor:
    """A neutral side leaves the other as it is, an absorbing one decides, and two partial ones may do anything."""
    kinds = torch.where(left == neutral, right, torch.where(right == neutral, left, UNSURE))
    return torch.where((left == absorbing) | (right == absorbing), absorbing, kinds)


class _Both(_Pair):
    """The intersection: allowed by both."""

    def keep(self, at: Indices) -> Tensor:
        return self.left.keep(at) & self.right.keep(at)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        return _combined(self.left.block_kinds(at), self.right.block_kinds(at), neutral=FULL, absorbing=EMPTY)

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        sides = self._sides(q_len, kv_len)
        return None if sides is None else limited(intersection(*sides, kv_len))

    @property
    def conjuncts(self) -> tuple[Mask, ...]:
        return self.left.conjuncts + self.right.conjuncts

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


class _Either(_Pair):
    """The union: allowed by one or the other."""

    def keep(self, at: Indices) -> Tensor:
        return self.left.keep(at) | self.right.keep(at)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        return _combined(self.left.block_kinds(at), self.right.block_kinds(at), neutral=EMPTY, absorbing=FULL)

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        sides = self._sides(q_len, kv_len)
        return None if sides is None else limited(union(*sides, kv_len))

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclass(frozen=True)
class _Not(Mask):
    """The complement: allowed where the other forbids."""

    mask: Mask

    @property
    def batch_size(self) -> int | None:
        return self.mask.batch_size

    @property
    def head_count(self) -> int | None:
        return self.mask.head_count

    def check(self, q_len: int, kv_len: int) -> None:
        self.mask.check(q_len, kv_len)

    def keep(self, at: Indices) -> Tensor:
        return ~self.mask.keep(at)

    def block_kinds(self, at: Blocks2d) -> Tensor:
        kinds = self.mask.block_kinds(at)
        return torch.where(kinds == FULL, EMPTY, torch.where(kinds == EMPTY, FULL, kinds))

    def intervals(self, q_len: int, kv_len: int) -> Tensor | None:
        runs = self.mask.intervals(q_len, kv_len)
        return None if runs is None else limited(complement(runs, kv_len))

    def __repr__(self) -> str:
        return f"~{self.mask!r}"
