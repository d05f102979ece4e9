"""A document and its summary, a corpus of them, and splits through which nothing leaks.

Documents that belong together (`Example.group`) or have one summary stay on one side. What is still shared is taken
out of the side that learns: sentences of training that the validation or test side has as well, and of validation that
the test side has. So test texts stay as they were found. A document that is left without sentences is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from regard._errors import DataError
from regard.recipes.summarization.text import Paragraphs


@dataclass(frozen=True)
class Example:
    """A document with the summary that its author gave it.

    Attributes:
        name: of the document, for people.
        group: documents of one group are written from one another, as those of one source package.
        paragraphs: of sentences.
        summary: on one line.
    """

    name: str
    group: str
    paragraphs: Paragraphs
    summary: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """Of all paragraphs."""
        return tuple(sentence for paragraph in self.paragraphs for sentence in paragraph)


class Splits(NamedTuple):
    """Three sides of a corpus."""

    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def normal(text: str) -> str:
    """What two texts are compared by: lower case, words alone, numbers alike."""
    return " ".join(re.sub(r"\d+", "0", text.lower()).translate(_MARKS).split())


_MARKS = {ord(mark): " " for mark in "\"'`.,;:!?()[]{}<>*_-\u2013\u2014\u2018\u2019\u201c\u201d\u3002\uff0c"}


def unique(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The first example of each summary, without those that lack a document or a summary."""
    found: dict[str, Example] = {}
    for example in examples:
        if example.paragraphs and normal(example.summary):
            found.setdefault(normal(example.summary), example)
    return tuple(found.values())


def split(examples: Sequence[Example], *, validation: int, test: int, salt: str) -> Splits:
    """At least so many documents for validation and for test, whole groups in an order that only the names decide.

    Raises:
        DataError: too few documents.
    """
    groups: dict[str, list[Example]] = {}
    for example in unique(sorted(examples, key=lambda each: (each.group, each.name))):
        groups.setdefault(example.group, []).append(example)
    sides: list[list[Example]] = [[], [], []]
    for group in sorted(groups, key=lambda each: hashlib.sha256(f"{salt}/{each}".encode()).digest()):
        side = 2 if len(sides[2]) < test else 1 if len(sides[1]) < validation else 0
        sides[side].extend(groups[group])
    if not sides[0]:
        raise DataError(
            f"{len(examples)} documents in {len(groups)} groups are too few for {test} of test, {validation} of "
            "validation and some of training. Give more documents, or set validation and test lower."
        )
    in_test = _seen(sides[2])
    checked = _without(sides[1], in_test)
    return Splits(_without(sides[0], in_test | _seen(checked)), tuple(checked), tuple(sides[2]))


def _seen(examples: Iterable[Example]) -> set[str]:
    """All sentences, and the summaries, which are sentences too."""
    return {normal(text) for example in examples for text in (*example.sentences, example.summary)} - {""}


def _without(examples: Iterable[Example], seen: set[str]) -> tuple[Example, ...]:
    """Examples without the sentences that others have, and without those that are left empty."""
    kept: list[Example] = []
    for example in examples:
        paragraphs = (tuple(each for each in paragraph if normal(each) not in seen) for paragraph in example.paragraphs)
        left = tuple(paragraph for paragraph in paragraphs if paragraph)
        if left and normal(example.summary) not in seen:
            kept.append(replace(example, paragraphs=left))
    return tuple(kept)
