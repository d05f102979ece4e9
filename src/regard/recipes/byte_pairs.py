"""Pieces of words, learned from texts: byte-level byte-pair encoding by `tokenizers`.

Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, over bytes, so that every text can be written, whatever the
training texts had. Marks (of a beginning, of padding) are pieces that no text can hold: one that spells a mark is read
as the text that it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from regard._errors import DataError


def learned_pieces(
    texts: Iterable[str], size: int, *, marks: Sequence[str] = (), fewest: int = 2, spaced: bool = True
) -> Tokenizer:
    """At most `size` pieces, marks (numbered first) and the 256 bytes among them; the same texts give the same.

    Args:
        texts: of training alone.
        size: of the vocabulary.
        marks: numbered from 0.
        fewest: how often two pieces must stand together to become one.
        spaced: a text is read as if a space stood before it, so that its first word is like the others.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(marks),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=fewest,
        show_progress=False,  # it would be written on standard output
    )
    tokenizer.train_from_iterator(texts, trainer)
    if not marks:
        return tokenizer
    facts = json.loads(tokenizer.to_str())
    facts["added_tokens"] = []  # or a text that says "<end>" would be read as the end
    return Tokenizer.from_str(json.dumps(facts))


def read_pieces(path: Path) -> Tokenizer:
    """From tokenizers' JSON. Raises DataError for anything else."""
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as problem:  # tokenizers raises plain exceptions
        raise DataError(f"{str(path)!r} is no vocabulary of tokenizers: {str(problem)[:120]}") from problem
