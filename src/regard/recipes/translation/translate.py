"""A trained translator on somebody's text, with the alignment of each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from regard._errors import CheckpointError, DataError
from regard._text import check_text
from regard.explain import target_rows, word_weights
from regard.observation import observe
from regard.recipes.trained import open_run
from regard.recipes.translation.cleaning import plain
from regard.recipes.translation.model import TransformerTranslator, padded, sentences_of
from regard.recipes.translation.recipe import Config, build
from regard.recipes.translation.vocabulary import END, Piece, Vocabulary
from regard.training.order import listed
from regard.training.state import load_weights

MOST_CHARACTERS = 2_000
"""Of one text: its alignment has as many rows and columns as there are words."""

MOST_PIECES = 120
"""Of one sentence; the longest that the translator was trained on has about as many. A longer one is cut at a space."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
_MANY_SPACES = re.compile(r"\s{3,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=\S)|\n+")


@dataclass(frozen=True)
class Translation:
    """A text and what was made of it.

    Attributes:
        source: as it was read: one space between words, plain quotation marks.
        translation: the text in the other language.
        source_words, target_words: words of the source; the pieces of the translation, which in Chinese are words or
            single characters.
        alignment: for each target word the weights of the source words: `alignment[t][s]`. A row sums to 1, less what
            went to no word. Words of different sentences have weight 0.
        log_probability: of the translation by the model, the sum over its pieces.
    """

    source: str
    translation: str
    source_words: list[str]
    target_words: list[str]
    alignment: list[list[float]]
    log_probability: float

    def facts(self) -> dict[str, Any]:
        """As JSON, weights to four digits."""
        found = asdict(self)
        found["alignment"] = [[round(weight, 4) for weight in row] for row in self.alignment]
        found["log_probability"] = round(self.log_probability, 4)
        return found


class TrainedTranslator:
    """A model with its vocabulary.

    Args:
        model: trained.
        vocabulary: it was trained with.
        aligning: number of the decoder layer whose cross-attention, mean over its heads, is the alignment.
        between: what stands between translated sentences: nothing in Chinese.
    """

    def __init__(
        self, model: TransformerTranslator, vocabulary: Vocabulary, *, aligning: int, between: str = ""
    ) -> None:
        self.model, self.vocabulary, self.aligning = model.eval(), vocabulary, aligning
        self.between = between

    @classmethod
    def from_run(cls, folder: Path) -> TrainedTranslator:
        """What `regard train translation` left in a folder.

        Raises:
            CheckpointError: no usable run, or one of the recurrent model, which `run` does not use.
        """
        config, weights = open_run(folder, Config, "translation")
        if config.model != "transformer":
            raise CheckpointError(f"{str(folder)!r}: a run of the {config.model} model; expected a transformer's.")
        vocabulary = Vocabulary.load(folder / "tokenizer.json")
        model = build(config, len(vocabulary))
        load_weights(model, weights)
        if not isinstance(model, TransformerTranslator):
            raise TypeError
        between = "" if config.language == "zh" else " "
        return cls(model, vocabulary, aligning=config.decoder_layers - 1, between=between)

    def translate(self, text: str, *, beams: int = 4) -> Translation:
        """Translate a text, sentence by sentence, each by itself: in whatever company, it gets the same translation.

        Raises:
            DataError: no text, too long a text, or one that is Chinese already.
        """
        sentences = [self.one(sentence, beams=beams) for sentence in self._sentences(readable(text))]
        sources = [word for each in sentences for word in each.source_words]
        targets = [word for each in sentences for word in each.target_words]
        alignment = _rows(cast("Any", torch).block_diag(*(_matrix(each) for each in sentences))) if targets else []
        return Translation(
            " ".join(each.source for each in sentences),
            self.between.join(each.translation for each in sentences),
            sources,
            targets,
            alignment,
            sum(each.log_probability for each in sentences),
        )

    @torch.no_grad()
    def one(self, sentence: str, *, beams: int = 4) -> Translation:
        """Translate one sentence."""
        pieces = self.vocabulary.pieces(sentence)
        numbers = [piece.number for piece in pieces]
        most = 2 * len(numbers) + 10
        found = self.model.generate(padded([numbers]), torch.tensor([len(numbers)]), beams=beams, most_pieces=most)
        length = int(found.lengths[0, 0])
        written = [number for number in listed(found.tokens[0, 0, :length]) if number != END]
        translation = self.vocabulary.decode(written)
        words, of_pieces = source_words(sentence, pieces)
        target_words, of_written = self._target_words(written)
        weights = word_weights(self.weights(numbers, written), of_pieces, of_written)
        score = float(found.scores[0, 0]) * length  # scores are means over the pieces
        return Translation(sentence, translation, words, target_words, _rows(weights), score)

    @torch.no_grad()
    def weights(self, source: list[int], target: list[int]) -> Tensor:
        """(target pieces, source pieces): where the aligning layer looked when it predicted each piece."""
        with observe(self.model) as seen:
            self.model.states(sentences_of([source], [target]))
        layers = [layer for layer in seen.layers if layer.name.endswith("cross_attention")]
        return target_rows(layers[self.aligning].weights()[0].mean(0), "predicting")[: len(target)]

    def _sentences(self, text: str) -> Iterator[str]:
        for sentence in _SENTENCE_END.split(text):
            if sentence and sentence.strip():
                yield from self._short(sentence.strip())

    def _short(self, sentence: str) -> Iterator[str]:
        """The sentence, in parts of at most MOST_PIECES pieces, cut at spaces where there are some."""
        pieces = self.vocabulary.pieces(sentence)
        if len(pieces) <= MOST_PIECES:
            yield sentence
            return
        last = max(pieces[MOST_PIECES - 1].first, 1)
        space = sentence.rfind(" ", 0, last)
        cut = space if space > 0 else last
        yield from (part for part in (sentence[:cut].strip(),) if part)
        yield from self._short(sentence[cut:].strip())

    def _target_words(self, written: Sequence[int]) -> tuple[list[str], list[int]]:
        """The pieces as words: bytes of one character together, and no empty ones."""
        words: list[str] = []
        of_pieces: list[int] = []
        waiting: list[int] = []
        for number in written:
            waiting.append(number)
            text = self.vocabulary.decode(waiting)
            if text and "\ufffd" not in text:
                words.append(text)
                of_pieces += [len(words) - 1] * len(waiting)
                waiting = []
        if waiting and self.vocabulary.decode(waiting):
            words.append(self.vocabulary.decode(waiting))
            return words, [*of_pieces, *[len(words) - 1] * len(waiting)]
        return words, [*of_pieces, *[-1] * len(waiting)]


