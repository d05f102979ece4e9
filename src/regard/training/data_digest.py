"""By which data are told from others: a run goes on with the examples that it began with, or not at all.

Weights are of use only with the pieces of words that they were trained with, and those are learned from the data. So
the digest is of the examples as numbers: other texts give another one, and so does another vocabulary of the same
texts, such as a younger version of the program that learns it may give.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def digest_of(*sides: Iterable[Sequence[int] | Tensor]) -> str:
    """sha256 of rows of whole numbers, of one side of the examples after the other, in their order."""
    hashed = hashlib.sha256()
    for side in sides:
        count = 0
        for row in side:
            numbers = _bytes(row)
            hashed.update(len(numbers).to_bytes(8, "little"))
            hashed.update(numbers)
            count += 1
        hashed.update(b"side" + count.to_bytes(8, "little"))
    return hashed.hexdigest()


def _bytes(row: Sequence[int] | Tensor) -> bytes:
    if isinstance(row, Tensor):
        numbers: Any = row.to(torch.int64).numpy()
        return numbers.tobytes()
    return array("q", row).tobytes()
