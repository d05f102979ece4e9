"""The translation recipe as a task for the training loop: which pairs when, the loss, and the metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from regard._errors import DataError
from regard.recipes.translation.guidance import Guidance, GuidedSentences, PieceLinks, guided_loss, guided_sentences
from regard.recipes.translation.model import Sentences, Translator, padded, sentences_of, translation_loss
from regard.recipes.translation.pairs import Corpus, Language, Pair
from regard.recipes.translation.scoring import bleu, sentence_counts
from regard.recipes.translation.splits import FEWEST_TEST_TOKENS
from regard.recipes.translation.vocabulary import OTHER, Vocabulary
from regard.training.data_digest import digest_of
from regard.training.order import length_batches, listed

PROSE = frozenset({"libreoffice", "wesnoth", "hsk", "own"})
"""Domains that are tested. Sources of others begin with OTHER."""

EVALUATED = 300
"""Validation pairs that are translated at each evaluation: enough to see the curve, and soon done."""


class TranslationTask:
    """See `regard.training.Task`.

    Args:
        model: a `Translator`.
        corpus: the pairs.
        vocabulary: trained on the corpus' training pairs.
        language: of the targets.
        batch_tokens: most pieces of a batch, padding counted, on its longer side.
        others: training pairs that are no prose in an epoch, as a part of those that are; others each epoch.
        smoothing: of labels.
        taught: links of the training pairs and how they are taught, or None.
        seed: of the order.

    Raises:
        DataError: nothing is held out.
    """

    metric = "bleu"

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        language: Language,
        batch_tokens: int,
        others: float,
        smoothing: float,
        taught: tuple[PieceLinks, Guidance] | None = None,
        seed: int,
    ) -> None:
        if not corpus.validation or not corpus.test:
            raise DataError(
                f"of {len(corpus.train)} pairs none can be held out for validation and for the test: that takes "
                f"different source sentences of {FEWEST_TEST_TOKENS} words or more. Give more of them."
            )
        self.model, self.corpus, self.vocabulary = model, corpus, vocabulary
        self.language: Language = language
        self.batch_tokens, self.others, self.smoothing, self.seed = batch_tokens, others, smoothing, seed
        self.taught = taught
        self._sources, self._targets = encoded(corpus.train, vocabulary)
        self._prose = [place for place, pair in enumerate(corpus.train) if pair.domain in PROSE]
        self._other = [place for place, pair in enumerate(corpus.train) if pair.domain not in PROSE]
        validation = corpus.validation[:: max(1, len(corpus.validation) // EVALUATED)][:EVALUATED]
        self._validation = sorted(validation, key=lambda pair: len(pair.source))

    def order(self, epoch: int) -> list[list[int]]:
        """All prose and some of the rest, by length."""
        count = min(len(self._other), round(self.others * len(self._prose)))
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        drawn = listed(torch.randperm(len(self._other), generator=generator)[:count])
        places = self._prose + [self._other[place] for place in drawn]
        lengths = [max(len(self._sources[place]), len(self._targets[place]) + 1) for place in places]
        batches = length_batches(lengths, self.batch_tokens, seed=self.seed, epoch=epoch)
        return [[places[number] for number in batch] for batch in batches]

    def units(self, indices: Sequence[int]) -> int:
        """Target pieces, ends counted."""
        return sum(len(self._targets[place]) + 1 for place in indices)

    def batch(self, indices: Sequence[int]) -> Sentences | GuidedSentences:
        """Padded pieces, and their links where they are taught."""
        sources, targets = ([side[place] for place in indices] for side in (self._sources, self._targets))
        sentences = sentences_of(sources, targets)
        if self.taught is None:
            return sentences
        links, _ = self.taught
        return guided_sentences(sentences, [links[place] for place in indices])

    def loss(self, model: nn.Module, batch: Sentences | GuidedSentences) -> Tensor:
        """The sum of smoothed cross entropies, and of those of the links."""
        translator = cast("Translator", model)
        if self.taught is not None and isinstance(batch, GuidedSentences):
            return guided_loss(translator, batch, self.taught[1], self.smoothing)
        return translation_loss(translator, cast("Sentences", batch), self.smoothing)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss without smoothing for each piece, and BLEU of greedy translations, on part of the validation pairs."""
        translator = cast("Translator", model)
        device = translator.vocabulary_weight().device
        total, pieces, written = 0.0, 0, list[str]()
        for first in range(0, len(self._validation), 64):
            some = self._validation[first : first + 64]
            sources, targets = encoded(some, self.vocabulary)
            sentences = Sentences(*(each.to(device) for each in sentences_of(sources, targets)))
            total += float(translation_loss(translator, sentences, 0.0))
            pieces += sum(len(target) + 1 for target in targets)
            most = 2 * max(map(len, sources)) + 10
            found = translator.generate(sentences.source, sentences.lengths, beams=1, most_pieces=most)
            written += [self.vocabulary.decode(listed(row)) for row in found.tokens[:, 0]]
        expected = [pair.target for pair in self._validation]
        return {"loss": total / pieces, "bleu": bleu(sentence_counts(written, expected, self.language))}

    def data_digest(self) -> str:
        """Of the pieces of all training pairs, and of their links where they are taught."""
        pieces = digest_of(self._sources, self._targets)
        return pieces if self.taught is None else f"{pieces} {self.taught[0].digest()}"

    def health_batch(self) -> Sentences:
        """A few validation pairs, always the same."""
        return sentences_of(*encoded(self._validation[len(self._validation) // 2 :][:8], self.vocabulary))

    def keep(self, folder: Path) -> None:
        """What the trained model cannot be used without."""
        self.vocabulary.save(folder / "tokenizer.json")


def encoded(pairs: Sequence[Pair], vocabulary: Vocabulary) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces of sources and targets."""
    sources = vocabulary.encode_all([pair.source for pair in pairs])
    marked = [pieces if pair.domain in PROSE else [OTHER, *pieces] for pieces, pair in zip(sources, pairs, strict=True)]
    return marked, vocabulary.encode_all([pair.target for pair in pairs])


def one_source(text: str, vocabulary: Vocabulary) -> Tensor:
    """int64 (1, pieces)."""
    return padded([vocabulary.encode(text)])
