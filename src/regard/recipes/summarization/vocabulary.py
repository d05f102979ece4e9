"""Pieces of words (`regard.recipes.byte_pairs`), learned from training texts alone.

The first token of a document, of a paragraph and of a sentence says so; all models get the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from regard._errors import DataError
from regard.recipes.byte_pairs import learned_pieces, read_pieces
from regard.training.sources import cache_folder, fresh_file
from regard.training.whole_file import write_whole

VOCABULARY = "vocabulary.json"
"""Its file in the folder of a run."""

BEGIN, END, DOCUMENT, PARAGRAPH, SENTENCE = range(5)
MARKS = ("<begin>", "<end>", "<document>", "<paragraph>", "<sentence>")


class Vocabulary:
    """Text to numbers and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if [tokenizer.token_to_id(name) for name in MARKS] != list(range(len(MARKS))):
            raise DataError(f"a vocabulary of something else: it lacks {', '.join(MARKS)}.")
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without marks."""
        return [each.ids for each in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text on one line, up to the end token, without marks."""
        kept = list(tokens)
        kept = kept[: kept.index(END)] if END in kept else kept
        return " ".join(self._tokenizer.decode([token for token in kept if token >= len(MARKS)]).split())

    def save(self, path: Path) -> None:
        """As tokenizers' JSON."""
        write_whole(path, self._tokenizer.to_str())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """From tokenizers' JSON. Raises DataError for anything else."""
        return cls(read_pieces(path))


def train_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Learn at most `size` pieces, the 256 bytes and the marks among them; the same texts give the same pieces."""
    return Vocabulary(learned_pieces(texts, size, marks=MARKS))


def kept_vocabulary(texts: Sequence[str], size: int) -> Vocabulary:
    """As `train_vocabulary`; kept in the cache under what it was learned from."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    path = cache_folder() / "prepared" / f"summarization-pieces-{digest[:16]}-{size}.json"
    if not path.exists():
        with fresh_file(path) as part:
            train_vocabulary(texts, size).save(part)
    return Vocabulary.load(path)
