"""How well pictures find their captions and captions their pictures, and what that is to be compared with.

Recall@k: the part of queries whose one right answer is among the k best. A tie counts against the query, and so does
NaN: a model that gives nothing else finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from regard.recipes.image_text.data import Concept, Language
from regard.training.intervals import mean_interval

AT = (1, 5, 10)


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """The rank, from 1, of the right answer of each query.

    Args:
        scores: (queries, answers).
        right: int64 (queries,), the right answer's place.
    """
    own = scores.gather(1, right[:, None])
    return (~(scores < own)).sum(1)  # what cannot be compared (NaN) counts against the query, too


def recalls(found: Tensor) -> dict[str, dict[str, float]]:
    """Of ranks (queries,): recall at 1, 5 and 10, each with its bootstrap interval over the queries."""
    told: dict[str, dict[str, float]] = {}
    for k in AT:
        interval = mean_interval((found <= k).to(torch.float32))
        told[f"recall@{k}"] = {"mean": interval.value, "low": interval.low, "high": interval.high}
    return told


def both_ways(scores: Tensor, right_caption: Tensor) -> dict[str, dict[str, dict[str, float]]]:
    """Recalls of pictures that look for captions, and of these captions that look for these pictures.

    Args:
        scores: (pictures, captions).
        right_caption: (pictures,), each picture's caption; no two have the same. Captions beyond these only distract.
    """
    of_captions = scores.T[right_caption]
    return {
        "picture to caption": recalls(ranks(scores, right_caption)),
        "caption to picture": recalls(ranks(of_captions, torch.arange(len(scores)))),
    }


def chance(answers: int) -> dict[str, float]:
    """Recalls of drawing answers without looking."""
    return {f"recall@{k}": min(k / answers, 1.0) for k in AT}


def pixel_scores(pictures: Tensor, known: Tensor, known_captions: Sequence[str], captions: Sequence[str]) -> Tensor:
    """The baseline that learns nothing: the training pictures that look most alike, and what those are called.

    A caption's score is its likeness to the captions of the five nearest pictures, the nearest counting most.

    Args:
        pictures: (pictures, 3, side, side), those that are asked for.
        known: (concepts, styles, 3, side, side), those that were trained on.
        known_captions: (concepts,), of these.
        captions: (captions,), those that may be found.
    """
    asked, seen = (functional.avg_pool2d(each, 3).flatten(1) for each in (pictures, known.flatten(0, 1)))
    nearest = torch.cdist(asked, seen).topk(min(5, len(seen)), largest=False).indices
    weights = 0.5 ** torch.arange(nearest.shape[1], dtype=torch.float32)
    alike = likeness(known_captions, captions)
    return (alike[nearest // known.shape[1]] * weights[None, :, None]).sum(1)


def likeness(some: Sequence[str], others: Sequence[str]) -> Tensor:
    """Cosine of TF-IDF weights of two- and three-letter sequences, (some, others): it serves both languages."""
    bags = [_pieces(text) for text in (*some, *others)]
    number = {piece: place for place, piece in enumerate(sorted({piece for bag in bags for piece in bag}))}
    counts = torch.zeros(len(bags), len(number))
    for row, bag in enumerate(bags):
        for piece in bag:
            counts[row, number[piece]] += 1.0
    rarity = torch.log(len(bags) / (counts > 0).sum(0).clamp(min=1))
    weighed = functional.normalize(counts * rarity, dim=1)
    return weighed[: len(some)] @ weighed[len(some) :].T


def captions_of(concepts: Sequence[Concept], language: Language) -> list[str]:
    """The whole caption of each."""
    return [concept.caption(language) for concept in concepts]


def _pieces(text: str) -> list[str]:
    folded = f" {text.casefold()} "
    return [folded[first : first + size] for size in (2, 3) for first in range(len(folded) - size + 1)]
