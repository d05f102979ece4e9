"""Verses as pieces of words, and which word each piece belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from regard.explain.alignment import Link, Links
from regard.recipes.translation.vocabulary import Vocabulary


class Pieces(NamedTuple):
    """A side of a verse: the numbers of its pieces, and for each the number of its word."""

    numbers: list[int]
    words: list[int]


def in_pieces(words: Sequence[str], vocabulary: Vocabulary) -> Pieces:
    """Words, without case, as one text with spaces between them. A space belongs to the word after it."""
    text = " ".join(word.lower() for word in words)
    word_of: list[int] = []
    for place, word in enumerate(words):
        word_of += [place] * (len(word.lower()) + (place > 0))
    found = vocabulary.pieces(text)
    return Pieces([piece.number for piece in found], [word_of[piece.last - 1] for piece in found])


def piece_links(links: Iterable[Link], source: Pieces, target: Pieces) -> Links:
    """Every piece of one word with every piece of the other."""
    of_source, of_target = _by_word(source.words), _by_word(target.words)
    return frozenset((one, other) for s, t in links for one in of_source.get(s, ()) for other in of_target.get(t, ()))


def _by_word(words: list[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place, word in enumerate(words):
        found.setdefault(word, []).append(place)
    return found
