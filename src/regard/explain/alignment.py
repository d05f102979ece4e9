"""Word alignments: which word of the source belongs to which word of the target.

A link is a pair (source word, target word), both counted from 0. Annotators mark *sure* links, and *possible* ones
where they would not object; the sure ones are possible too (Och & Ney 2003, "A Systematic Comparison of Various
Statistical Alignment Models", https://aclanthology.org/J03-1002, section 6).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regard._errors import ArgumentError

Link = tuple[int, int]
"""(source word, target word), from 0."""

Links = frozenset[Link]


@dataclass(frozen=True)
class GoldAlignment:
    """What annotators say of one pair of sentences.

    Attributes:
        source_len, target_len: words on both sides.
        sure: links that have to be found.
        possible: links that are no fault; the sure ones among them. The same as `sure` unless given.

    Raises:
        ArgumentError: a link outside the sentences, or a sure one that is not possible.
    """

    source_len: int
    target_len: int
    sure: Links
    possible: Links

    def __init__(
        self, source_len: int, target_len: int, sure: Iterable[Link], possible: Iterable[Link] | None = None
    ) -> None:
        kept = frozenset(sure)
        for name, value in (
            ("source_len", source_len),
            ("target_len", target_len),
            ("sure", kept),
            ("possible", kept if possible is None else frozenset(possible)),
        ):
            object.__setattr__(self, name, value)
        check_links("possible", self.possible, source_len, target_len)
        missing = sorted(self.sure - self.possible)
        if missing:
            raise ArgumentError(
                "sure",
                expected="links that are possible too",
                got=f"{missing[0]}, which is not (and {len(missing) - 1} more)",
                do="Give possible as all links of the annotators, the sure ones included.",
            )


def check_links(name: str, links: Iterable[Link], source_len: int, target_len: int) -> None:
    """All links are within the sentences, or ArgumentError, which thinks of the usual reason."""
    for source, target in links:
        if not (0 <= source < source_len and 0 <= target < target_len):
            from_one = 1 <= source <= source_len and 1 <= target <= target_len
            raise ArgumentError(
                name,
                expected=f"links within {source_len} source and {target_len} target words, both counted from 0",
                got=f"({source}, {target})",
                do="Are they counted from 1? Read them with base=1."
                if from_one
                else "Are source and target exchanged, or is it another tokenisation?",
            )


def reversed_links(links: Iterable[Link]) -> Links:
    """The same alignment seen from the other side."""
    return frozenset((target, source) for source, target in links)
