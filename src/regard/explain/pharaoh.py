"""Alignments in files: the Pharaoh format, one line for each pair of sentences.

    0-0 1-2 2p1        source-target; a p instead of the hyphen marks a link that is possible and not sure

Some files count words from 0 and some from 1, and nothing in them says which. Read with the wrong base, a good
aligner scores as a bad one and nobody notices. So the base must be said; "detect" finds it where the links prove it,
and then says so in a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regard._errors import ArgumentError, DataError
from regard.explain.alignment import GoldAlignment, Link, Links

Base = Literal[0, 1, "detect"]

_LINK = re.compile(r"(\d+)([-p])(\d+)", re.ASCII)
_MANY_LINES = 20
"""So many linked sentences without a link of any first word are no accident."""


@dataclass(frozen=True)
class FileLine:
    """One line: links counted from 0, the sure ones, and all of them."""

    sure: Links
    possible: Links


def read_pharaoh(
    path: Path | str, *, base: Base, lengths: Sequence[tuple[int, int]] | None = None, flipped: bool = False
) -> list[FileLine]:
    """Read a file of alignments.

    Args:
        path: of the file, UTF-8.
        base: what its first word is called, 0 or 1; "detect" finds out from the links and warns of what it found.
        lengths: (source words, target words) of each line, against which links are checked.
        flipped: the file says target-source.

    Returns:
        For each line its links as (source, target) from 0, whatever the file's base.

    Raises:
        ArgumentError: a base other than these.
        DataError: a line that is no alignment, a link outside its sentence, another number of lines than `lengths`,
            or a base that cannot be detected. The message has the number of the line.

    Warns:
        UserWarning: what base was detected; with base 0 also when no link touches any first word.
    """
    if base not in (0, 1, "detect"):
        raise ArgumentError("base", expected="0, 1 or 'detect'", got=repr(base), do="Say how the file counts words.")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [_parsed(path, number, line, flipped=flipped) for number, line in enumerate(lines, 1)]
    if lengths is not None and len(lengths) != len(rows):
        raise DataError(
            f"{str(path)!r}: expected {len(lengths)} lines, one for each pair of sentences, got {len(rows)}. "
            "A pair without links is an empty line."
        )
    found = _detected(path, rows, lengths) if base == "detect" else base
    if base == 0:
        _doubt(path, rows)
    return [_counted_from_0(path, number, row, found, lengths) for number, row in enumerate(rows, 1)]


def write_pharaoh(path: Path | str, alignments: Iterable[Iterable[Link]], *, base: Literal[0, 1]) -> None:
    """Write links (source, target) from 0, a line for each pair of sentences, sorted.

    Args:
        path: of the file.
        alignments: the links of each pair.
        base: what the file is to call the first word.
    """
    if base not in (0, 1):
        raise ArgumentError("base", expected="0 or 1", got=repr(base), do="Most tools read 0.")
    lines = (
        " ".join(f"{source + base}-{target + base}" for source, target in sorted(set(links))) for links in alignments
    )
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def gold_of(lines: Sequence[FileLine], lengths: Sequence[tuple[int, int]]) -> list[GoldAlignment]:
    """Lines of `read_pharaoh` with the lengths of their sentences, as `score_alignments` takes them."""
    return [
        GoldAlignment(source_len, target_len, line.sure, line.possible)
        for line, (source_len, target_len) in zip(lines, lengths, strict=True)
    ]


_Row = list[tuple[int, int, bool]]
"""Links as they stand in the file: source, target, whether sure."""


def _parsed(path: Path | str, number: int, line: str, *, flipped: bool) -> _Row:
    row: _Row = []
    for word in line.split():
        match = _LINK.fullmatch(word)
        if match is None:
            raise DataError(f"{str(path)!r}, line {number}: expected links such as 0-1 or 0p1, got {word!r}.")
        first, second = int(match[1]), int(match[3])
        row.append((second, first, match[2] == "-") if flipped else (first, second, match[2] == "-"))
    return row


def _detected(path: Path | str, rows: list[_Row], lengths: Sequence[tuple[int, int]] | None) -> Literal[0, 1]:
    """A link of word 0 proves 0; a link of word number `length` proves 1."""
    from_0 = any(0 in (source, target) for row in rows for source, target, _ in row)
    from_1 = lengths is not None and any(
        source == source_len or target == target_len
        for row, (source_len, target_len) in zip(rows, lengths, strict=True)
        for source, target, _ in row
    )
    if from_0 == from_1:
        seen = "both a word 0 and one beyond the last" if from_0 else "neither a word 0 nor one beyond the last"
        raise DataError(f"{str(path)!r}: its base cannot be detected, for its links have {seen}. Say base=0 or base=1.")
    base: Literal[0, 1] = 0 if from_0 else 1
    warnings.warn(f"{str(path)!r} counts words from {base}, by its links. Say base={base}.", stacklevel=3)
    return base


def _doubt(path: Path | str, rows: list[_Row]) -> None:
    linked = [row for row in rows if row]
    if len(linked) >= _MANY_LINES and not any(0 in (source, target) for row in linked for source, target, _ in row):
        warnings.warn(
            f"{str(path)!r}: in {len(linked)} lines no link touches a first word. If it counts from 1, say base=1.",
            stacklevel=3,
        )


def _counted_from_0(
    path: Path | str, number: int, row: _Row, base: int, lengths: Sequence[tuple[int, int]] | None
) -> FileLine:
    for source, target, _ in row:
        if min(source, target) < base:
            raise DataError(f"{str(path)!r}, line {number}: a word 0 in a file that counts from 1. Say base=0.")
        if lengths is not None:
            source_len, target_len = lengths[number - 1]
            if source - base >= source_len or target - base >= target_len:
                hint = "Does it count from 1? " if base == 0 else ""
                raise DataError(
                    f"{str(path)!r}, line {number}: link {source}-{target} (source-target, words from {base}), but the "
                    f"sentences have {source_len} and {target_len} words. {hint}Is it another tokenisation?"
                )
    links = [((source - base, target - base), sure) for source, target, sure in row]
    return FileLine(frozenset(link for link, sure in links if sure), frozenset(link for link, _ in links))
