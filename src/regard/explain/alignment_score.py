"""How good an alignment is: alignment error rate, precision, recall, F1, coverage.

With found links A, sure links S and possible links P, summed over all sentences (Och & Ney 2003,
https://aclanthology.org/J03-1002):

    precision = |A & P| / |A|        recall = |A & S| / |S|
    AER = 1 - (|A & S| + |A & P|) / (|A| + |S|)        F1 = 2 precision recall / (precision + recall)

Where annotators made no difference between sure and possible, S = P and AER = 1 - F1. What would be 0 / 0: with no
sure link none is missed, and recall is 1; with nothing found, precision is 1 if there was nothing sure to find, else 0;
AER is 0 when both are empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from regard._errors import ArgumentError
from regard.explain.alignment import GoldAlignment, Link, check_links


@dataclass(frozen=True)
class AlignmentScore:
    """Counts over sentences, and the measures that they give. Scores of parts of a corpus can be added.

    Attributes:
        found: |A|.
        sure: |S|.
        found_sure: |A & S|.
        found_possible: |A & P|.
        linked, words: source and target words with a link, and all of them.
    """

    found: int
    sure: int
    found_sure: int
    found_possible: int
    linked: int
    words: int

    def __add__(self, other: Self) -> AlignmentScore:
        return AlignmentScore(
            self.found + other.found,
            self.sure + other.sure,
            self.found_sure + other.found_sure,
            self.found_possible + other.found_possible,
            self.linked + other.linked,
            self.words + other.words,
        )

    @property
    def aer(self) -> float:
        """Alignment error rate, 0 (best) to 1."""
        return 1.0 - _part(self.found_sure + self.found_possible, self.found + self.sure, of_nothing=1.0)

    @property
    def precision(self) -> float:
        """The part of the found links that is possible."""
        return _part(self.found_possible, self.found, of_nothing=0.0 if self.sure else 1.0)

    @property
    def recall(self) -> float:
        """The part of the sure links that was found."""
        return _part(self.found_sure, self.sure, of_nothing=1.0)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 when both are."""
        return _part(2.0 * self.precision * self.recall, self.precision + self.recall, of_nothing=0.0)

    @property
    def coverage(self) -> float:
        """The part of the words, of both sides, that has a link; 1 when there are no words."""
        return _part(self.linked, self.words, of_nothing=1.0)

    def __str__(self) -> str:
        return (
            f"AER {self.aer:.3f}, precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f}, "
            f"coverage {self.coverage:.3f}"
        )


def score_alignment(found: Iterable[Link], gold: GoldAlignment) -> AlignmentScore:
    """Compare the links found in one pair of sentences with those of annotators.

    Raises:
        ArgumentError: a link outside the sentences.
    """
    links = frozenset(found)
    check_links("found", links, gold.source_len, gold.target_len)
    linked = len({source for source, _ in links}) + len({target for _, target in links})
    return AlignmentScore(
        found=len(links),
        sure=len(gold.sure),
        found_sure=len(links & gold.sure),
        found_possible=len(links & gold.possible),
        linked=linked,
        words=gold.source_len + gold.target_len,
    )


def score_alignments(found: Sequence[Iterable[Link]], gold: Sequence[GoldAlignment]) -> AlignmentScore:
    """Compare a corpus: counts are summed over its sentences, as is usual, and not their scores averaged.

    Raises:
        ArgumentError: one side has more sentences, or a link lies outside its sentence; the message says which.
    """
    if len(found) != len(gold):
        raise ArgumentError(
            "found",
            expected=f"{len(gold)} sentences, as gold has",
            got=str(len(found)),
            do="A line for each sentence on both sides; an empty one where there is no link.",
        )
    total = AlignmentScore(0, 0, 0, 0, 0, 0)
    for place, (links, of_annotators) in enumerate(zip(found, gold, strict=True)):
        kept = frozenset(links)
        check_links(f"found[{place}]", kept, of_annotators.source_len, of_annotators.target_len)
        total += score_alignment(kept, of_annotators)
    return total


def _part(part: float, whole: float, *, of_nothing: float) -> float:
    return part / whole if whole else of_nothing
