"""Documents with summaries as a `regard.training.Task`, and what a summarizer makes of documents it has not seen."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.recipes.summarization.documents import Example, Splits
from regard.recipes.summarization.model import Documents, Summarizer, sentences_of_documents
from regard.recipes.summarization.numbered import Numbered, collated, numbered
from regard.recipes.summarization.rouge import KINDS, extract, rouge
from regard.recipes.summarization.vocabulary import BEGIN, END, VOCABULARY, Vocabulary
from regard.training.data_digest import digest_of
from regard.training.order import length_batches

WATCHED = 200
"""Documents of the validation side that are summarized at each evaluation."""


class SummarizationTask:
    """A model, its training documents, and ROUGE on the validation side.

    Args:
        model: of the style that `labelled` serves.
        splits: texts.
        vocabulary: learned from the training side.
        most_tokens: where this model cuts a document.
        summary_tokens: where a written summary is cut.
        words: of an extract.
        batch_tokens: most tokens of a batch, padding and summaries counted.
        seed: of the order.
    """

    metric = "rouge"

    def __init__(
        self,
        model: Summarizer,
        splits: Splits,
        vocabulary: Vocabulary,
        *,
        most_tokens: int,
        summary_tokens: int,
        words: int,
        batch_tokens: int,
        beams: int,
        seed: int,
    ) -> None:
        self.model: nn.Module = model
        self.style = model.style
        self.splits, self.vocabulary = splits, vocabulary
        self.most_tokens, self.summary_tokens, self.words = most_tokens, summary_tokens, words
        self.batch_tokens, self.beams, self.seed = batch_tokens, beams, seed
        every = self._numbered(splits.training)
        # A document without a word of its summary teaches an extractive model nothing.
        teaches = [self.style == "abstractive" or bool(each.chosen) for each in every]
        self.training = [each for each, useful in zip(every, teaches, strict=True) if useful]
        self.watched = splits.validation[:WATCHED]
        self._of_validation = self._numbered(self.watched)

    def keep(self, folder: Path) -> None:
        """What the trained model cannot be used without."""
        self.vocabulary.save(folder / VOCABULARY)

    def data_digest(self) -> str:
        """Of the tokens of all training documents, as far as they are read, and of their summaries."""
        return digest_of(
            (document.tokens for document in self.training), (document.summary for document in self.training)
        )

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        lengths = [self._length(document) for document in self.training]
        return length_batches(lengths, self.batch_tokens, seed=self.seed, epoch=epoch)

    def units(self, indices: Sequence[int]) -> int:
        """Documents of an extractive model, tokens of summaries with their ends of an abstractive one."""
        if self.style == "extractive":
            return len(indices)
        return sum(len(self.training[index].summary) + 1 for index in indices)

    def batch(self, indices: Sequence[int]) -> Documents:
        return collated([self.training[index] for index in indices])

    def loss(self, model: nn.Module, batch: Documents) -> Tensor:
        return model(batch)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Loss by unit and mean F scores in percent; "rouge" is their mean."""
        made = as_summarizer(model)
        documents = self._of_validation
        if made.style == "extractive":
            documents = [document for document in documents if document.chosen]
        losses, units = 0.0, 0
        for part in _chunks(documents, self.most_tokens, self.batch_tokens):
            losses += float(made(_on(collated([documents[place] for place in part]), made)))
            units += sum(len(documents[place].summary) + 1 for place in part) if made.decoder else len(part)
        found = self.summaries(made, self.watched, beams=1)
        scores = [rouge(text, example.summary) for text, example in zip(found, self.watched, strict=True)]
        means = {kind: statistics.fmean(score[kind] for score in scores) for kind in KINDS}
        return {"loss": losses / max(units, 1), **means, "rouge": statistics.fmean(means.values())}

    def summaries(self, model: Summarizer, examples: Sequence[Example], *, beams: int | None = None) -> list[str]:
        """What the model makes of documents, each by itself: how they are batched changes nothing."""
        documents = self._numbered(examples, labelled=False)
        found = [""] * len(documents)
        for part in _chunks(documents, self.most_tokens, self.batch_tokens):
            batch = _on(collated([documents[place] for place in part]), model)
            if model.style == "extractive":
                texts = self._extracts(model, batch, [examples[place] for place in part])
            else:
                texts = self._written(model, batch, self.beams if beams is None else beams)
            for place, text in zip(part, texts, strict=True):
                found[place] = text
        return found

    @torch.no_grad()
    def _extracts(self, model: Summarizer, batch: Documents, examples: Sequence[Example]) -> list[str]:
        """Sentences that were cut off have no score and are not chosen."""
        scores = iter(cast("list[float]", cast("Any", model.scores(batch)).tolist()))
        found: list[str] = []
        for example, count in zip(examples, sentences_of_documents(batch.structure), strict=True):
            found.append(extract(example.sentences[:count], list(itertools.islice(scores, count)), self.words))
        return found

    @torch.no_grad()
    def _written(self, model: Summarizer, batch: Documents, beams: int) -> list[str]:
        made = model.write(batch, begin=BEGIN, end=END, most_tokens=self.summary_tokens, beams=beams)
        return [self.vocabulary.decode([int(token) for token in tokens[0]]) for tokens in made.tokens]

    def _numbered(self, examples: Sequence[Example], *, labelled: bool = True) -> list[Numbered]:
        return numbered(
            examples,
            self.vocabulary,
            most_tokens=self.most_tokens,
            most_summary=self.summary_tokens,
            extract_words=self.words if labelled and self.style == "extractive" else 0,
        )

    def _length(self, document: Numbered) -> int:
        return len(document.tokens) + (len(document.summary) + 1 if self.style == "abstractive" else 0)


def as_summarizer(model: nn.Module) -> Summarizer:
    """What is evaluated, by its type."""
    if not isinstance(model, Summarizer):
        raise TypeError(f"expected a Summarizer, got {type(model).__name__}")
    return model


def _on(batch: Documents, model: Summarizer) -> Documents:
    """On the device of the model."""
    device = model.embedding.weight.device
    tensors = (each.to(device) for each in (batch.tokens, batch.labels, batch.written, batch.targets))
    tokens, labels, written, targets = tensors
    return Documents(tokens, batch.structure, labels, written, targets)


def _chunks(documents: Sequence[Numbered], most_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Places of documents of like length, at most batch_tokens with their padding."""
    order = sorted(range(len(documents)), key=lambda place: len(documents[place].tokens))
    chunks: list[list[int]] = []
    for place in order:
        length = len(documents[place].tokens)
        if not chunks or length * (len(chunks[-1]) + 1) > max(batch_tokens, most_tokens):
            chunks.append([])
        chunks[-1].append(place)
    return chunks
