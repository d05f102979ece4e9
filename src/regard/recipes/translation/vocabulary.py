"""One vocabulary of pieces for both languages: byte-pair encoding (Sennrich et al. 2016) by `tokenizers`.

A character that is rare in the training text becomes its UTF-8 bytes, so every text can be read and written. A space
is a piece's first sign (as in SentencePiece), digits stand alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from regard._errors import DataError
from regard.training.whole_file import write_whole

PAD, BEGIN, END, OTHER = 0, 1, 2, 3
"""Numbers of the special pieces. OTHER is put before the source of a sentence that is not prose (interface texts,
scripture), so that prose, the default, does not sound like them."""

SPECIAL = ("<pad>", "<s>", "</s>", "<other>")
SPACE = "▁"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Piece:
    """A piece of a text: its number, and the characters [first, last) that it covers."""

    number: int
    first: int
    last: int


class Vocabulary:
    """Text to pieces and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        for number, name in enumerate(SPECIAL):
            if tokenizer.token_to_id(name) != number:
                raise DataError(f"the vocabulary: expected {name!r} as number {number}. Train it with the recipe.")

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces, without begin and end."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each text."""
        return [each.ids for each in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def pieces(self, text: str) -> list[Piece]:
        """Pieces with the characters of `text` that they cover; the bytes of one character all cover it."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return [Piece(number, *span) for number, span in zip(encoded.ids, encoded.offsets, strict=True)]

    def name(self, number: int) -> str:
        """A piece as it stands in the vocabulary: a space is ▁."""
        return self._tokenizer.id_to_token(number) or ""

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of some pieces; special ones are left out, and bytes that are no text become U+FFFD."""
        return self._tokenizer.decode([number for number in numbers if number >= len(SPECIAL)]).strip()

    def save(self, path: Path) -> None:
        """As tokenizers' JSON."""
        write_whole(path, self._tokenizer.to_str(pretty=False))

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """From a file. Raises DataError where there is none, and for anything but tokenizers' JSON."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"{str(path)!r}: no vocabulary can be read there: {problem}.") from problem
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, name: str = "the vocabulary") -> Vocabulary:
        """From tokenizers' JSON. Raises DataError for anything else."""
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as problem:  # tokenizers raises plain exceptions
            raise DataError(f"{name!r} is no vocabulary of tokenizers: {str(problem)[:120]}") from problem
        return cls(tokenizer)


def train_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Learn the pieces of some texts; the same texts give the same pieces."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token=None))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"[\s\p{Cc}\p{Cf}]+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Metaspace(replacement=SPACE, prepend_scheme="never"),
            decoders.Fuse(),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *_BYTES],
        min_frequency=2,
        limit_alphabet=max(size // 2, 64),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    facts = json.loads(tokenizer.to_str())
    facts["added_tokens"] = []  # or a text that says "</s>" would be read as the end
    return Vocabulary(Tokenizer.from_str(json.dumps(facts)))