def readable(text: str) -> str:
    """The text in the form that the translator was trained on.

    Raises:
        DataError: no text in it, too much of it, or Chinese.
    """
    # Long runs of spaces mean no more than two, and the rules of `plain` take the square of their length.
    lines = [plain(_MANY_SPACES.sub("  ", line)) for line in check_text(text, "the text").splitlines()]
    kept = "\n".join(line for line in lines if line)
    if not kept:
        raise DataError("the text holds nothing to translate but invisible characters. Give at least one word.")
    if len(kept) > MOST_CHARACTERS:
        raise DataError(
            f"the text has {len(kept)} characters, at most {MOST_CHARACTERS} are translated at once. "
            "Give --file a file with one sentence on each line."
        )
    letters = [mark for mark in kept if mark.isalpha()]
    if letters and len(_HAN.findall(kept)) > 0.3 * len(letters):
        raise DataError("the text is Chinese; the translator reads English. Give an English text.")
    return kept


def source_words(sentence: str, pieces: Sequence[Piece]) -> tuple[list[str], list[int]]:
    """Words of a sentence and the word of each piece: what stands between spaces, marks by themselves."""
    spans = [match.span() for match in re.finditer(r"\w+(?:['’-]\w+)*|[^\w\s]", sentence)]
    words = [sentence[first:last] for first, last in spans]
    of_pieces: list[int] = []
    for piece in pieces:
        inside = [n for n, (first, last) in enumerate(spans) if first < piece.last and piece.first < last]
        of_pieces.append(inside[-1] if inside else -1)
    return words, of_pieces


def _rows(weights: Tensor) -> list[list[float]]:
    return cast("Any", weights).tolist()


def _matrix(sentence: Translation) -> Tensor:
    return torch.tensor(sentence.alignment).reshape(len(sentence.target_words), len(sentence.source_words))
