"""Links out of a translator's cross-attention, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard import observe
from regard.explain import (
    AlignmentScore,
    GoldAlignment,
    argmax_links,
    link_tensor,
    score_alignment,
    score_alignments,
    target_rows,
    word_weights,
)
from regard.explain.alignment import Links
from regard.explain.alignment_extract import StepRule
from regard.recipes.translation.model import TransformerTranslator, sentences_of
from regard.recipes.word_alignment.pieces import Pieces
from regard.training.intervals import corpus_interval

RULES: tuple[StepRule, ...] = ("predicting", "consuming")
LEAST = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
"""Weights below which a target word is left without a link; which, the validation verses decide."""


@dataclass(frozen=True)
class Reading:
    """How weights are read: of which decoder layer and head (None: the mean of the heads), by which step rule."""

    layer: int
    head: int | None
    rule: StepRule
    least: float = 0.0


class VerseWeights:
    """Weights between the words of one verse, of all layers and heads, by both step rules.

    Args:
        weights: (layers, heads, 1 + target pieces, source pieces).
        source, target: which word each piece is of.
    """

    def __init__(self, weights: Tensor, source: Pieces, target: Pieces) -> None:
        every = torch.cat([weights, weights.mean(1, keepdim=True)], 1)  # the last "head" is the mean
        self._words = {
            rule: word_weights(target_rows(every, rule), source.words, target.words).clone() for rule in RULES
        }

    def words(self, rule: StepRule) -> Tensor:
        """(layers, heads + 1, target words, source words); the mean of the heads stands last."""
        return self._words[rule]

    def links(self, reading: Reading) -> Links:
        """For each target word the source word with most weight, if that is above `least`."""
        head = -1 if reading.head is None else reading.head
        return argmax_links(self.words(reading.rule)[reading.layer, head], least=reading.least)


@torch.no_grad()
def weights_of_verses(
    model: TransformerTranslator, sources: Sequence[Pieces], targets: Sequence[Pieces], *, batch: int = 32
) -> list[VerseWeights]:
    """Run the decoder over the given targets, and keep the weights with which it looked at the sources."""
    layers = [f"transformer.decoder.layers.{place}.cross_attention" for place in range(layer_count(model))]
    found: dict[int, VerseWeights] = {}
    device = model.vocabulary_weight().device
    for some in _by_length(targets, batch):
        sentences = sentences_of([sources[at].numbers for at in some], [targets[at].numbers for at in some])
        with observe(model, layers) as seen:
            model.states(type(sentences)(*(each.to(device) for each in sentences)))
            weights = torch.stack([layer.weights() for layer in seen.layers], 1).cpu()
        for row, at in enumerate(some):
            source, target = sources[at], targets[at]
            real = weights[row, :, :, : len(target.numbers) + 1, : len(source.numbers)]
            found[at] = VerseWeights(real, source, target)
    return [found[at] for at in range(len(targets))]


def layer_count(model: TransformerTranslator) -> int:
    """Of the decoder."""
    return len(model.transformer.decoder.layers)


def best_reading(
    weights: Sequence[VerseWeights], gold: Sequence[GoldAlignment], rule: StepRule
) -> tuple[Reading, float]:
    """The layer, head (or mean) and `least` with the lowest AER for these verses, and that AER."""
    most: list[Tensor] = []
    sure: list[Tensor] = []
    possible: list[Tensor] = []
    for verse, of_people in zip(weights, gold, strict=True):
        weight, place = verse.words(rule).max(-1)  # (layers, heads + 1, target words)
        rows = torch.arange(place.shape[-1])
        most.append(weight)
        sure.append(_table(of_people.sure, of_people)[rows, place])
        possible.append(_table(of_people.possible, of_people)[rows, place])
    chosen, asked = torch.cat(most, -1), sum(len(each.sure) for each in gold)
    right = torch.cat(sure, -1).double() + torch.cat(possible, -1).double()
    taken = torch.stack([chosen > least for least in LEAST], -1)  # (layers, heads + 1, target words, leasts)
    aer = 1.0 - (taken * right[..., None]).sum(2) / (taken.sum(2) + asked)
    layer, head, least = (int(index) for index in torch.unravel_index(aer.argmin(), aer.shape))
    mean = head == aer.shape[1] - 1
    return Reading(layer, None if mean else head, rule, LEAST[least]), float(aer.min())


def _table(links: Links, of: GoldAlignment) -> Tensor:
    """bool (target words, source words)."""
    return link_tensor([links], of.target_len, of.source_len)[0].bool()


def told(found: Sequence[Links], gold: Sequence[GoldAlignment]) -> dict[str, float]:
    """All measures, and the bootstrap interval of AER over verses."""
    scores = [score_alignment(links, each) for links, each in zip(found, gold, strict=True)]
    total = score_alignments(found, gold)
    interval = corpus_interval(aer_of_draws(scores), len(scores))
    return {
        "aer": total.aer,
        "aer_low": interval.low,
        "aer_high": interval.high,
        "precision": total.precision,
        "recall": total.recall,
        "f1": total.f1,
        "coverage": total.coverage,
    }


def aer_of_draws(scores: Sequence[AlignmentScore]) -> Callable[[list[int]], float]:
    """AER of some verses, as `corpus_interval` and `paired_difference` ask for it."""
    right = torch.tensor([score.found_sure + score.found_possible for score in scores], dtype=torch.float64)
    asked = torch.tensor([score.found + score.sure for score in scores], dtype=torch.float64)

    def aer(drawn: list[int]) -> float:
        return 1.0 - float(right[drawn].sum() / asked[drawn].sum())

    return aer


def _by_length(targets: Sequence[Pieces], batch: int) -> Iterator[list[int]]:
    order = sorted(range(len(targets)), key=lambda at: len(targets[at].numbers))
    for first in range(0, len(order), batch):
        yield order[first : first + batch]
