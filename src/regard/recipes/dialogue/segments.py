"""Conversations of unequal length, read side by side, segment by segment.

An example is a whole conversation, and its state is born and ends within one call: nothing is carried from one step of
training to the next, so a run that is resumed, or cut over processes, sees the same numbers. The gradient goes back
through `gradient_segments` segments at a time (truncated back-propagation through time).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regard.recipes.dialogue.model import DialogueModel, State, detached, first_rows

Batch = dict[str, Tensor]
"""inputs, targets (conversations, longest), lengths (conversations,), falling; a target of -1 does not count."""


@dataclass(frozen=True, eq=False)
class Example:
    """A conversation as numbers.

    Attributes:
        tokens: int64 (length + 1,); each but the first is predicted from those before it.
        turns: int64 (length + 1,), the turn that each token belongs to, from 1.
        asked: bool (length + 1,), which tokens are predicted; all when None.
    """

    tokens: Tensor
    turns: Tensor
    asked: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return len(self.tokens) - 1

    @property
    def targets(self) -> Tensor:
        """int64 (length,), -1 where nothing is asked."""
        targets = self.tokens[1:]
        return targets if self.asked is None else targets.masked_fill(~self.asked[1:], -1)

    def part(self, begin: int, end: int) -> Example:
        """The tokens that predict, and are, begin + 1 .. end."""
        asked = None if self.asked is None else self.asked[begin : end + 1]
        return Example(self.tokens[begin : end + 1], self.turns[begin : end + 1], asked)


class Reading(NamedTuple):
    """What came of one segment: the rows that still speak, from `begin` on.

    states: (rows, length, embed_dim). targets: int64 (rows, length), -1 where nothing is asked. state: to go on from.
    """

    begin: int
    states: Tensor
    targets: Tensor
    state: State


def longest_first(examples: Sequence[Example]) -> list[int]:
    """The order of the rows of `collate`."""
    return sorted(range(len(examples)), key=lambda place: -examples[place].length)


def collate(examples: Sequence[Example]) -> Batch:
    """Rows from the longest conversation to the shortest."""
    rows = [examples[place] for place in longest_first(examples)]
    longest = rows[0].length
    inputs = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets = torch.full((len(rows), longest), -1, dtype=torch.int64)
    for row, example in enumerate(rows):
        inputs[row, : example.length] = example.tokens[:-1]
        targets[row, : example.length] = example.targets
    return {"inputs": inputs, "targets": targets, "lengths": torch.tensor([row.length for row in rows])}


def read(model: DialogueModel, batch: Batch, size: int, *, gradient_segments: int = 1) -> Iterator[Reading]:
    """Segments of `size` tokens, one after the other; conversations that have ended drop out."""
    lengths: list[int] = [int(length) for length in batch["lengths"]]
    state: State | None = None
    for number, begin in enumerate(range(0, lengths[0], size)):
        rows = sum(length > begin for length in lengths)
        part = slice(begin, min(begin + size, lengths[0]))
        inputs, targets = batch["inputs"][:rows, part], batch["targets"][:rows, part]
        before = first_rows(state, rows) if state else None
        states, after = model.read(inputs, before, _real(batch["lengths"][:rows] - begin, inputs.shape[1]))
        yield Reading(begin, states, targets, after)
        state = detached(after) if (number + 1) % gradient_segments == 0 else after


def _real(lengths: Tensor, length: int) -> Tensor | None:
    """Bool (rows, length), or None where nothing is padding."""
    if int(lengths[-1]) >= length:
        return None
    return torch.arange(length, device=lengths.device) < lengths[:, None]
