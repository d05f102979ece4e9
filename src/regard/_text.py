"""The texts a user gives: read and checked before any model runs."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from regard._errors import DataError

WORD_LIMIT = 100_000
"""Characters without a space. A longer run is no word but data: tokenizers make one unknown token of it, or
take seconds over it. Scripts that write without spaces may go on as long as they like."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
_WORD = re.compile(rf"[^\s{_UNSPACED}\uff00-\uffef\U00020000-\U0003ffff]+")

FILE_LIMIT = 10_000_000
"""Bytes. A longer file is refused: no attention picture of it could be read."""


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped); `DataError` with one line otherwise."""
    shown = repr(str(path))
    text = _decode(_bytes(Path(path), shown), shown).removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{shown}: the file holds no text, only {len(text)} white space characters.")
    return text


def check_text(text: str, what: str = "the text") -> str:
    """The same text when it can be used; `DataError` with one line otherwise."""
    if not text.strip():
        raise DataError(f"{what} is empty: give at least one word.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{what} is not valid Unicode: a lone surrogate U+{ord(text[problem.start]):04X} at character "
            f"{problem.start}. Remove it."
        ) from problem
    for word in _WORD.finditer(text):
        if word.end() - word.start() > WORD_LIMIT:
            raise DataError(
                f"{what} holds a word of {len(word[0])} characters at character {word.start()}; at most {WORD_LIMIT} "
                "are read. Break it up, or leave it out."
            )
    return text


def _bytes(path: Path, shown: str) -> bytes:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise DataError(f"{shown}: expected a text file, got a folder.")
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{shown}: expected a text file, got a device or a pipe. Save its content to a file.")
        if found.st_size > FILE_LIMIT:
            raise DataError(f"{shown}: the file has {found.st_size} bytes, at most {FILE_LIMIT} are read. Cut it.")
        return path.read_bytes()
    except FileNotFoundError as problem:
        raise DataError(f"{shown}: no such file.") from problem
    except OSError as problem:
        raise DataError(f"{shown}: cannot be read: {problem.strerror}.") from problem
    except ValueError as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"{shown}: not a file name: {problem}.") from problem  # a NUL inside the name


def _decode(content: bytes, shown: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{shown}: not UTF-8: byte 0x{content[problem.start]:02X} at position {problem.start}. "
            "Save the file as UTF-8."
        ) from problem
