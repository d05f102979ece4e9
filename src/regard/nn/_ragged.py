"""Ragged texts: documents of paragraphs of sentences of tokens, none of them as long as the others.

Everything of one level lies end to end ("packed"), and a list of counts says how many items each group of the next
level has. Nothing is padded that need not be. The counts are plain numbers, so shapes are known before anything is
computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of

Nested = Sequence[Any]
"""Counts of tokens in lists of lists, as deep as there are levels: [[[5, 3], [4]], [[7]]] is two documents."""


@dataclass(frozen=True)
class Ragged:
    """How many items each group has, level by level.

    Attributes:
        counts: one tuple for each level, the innermost first: tokens of each sentence, sentences of each paragraph,
            paragraphs of each document. A group may have none.
    """

    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for below, above in itertools.pairwise(self.counts):
            if sum(above) != len(below):
                raise ShapeError(
                    "structure",
                    expected=f"counts that sum to {len(below)}, as many as there are groups below them",
                    got=f"{list(above)}, which sum to {sum(above)}",
                    do="Each level counts the groups of the one before.",
                )

    @classmethod
    def from_nested(cls, nested: Nested, levels: int) -> Ragged:
        """From the number of tokens of each sentence, in lists of paragraphs in lists of documents.

        Raises:
            ArgumentError: lists of another depth, or counts that are no whole numbers of at least 0.
        """
        counts: list[tuple[int, ...]] = []
        groups: list[Any] = [nested]
        for _ in range(levels):
            if not all(isinstance(group, list | tuple) for group in groups):
                raise _not_nested(nested, levels)
            counts.append(tuple(len(group) for group in groups))
            groups = list(itertools.chain.from_iterable(groups))
        return cls((_checked(groups, nested, levels), *reversed(counts[1:])))

    @classmethod
    def from_counts(cls, *counts: Iterable[int] | Tensor) -> Ragged:
        """From one list or 1-D tensor for each level, the innermost first (see `counts`).

        Raises:
            ArgumentError: counts that are no whole numbers of at least 0.
            ShapeError: a level whose counts do not sum to the groups of the one before.
        """
        plain = [cast("Any", each).tolist() if isinstance(each, Tensor) else list(each) for each in counts]
        return cls(tuple(_checked(each, each, len(plain)) for each in plain))

    @property
    def levels(self) -> int:
        """How many times items are joined to groups."""
        return len(self.counts)

    @property
    def documents(self) -> int:
        """Groups of the last level."""
        return len(self.counts[-1])

    def items(self, level: int) -> int:
        """How many items level `level` has: 0 is that of tokens."""
        return sum(self.counts[level])

    def of_documents(self) -> list[int]:
        """Tokens of each document."""
        totals = list(self.counts[0])
        for counts in self.counts[1:]:
            totals = [sum(totals[start:end]) for start, end in _ranges(counts)]
        return totals

    def split(self, packed: Tensor, level: int) -> list[Tensor]:
        """What belongs to each group: (items of `level`, ...) as a list of (items of the group, ...)."""
        return list(cast("Any", packed).split(list(self.counts[level])))

    def pad(self, packed: Tensor, level: int) -> Tensor:
        """(items of `level`, ...) as (groups, longest, ...), zeros after the last item of each group."""
        return Groups(self.counts[level]).padded(packed)


class Groups:
    """Items that lie end to end and belong to groups: `counts[g]` of them to group g."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)
        self.total, self.longest = sum(self.counts), max(self.counts) if self.counts else 0
        self.even = len(set(self.counts)) == 1

    def __len__(self) -> int:
        return len(self.counts)

    def of_items(self, device: torch.device) -> Tensor:
        """The group of each item, int64 (items,)."""
        return spread(torch.arange(len(self), device=device), self.counts)

    def cells(self, device: torch.device) -> Tensor:
        """The place of each item in (groups * longest,), int64 (items,)."""
        return cells_of(self.counts, self.longest, device)

    def padded(self, items: Tensor) -> Tensor:
        """(items, ...) to (groups, longest, ...)."""
        shape = (len(self), self.longest, *items.shape[1:])
        if self.even:
            return items.view(shape)
        empty = items.new_zeros((len(self) * self.longest, *items.shape[1:]))
        return empty.index_copy(0, self.cells(items.device), items).view(shape)

    def packed(self, padded: Tensor) -> Tensor:
        """(groups, longest, ...) to (items, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.even else flat.index_select(0, self.cells(padded.device))

    def real(self, device: torch.device) -> Tensor:
        """Bool (groups, longest): the cells that hold an item."""
        counts = torch.tensor(self.counts, dtype=torch.int64, device=device)
        return torch.arange(self.longest, device=device) < counts.unsqueeze(1)


@dataclass(frozen=True)
class Level:
    """One level without what is empty or masked: `alive` items in `groups`, each of which has at least one.

    `alive` are indices into the items of the whole structure, or None when all of them are.
    """

    alive: Tensor | None
    groups: Groups
    items: int

    def whole(self, packed: Tensor) -> Tensor:
        """(alive, ...) to (items, ...): zeros for what takes no part."""
        if self.alive is None:
            return packed
        return packed.new_zeros((self.items, *packed.shape[1:])).index_copy(0, self.alive, packed)


def pruned(
    structure: Ragged, masks: Sequence[Tensor | None], device: torch.device
) -> tuple[list[Level], Tensor | None]:
    """Each level without what takes no part, and the documents that do (None for all of them).

    A group takes part when it is not masked and something in it does; an item, when its group does.
    """
    alive = _alive(structure, masks)
    levels: list[Level] = []
    for level, counts in enumerate(structure.counts):
        kept, above = alive[level], alive[level + 1]
        left = counts if kept is None else [sum(kept[start:end]) for start, end in _ranges(counts)]
        groups = Groups(left if above is None else list(itertools.compress(left, above)))
        levels.append(Level(_places(kept, device), groups, structure.items(level)))
    return levels, _places(alive[-1], device)


def _alive(structure: Ragged, masks: Sequence[Tensor | None]) -> list[list[bool] | None]:
    """For the items of each level, and for the documents: do they take part? None for all."""
    masked = [None if mask is None else cast("list[bool]", cast("Any", mask).tolist()) for mask in masks]
    alive: list[list[bool] | None] = [*masked, None]
    for level in reversed(range(structure.levels)):
        above = alive[level + 1]
        if above is not None:
            inherited = list(
                itertools.chain.from_iterable(
                    [part] * n for part, n in zip(above, structure.counts[level], strict=True)
                )
            )
            own = alive[level]
            alive[level] = inherited if own is None else [a and b for a, b in zip(inherited, own, strict=True)]
    for level, counts in enumerate(structure.counts):
        below = alive[level]
        if below is None and 0 not in counts:
            continue
        some = [end > start if below is None else any(below[start:end]) for start, end in _ranges(counts)]
        above = alive[level + 1]
        alive[level + 1] = some if above is None else [a and b for a, b in zip(some, above, strict=True)]
    return alive


def _ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Where the items of each group start and end."""
    return list(itertools.pairwise([0, *itertools.accumulate(counts)]))


