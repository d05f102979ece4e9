"""Translation of verses, with one cross-attention head that is taught to align, as a task for the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from regard.explain import GoldAlignment
from regard.explain.alignment import Links
from regard.recipes.translation.guidance import Guidance, GuidedSentences, guided_loss, guided_sentences
from regard.recipes.translation.model import Sentences, TransformerTranslator, sentences_of, translation_loss
from regard.recipes.translation.verses import Verse
from regard.recipes.translation.vocabulary import Vocabulary
from regard.recipes.word_alignment.measure import RULES, best_reading, weights_of_verses
from regard.recipes.word_alignment.pieces import in_pieces, piece_links
from regard.training.data_digest import digest_of
from regard.training.order import length_batches

EVALUATED = 200
"""Validation verses that are aligned at each evaluation."""


class Encoded:
    """Verses as pieces, with what people say of their alignment."""

    def __init__(self, verses: Sequence[Verse], vocabulary: Vocabulary) -> None:
        self.verses = verses
        self.sources = [in_pieces(verse.source_tokens, vocabulary) for verse in verses]
        self.targets = [in_pieces(verse.target_tokens, vocabulary) for verse in verses]
        self.gold = [GoldAlignment(len(each.source_tokens), len(each.target_tokens), each.links) for each in verses]

    def sentences(self, places: Sequence[int]) -> Sentences:
        """Some of them, padded."""
        return sentences_of([self.sources[at].numbers for at in places], [self.targets[at].numbers for at in places])

    def units(self, places: Sequence[int]) -> int:
        """Their target pieces, ends counted."""
        return sum(len(self.targets[at].numbers) + 1 for at in places)


class AlignmentTask:
    """See `regard.training.Task`.

    Args:
        model: the translator.
        vocabulary: of both languages.
        train, validation, test: verses.
        taught: links of the training verses between words, or None.
        guidance: how they are taught.
        batch_tokens: most pieces of a batch, padding counted, on its longer side.
        smoothing: of labels.
        seed: of the order.
    """

    metric = "alignment"

    def __init__(
        self,
        model: TransformerTranslator,
        vocabulary: Vocabulary,
        splits: tuple[Sequence[Verse], Sequence[Verse], Sequence[Verse]],
        *,
        taught: Sequence[Links] | None,
        guidance: Guidance,
        batch_tokens: int,
        smoothing: float,
        seed: int,
    ) -> None:
        self.model: nn.Module = model
        self.vocabulary = vocabulary
        self.train, self.validation, self.test = (Encoded(verses, vocabulary) for verses in splits)
        self._watched = Encoded(splits[1][:: max(1, len(splits[1]) // EVALUATED)][:EVALUATED], vocabulary)
        self.taught, self.guidance = taught, guidance
        self.batch_tokens, self.smoothing, self.seed = batch_tokens, smoothing, seed

    def order(self, epoch: int) -> list[list[int]]:
        """Verses of like length together."""
        pairs = zip(self.train.sources, self.train.targets, strict=True)
        lengths = [max(len(source.numbers), len(target.numbers) + 1) for source, target in pairs]
        return length_batches(lengths, self.batch_tokens, seed=self.seed, epoch=epoch)

    def units(self, indices: Sequence[int]) -> int:
        """Target pieces, ends counted."""
        return self.train.units(indices)

    def batch(self, indices: Sequence[int]) -> GuidedSentences:
        """Padded pieces and their links."""
        sentences = self.train.sentences(indices)
        return guided_sentences(sentences, [self._links(at) for at in indices])

    def loss(self, model: nn.Module, batch: GuidedSentences) -> Tensor:
        """Cross entropies of the words, and of the links."""
        translator = cast("TransformerTranslator", model)
        if self.taught is None:
            return translation_loss(translator, batch.sentences, self.smoothing)
        return guided_loss(translator, batch, self.guidance, self.smoothing)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """AER of some validation verses: of the best layer, head and rule for them; 1 - AER is "alignment"."""
        translator = cast("TransformerTranslator", model)
        watched, places = self._watched, range(len(self._watched.verses))
        sentences = Sentences(*(each.to(translator.vocabulary_weight().device) for each in watched.sentences(places)))
        loss = float(translation_loss(translator, sentences, 0.0)) / watched.units(places)
        weights = weights_of_verses(translator, watched.sources, watched.targets)
        aer = {str(rule): best_reading(weights, watched.gold, rule)[1] for rule in RULES}
        best = min(aer.values())
        return {
            "alignment": 1.0 - best,
            "aer": best,
            **{f"aer_{rule}": value for rule, value in aer.items()},
            "loss": loss,
        }

    def keep(self, folder: Path) -> None:
        """What the trained model cannot be used without."""
        self.vocabulary.save(folder / "tokenizer.json")

    def data_digest(self) -> str:
        """Of the pieces of all training verses."""
        sides = self.train.sources, self.train.targets
        return digest_of(*((pieces.numbers for pieces in side) for side in sides))

    def _links(self, at: int) -> Links:
        """Of a training verse, between pieces."""
        if self.taught is None:
            return frozenset()
        return piece_links(self.taught[at], self.train.sources[at], self.train.targets[at])
