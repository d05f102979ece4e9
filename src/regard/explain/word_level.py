"""From pieces of words to words, for weights and for links.

    word weight (t, s) = mean over the pieces of t of the sum over the pieces of s

Summed over the source and averaged over the target, the weights of a word still sum to 1. For links, two words are
linked when any of their pieces are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regard._errors import ShapeError
from regard._shapes import shape_of
from regard.explain.alignment import Link, Links, check_links

NO_WORD = -1
"""The word of a piece that belongs to none: a mark of the beginning or end, padding."""


def word_weights(weights: Tensor, source_words: Sequence[int], target_words: Sequence[int]) -> Tensor:
    """Weights of words.

    Args:
        weights: (..., target pieces, source pieces).
        source_words, target_words: for each piece the number of its word, from 0, or -1 for none. Pieces of no word
            are left out: a row then sums to what the other pieces of the source have.

    Returns:
        (..., target words, source words), as many as the highest number says. A number that no piece has is a word
        of weight 0.

    Raises:
        ShapeError: not one number for each piece.
    """
    if weights.dim() < 2 or tuple(weights.shape[-2:]) != (len(target_words), len(source_words)):
        raise ShapeError(
            "weights",
            expected=f"(..., {len(target_words)}, {len(source_words)}): target and source pieces",
            got=shape_of(weights),
            do="Give the word of each piece, of special tokens too (-1).",
        )
    summed = weights @ _membership(source_words, weights)
    of_target = _membership(target_words, weights)
    return (of_target / of_target.sum(0).clamp(min=1.0)).T @ summed


def word_links(links: Iterable[Link], source_words: Sequence[int], target_words: Sequence[int]) -> Links:
    """Links of words from links of pieces: words are linked when any of their pieces are.

    Raises:
        ArgumentError: a link outside the pieces.
    """
    kept = frozenset(links)
    check_links("links", kept, len(source_words), len(target_words))
    found = ((source_words[source], target_words[target]) for source, target in kept)
    return frozenset(link for link in found if NO_WORD not in link)


def _membership(words: Sequence[int], like: Tensor) -> Tensor:
    """(pieces, words) of 0 and 1."""
    count = max(words, default=NO_WORD) + 1
    numbers = torch.tensor(list(words), dtype=torch.int64, device=like.device)
    places = torch.arange(count, device=like.device)
    return (numbers[:, None] == places).to(like.dtype)
