"""Documents as numbers: tokens with their structure, cut to a length, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import DataError
from regard.nn import Ragged
from regard.recipes.summarization.documents import Example
from regard.recipes.summarization.model import IGNORED, Documents
from regard.recipes.summarization.rouge import oracle
from regard.recipes.summarization.vocabulary import BEGIN, DOCUMENT, END, PARAGRAPH, SENTENCE, Vocabulary


@dataclass(frozen=True)
class Numbered:
    """One document.

    Attributes:
        tokens: int32, at most as many as were asked for.
        sentences: how many of them each sentence has; the last one may be cut.
        paragraphs: how many sentences each paragraph has.
        chosen: the sentences that the oracle takes of those that were not cut off.
        summary: int32, without marks.
    """

    tokens: Tensor
    sentences: tuple[int, ...]
    paragraphs: tuple[int, ...]
    chosen: tuple[int, ...]
    summary: Tensor


def numbered(
    examples: Sequence[Example], vocabulary: Vocabulary, *, most_tokens: int, most_summary: int, extract_words: int = 0
) -> list[Numbered]:
    """Examples as numbers.

    Args:
        examples: not empty, each with a sentence.
        vocabulary: of the run.
        most_tokens: where a document is cut, marks counted.
        most_summary: where a summary is cut.
        extract_words: how long the oracle's extract may be; 0 leaves the oracle out.

    Raises:
        DataError: a document without sentences.
    """
    texts = vocabulary.encode([sentence for example in examples for sentence in example.sentences])
    summaries = vocabulary.encode([example.summary for example in examples])
    first = 0
    found: list[Numbered] = []
    for example, summary in zip(examples, summaries, strict=True):
        count = len(example.sentences)
        if not count:
            raise DataError(f"the document {example.name!r} has no sentence. Give a document with words.")
        tokens, sentences, paragraphs = _cut(texts[first : first + count], example, most_tokens)
        seen = example.sentences[: len(sentences)]
        chosen = oracle(seen, example.summary, extract_words) if extract_words else []
        found.append(
            Numbered(
                torch.tensor(tokens, dtype=torch.int32),
                sentences,
                paragraphs,
                tuple(chosen),
                torch.tensor(summary[:most_summary], dtype=torch.int32),
            )
        )
        first += count
    return found


def collated(documents: Sequence[Numbered]) -> Documents:
    """A batch: rows padded with what nobody reads, and the structure that says what is real."""
    longest = max(len(document.tokens) for document in documents)
    most = max(len(document.summary) for document in documents) + 1
    tokens = torch.zeros(len(documents), longest, dtype=torch.int64)
    written = torch.full((len(documents), most), END, dtype=torch.int64)
    targets = torch.full((len(documents), most), IGNORED, dtype=torch.int64)
    written[:, 0] = BEGIN
    for row, document in enumerate(documents):
        size = len(document.summary)
        tokens[row, : len(document.tokens)] = document.tokens
        written[row, 1 : size + 1] = document.summary
        targets[row, :size] = document.summary
        targets[row, size] = END
    structure = Ragged(
        (
            tuple(count for document in documents for count in document.sentences),
            tuple(count for document in documents for count in document.paragraphs),
            tuple(len(document.paragraphs) for document in documents),
        )
    )
    return Documents(tokens, structure, torch.cat([_labels(document) for document in documents]), written, targets)


def _labels(document: Numbered) -> Tensor:
    labels = torch.zeros(len(document.sentences))
    for place in document.chosen:
        labels[place] = 1.0 / len(document.chosen)
    return labels


def _cut(
    texts: Sequence[list[int]], example: Example, most_tokens: int
) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """Tokens with their marks, and counts, up to the cut."""
    tokens: list[int] = []
    sentences: list[int] = []
    paragraphs: list[int] = []
    place = 0
    for paragraph in example.paragraphs:
        for number in range(len(paragraph)):
            room = most_tokens - len(tokens)
            if room < min(2, most_tokens):
                return tokens, tuple(sentences), tuple(paragraphs)
            mark = SENTENCE if number else PARAGRAPH if tokens else DOCUMENT
            added = [mark, *texts[place]][:room]
            tokens.extend(added)
            sentences.append(len(added))
            if number:
                paragraphs[-1] += 1
            else:
                paragraphs.append(1)
            place += 1
    return tokens, tuple(sentences), tuple(paragraphs)