def spread(values: Tensor, counts: Sequence[int]) -> Tensor:
    """values[i] repeated counts[i] times."""
    times = torch.tensor(counts, dtype=torch.int64, device=values.device)
    return torch.repeat_interleave(values, times, output_size=sum(counts))


def tokens_of(x: Tensor, structure: Ragged) -> Tensor:
    """The tokens of all documents end to end, (tokens, width), from that or from (documents, length, width).

    Raises:
        ShapeError: another number of documents or tokens than the structure says.
    """
    lengths = structure.of_documents()
    total = sum(lengths)
    if x.dim() == 2:
        if x.shape[0] != total:
            raise ShapeError(
                "x", expected=f"{total} tokens, as the structure counts", got=shape_of(x), do="Pack all documents."
            )
        return x
    documents, length = x.shape[0], x.shape[1]
    longest = max(lengths) if lengths else 0  # torch.compile has no max(default=)
    if documents != structure.documents or longest > length:
        raise ShapeError(
            "x",
            expected=f"{structure.documents} documents of {longest} tokens or more, as the structure counts",
            got=shape_of(x),
            do="Give the structure of this very batch.",
        )
    if all(count == length for count in lengths):
        return x.flatten(0, 1)
    return x.flatten(0, 1).index_select(0, cells_of(lengths, length, x.device))


def like_tokens(packed: Tensor, x: Tensor, structure: Ragged) -> Tensor:
    """One number for each token, (tokens,), laid out as x is: the inverse of `tokens_of`, zeros elsewhere."""
    if x.dim() == 2:
        return packed
    documents, length = x.shape[0], x.shape[1]
    empty = packed.new_zeros(documents * length)
    cells = cells_of(structure.of_documents(), length, x.device)
    return empty.index_copy(0, cells, packed).view(documents, length)


def cells_of(counts: Sequence[int], length: int, device: torch.device) -> Tensor:
    """Where items that lie end to end go in rows of `length`, flattened: int64 (items,)."""
    shifts = [row * length - start for row, (start, _) in enumerate(_ranges(counts))]
    return spread(torch.tensor(shifts, dtype=torch.int64, device=device), counts) + torch.arange(
        sum(counts), device=device
    )


def _places(alive: list[bool] | None, device: torch.device) -> Tensor | None:
    if alive is None:
        return None
    return torch.tensor(list(itertools.compress(range(len(alive)), alive)), dtype=torch.int64, device=device)


def _checked(counts: Sequence[Any], told: object, levels: int) -> tuple[int, ...]:
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise _not_nested(told, levels)
    return tuple(counts)


def _not_nested(told: object, levels: int) -> ArgumentError:
    got = repr(told)
    return ArgumentError(
        "structure",
        expected=f"whole numbers of at least 0 in lists {levels} deep",
        got=got if len(got) < 80 else f"{got[:77]}...",
        do="Count the tokens of each sentence: [[[5, 3], [4]], [[7]]] is a document of two paragraphs and one of one.",
    )
