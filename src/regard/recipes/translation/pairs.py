"""What the translation recipe trains on: pairs of sentences, each with the domain it came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Language = Literal["zh", "de"]


class Pair(NamedTuple):
    """An English sentence and its translation."""

    source: str
    target: str
    domain: str


@dataclass(frozen=True)
class Corpus:
    """Pairs in three splits that share no source sentence and no near-duplicate of one.

    Attributes:
        train, validation, test: the pairs.
        counts: by "domain/what became of it", how many pairs: "raw", a split, or why they are in none.
    """

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    counts: dict[str, int]

    @cached_property
    def digest(self) -> str:
        """sha256 of all pairs in their order; a run that is resumed wants the same."""
        return hashlib.sha256(json.dumps([self.train, self.validation, self.test]).encode()).hexdigest()
