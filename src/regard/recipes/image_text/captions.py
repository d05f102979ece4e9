"""Captions as numbers (`regard.recipes.byte_pairs`), learned from the captions that are trained on and no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from regard._errors import DataError
from regard.recipes.byte_pairs import learned_pieces, read_pieces
from regard.training.whole_file import write_whole

PAD, BEGIN = 0, 1
SPECIAL = ("<pad>", "<s>")


class Captions:
    """Texts to tokens; every text has some, since a piece may be a byte."""

    def __init__(self, tokenizer: Tokenizer, most_tokens: int) -> None:
        self._tokenizer, self.most_tokens = tokenizer, most_tokens
        if [tokenizer.token_to_id(name) for name in SPECIAL] != [PAD, BEGIN]:
            raise DataError(f"the vocabulary of the captions: expected to begin with {', '.join(SPECIAL)}.")

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @classmethod
    def learned(cls, captions: Iterable[str], size: int, most_tokens: int) -> Captions:
        """From texts; the same texts give the same pieces.

        Args:
            captions: whatever will be trained on.
            size: of the vocabulary, at most; at least 258 for all bytes.
            most_tokens: of a caption, with its beginning; what is longer is cut.
        """
        return cls(learned_pieces((text.casefold() for text in captions), size, marks=SPECIAL), most_tokens)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens int64 (texts, longest) and which are real, bool of the same shape."""
        found = [
            [BEGIN, *each.ids][: self.most_tokens]
            for each in self._tokenizer.encode_batch([text.casefold() for text in texts], add_special_tokens=False)
        ]
        lengths = torch.tensor([len(each) for each in found])
        longest = max(map(len, found))
        tokens = torch.tensor([[*each, *[PAD] * (longest - len(each))] for each in found], dtype=torch.int64)
        return tokens, torch.arange(longest) < lengths[:, None]

    def save(self, path: Path) -> None:
        """As tokenizers' JSON."""
        write_whole(path, self._tokenizer.to_str())

    @classmethod
    def load(cls, path: Path, most_tokens: int) -> Captions:
        """From tokenizers' JSON. Raises DataError for anything else."""
        return cls(read_pieces(path), most_tokens)
