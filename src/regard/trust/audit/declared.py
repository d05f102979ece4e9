"""What attention is declared to do, and at which lengths that can be seen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from regard import masks
from regard._errors import ArgumentError, RegardError
from regard.masks import Mask
from regard.positions import Position
from regard.positions._pairs import bias_of_pairs
from regard.trust.audit.mask_rules import rules_of_one

LADDER = (12, 24, 48, 96, 192, 384, 768)
"""The shortest of these at which every part of the mask forbids something is where it is looked at."""
ACROSS_BLOCKS = 70
"""One more length, so that a kernel that works in blocks of 64 has two of them."""


@dataclass(frozen=True, eq=False)
class Declared:
    """The options of `regard.attention`, with its names and meanings."""

    mask: Mask | None = None
    position: Position | None = None
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None
    sink: Tensor | None = None
    enable_gqa: bool = False

    @classmethod
    def of(cls, mask: Mask | Tensor | None = None, **options: Any) -> Declared:
        """With a bool tensor as mask made a `Dense`, and a bias made 4-D."""
        if isinstance(mask, Tensor):
            mask = masks.Dense(mask if mask.dim() in {2, 4} else mask.reshape((1,) * (4 - mask.dim()) + mask.shape))
        bias = options.pop("bias", None)
        if isinstance(bias, Tensor):
            bias = bias.reshape((1,) * (4 - bias.dim()) + tuple(bias.shape))
        return cls(mask, bias=bias, **options)

    def options(self, names: Collection[str]) -> dict[str, Any]:
        """Those of these names that are declared, for a `Question`."""
        return {name: value for name, value in self._said().items() if name in names}

    def told(self) -> dict[str, str]:
        """What is declared, in words."""
        return {
            name: f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
            for name, value in self._said().items()
        }

    def _said(self) -> dict[str, Any]:
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in named.items() if value is not None and value is not False}

    @property
    def batch(self) -> int | None:
        """The batch it was made for, or None when it suits any."""
        made_for = None if self.mask is None else self.mask.batch_size
        return made_for if made_for is not None else _unless_one(self.bias, 0)

    @property
    def heads(self) -> int | None:
        """The number of query heads it was made for, or None when it suits any."""
        known = [
            None if self.mask is None else self.mask.head_count,
            None if self.sink is None else self.sink.numel(),
            None if self.position is None else self.position.heads,
            _unless_one(self.bias, 1),
        ]
        return next((count for count in known if count is not None), None)

    def fits(self, q_len: int, kv_len: int) -> bool:
        """Whether it means something at these lengths."""
        try:
            if self.mask is not None:
                self.mask.check(q_len, kv_len)
        except RegardError:
            return False
        if self.position is not None and self.position.align is None and q_len != kv_len:
            return False
        return self.bias is None or all(
            have in (1, want) for have, want in zip(self.bias.shape[2:], (q_len, kv_len), strict=True)
        )

    def allowed(self, batch: int, heads: int, q_len: int, kv_len: int) -> Tensor:
        """Which pairs may attend, bool (batch, heads, q_len, kv_len): a bias of -inf forbids, too."""
        full = (batch, heads, q_len, kv_len)
        met = torch.ones(full, dtype=torch.bool)
        if self.mask is not None:
            met = met & self.mask.dense(q_len, kv_len)
        return met if self.bias is None else met & (self.bias.detach().cpu() != -math.inf)

    def allowed_of_one(self, q_len: int, kv_len: int) -> Tensor:
        """Which pairs may attend, for each sample and head that the declaration tells apart."""
        return self.allowed(self.batch or 1, self.heads or 1, q_len, kv_len)

    def added(self, q_len: int, kv_len: int) -> Tensor:
        """What is added to the scores, float64, broadcastable to (batch, heads, q_len, kv_len)."""
        added = torch.zeros(1, 1, q_len, kv_len, dtype=torch.float64)
        if self.bias is not None:
            added = added + self.bias.detach().to(device="cpu", dtype=torch.float64)
        if self.position is not None and "bias" in self.position.terms:
            rows = self.position.query_positions(q_len, kv_len)
            placed = bias_of_pairs(self.position, rows, torch.arange(kv_len), count=q_len + kv_len - 1)
            added = added + placed.detach().to(torch.float64)[None]
        return added

    def dots(self, query: Tensor, key: Tensor) -> Tensor:
        """The dot products of every pair, after the declared rotation."""
        if self.position is not None and "rotation" in self.position.terms:
            positions = self.position.query_positions(query.shape[2], key.shape[2])
            query = self.position.rotate(query, positions, length=key.shape[2])
            key = self.position.rotate(key, torch.arange(key.shape[2]))
        return query @ key.mT

    @property
    def joins_content(self) -> bool:
        """Whether a position adds what depends on query or value, so that scores are more than scaled dot products."""
        return self.position is not None and bool(self.position.terms & {"content", "value"})


def _unless_one(tensor: Tensor | None, dim: int) -> int | None:
    return None if tensor is None or tensor.shape[dim] == 1 else tensor.shape[dim]


def lengths_of(declared: Declared) -> tuple[tuple[int, int], ...]:
    """Where to look: (q_len, kv_len) pairs at which the declaration means something, the main one first.

    As many queries as keys, then fewer (a cache), one, and more. Raises ArgumentError when none fits.
    """
    main = next(_showing(declared), None)
    if main is None:
        raise ArgumentError(
            "lengths",
            expected="lengths at which the declared mask, position and bias mean something",
            got="none among those that were tried",
            do="Pass lengths=[(q_len, kv_len)].",
        )
    q_len, kv_len = main
    some, half = max(1, kv_len // 2 - 1), max(1, kv_len // 2)
    more = [(ACROSS_BLOCKS, ACROSS_BLOCKS), (some, kv_len), (1, kv_len), (kv_len, half)]
    # Where the declaration itself leaves queries with no key, another fault would show than the one that is looked for.
    kept = [pair for pair in more if declared.fits(*pair) and bool(declared.allowed_of_one(*pair).any(-1).all())]
    return tuple(dict.fromkeys([(q_len, kv_len), *kept]))


def _showing(declared: Declared) -> Iterator[tuple[int, int]]:
    """Pairs of lengths that fit, those at which all of the mask can be seen first."""
    fitting = [pair for pair in _tried(declared) if declared.fits(*pair)]
    yield from (pair for pair in fitting if unseen_parts(declared.mask, *pair) == [])
    yield from reversed(fitting)


def _tried(declared: Declared) -> Iterator[tuple[int, int]]:
    yield from ((length, length) for length in LADDER)
    if declared.bias is not None:
        q_len, kv_len = declared.bias.shape[2:]
        yield (kv_len if q_len == 1 else q_len), (q_len if kv_len == 1 else kv_len)
    for part in () if declared.mask is None else declared.mask.conjuncts:
        if isinstance(part, masks.Dense):
            yield part.tensor.shape[-2], part.tensor.shape[-1]
        if isinstance(part, masks.Keys):
            yield part.real.shape[1], part.real.shape[1]
    yield from ((length, length) for length in range(1, LADDER[-1] + 1) if length not in LADDER)


def unseen_parts(mask: Mask | None, q_len: int, kv_len: int) -> list[str]:
    """The parts of a mask of which a side forbids nothing at these lengths: what it says cannot be seen there."""
    parts = () if mask is None else mask.conjuncts
    return [
        repr(part) for part in parts if not all(bool(rule.forbids.any()) for rule in rules_of_one(part, q_len, kv_len))
    ]


def varied(mask: Mask | None) -> Mask | None:
    """The same kind of mask with other numbers, for the same lengths; None where none is at hand."""
    if mask is None:
        return None
    parts = [_other_numbers(part) for part in mask.conjuncts]
    if all(new is None for new in parts):
        return None
    kept = [old if new is None else new for new, old in zip(parts, mask.conjuncts, strict=True)]
    met = kept[0]
    for part in kept[1:]:
        met = met & part
    return met


def _other_numbers(part: Mask) -> Mask | None:
    if isinstance(part, masks.SlidingWindow):
        return masks.SlidingWindow(part.before + 2, part.after + 2 if part.after else 0, align=part.align)
    if isinstance(part, masks.Padding):
        turned = part.lengths[1:] + part.lengths[:1]
        return None if turned == part.lengths else masks.Padding(turned, side=part.side)
    if isinstance(part, masks.Documents) and len(part.lengths) > 1 and part.lengths[0] > 1:
        return masks.Documents([part.lengths[0] - 1, part.lengths[1] + 1, *part.lengths[2:]])
    return None
