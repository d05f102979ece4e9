"""Translations of programs: gettext's .mo files, read as the data they are.

Format: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from regard._errors import DataError

_LITTLE, _BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"
_CONTEXT = re.compile(r"^[^\^\n]{0,80}\^")  # Wesnoth's "race^Gryphons", Freeciv's "?embassy:Both" below
_QUALIFIER = re.compile(r"^\?[^:\n]{0,40}:")
_ACCELERATOR = re.compile(r"\s*\([_&][A-Za-z0-9]\)")
_MARK = re.compile(r"[_&](?=\w)")
_BREAK = re.compile(r"</?(?:p|br|li|ul|ol|h\d|title|table|tr|td|div|para|dt|dd)\b[^<>]{0,200}>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


def catalog(path: Path) -> dict[str, str]:
    """Message to translation, without plurals and without the header.

    Raises:
        DataError: not a .mo file, or one that was cut short.
    """
    content = path.read_bytes()
    order = {_LITTLE: "<", _BIG: ">"}.get(content[:4])
    try:
        if order is None:
            raise DataError(f"{path}: expected a .mo file, got {content[:4]!r} at its beginning")
        _, count, messages, translations = struct.unpack_from(f"{order}4I", content, 4)
        found: dict[str, str] = {}
        charset = "utf-8"
        for number in range(count):
            message = _bytes(content, order, messages + 8 * number).decode(charset)
            translation = _bytes(content, order, translations + 8 * number)
            if not message:  # the header, which comes first
                charset = _charset(translation)
            elif "\0" not in message:  # else it has a plural
                found[message.split("\4")[-1]] = translation.decode(charset)
    except (struct.error, UnicodeDecodeError, LookupError) as error:
        raise DataError(f"{path}: a damaged .mo file: {error}") from error
    return found


def _charset(header: bytes) -> str:
    named = re.search(rb"charset=([\w.:-]+)", header)
    return named.group(1).decode() if named else "utf-8"


def _bytes(content: bytes, order: str, place: int) -> bytes:
    length, offset = struct.unpack_from(f"{order}2I", content, place)
    if offset + length > len(content):
        raise struct.error("a text lies behind the end of the file")
    return content[offset : offset + length]


def catalog_pairs(packages: Sequence[Path], language: str) -> Iterator[tuple[str, str]]:
    """Every message of every catalog of one language, in the order of file names; paragraphs one by one."""
    for package in packages:
        for path in sorted(package.rglob(f"{language}/LC_MESSAGES/*.mo")):
            for message, translation in catalog(path).items():
                yield from _paragraphs(_plain(message), _plain(translation))


def _plain(text: str) -> str:
    """Without context, mark-up and the mark of the key that opens a menu."""
    text = html.unescape(_QUALIFIER.sub("", _CONTEXT.sub("", text)))
    return _MARK.sub("", _ACCELERATOR.sub("", _TAG.sub("", _BREAK.sub("\n", text))))


def _paragraphs(source: str, target: str) -> Iterator[tuple[str, str]]:
    """Cut at empty lines, then at ends of lines, where both sides have as many; else as one."""
    for mark in (r"\n\s*\n", r"\n"):
        sources, targets = re.split(mark, source.strip()), re.split(mark, target.strip())
        if len(sources) == len(targets) > 1:
            for one, other in zip(sources, targets, strict=True):
                yield from _paragraphs(one, other)
            return
    yield source, target
