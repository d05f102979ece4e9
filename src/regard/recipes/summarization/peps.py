"""Python's enhancement proposals to long documents: the Abstract is the summary, the rest the document.

`build_peps` reads a checkout of the repository that they are kept in and writes a file of documents. They are in the
public domain, the newer ones also under CC0.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from regard._errors import DataError
from regard.recipes.summarization.text import without_addresses

_UNDERLINE = re.compile(r"([=\-~^\"'`*+#.])\1{2,}\s*$")
_LEFT_OUT = {"abstract", "copyright", "references", "footnotes", "references and footnotes", "local variables"}
LEAST_WORDS = 300
"""Shorter proposals are no long documents."""
LEAST_SUMMARY = 10
"""Words of an Abstract that says something."""


def build_peps(checkout: Path, into: Path) -> int:
    """Write a JSON line with "id", "document" and "summary" for each proposal that has an Abstract; how many there are.

    Args:
        checkout: a folder with pep-0001.rst and so on, in itself or in `peps/`.
        into: the file to write, which may end in .gz.

    Raises:
        DataError: no proposal with an Abstract is there.
    """
    found = list(_proposals(checkout))
    if not found:
        raise DataError(
            f"{str(checkout)!r} holds no pep-NNNN.rst with an Abstract. Give the folder of a checkout of the PEPs."
        )
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found)
    data = lines.encode()
    if into.suffix == ".gz":
        import gzip

        data = gzip.compress(data, mtime=0)
    part = into.with_name(into.name + ".part")
    part.write_bytes(data)
    part.replace(into)
    return len(found)


def _proposals(checkout: Path) -> Iterator[dict[str, str]]:
    folder = checkout / "peps" if (checkout / "peps").is_dir() else checkout
    paths = [path for path in folder.glob("pep-*") if re.fullmatch(r"pep-\d{4}\.(?:rst|txt)", path.name)]
    for path in sorted(paths):
        found = read_proposal(path.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            yield {"id": path.stem, "document": found[1], "summary": found[0]}


def read_proposal(source: str) -> tuple[str, str] | None:
    """The Abstract and the rest of a proposal, or None where either is missing or short."""
    _, _, body = source.replace("\r\n", "\n").partition("\n\n")  # a header of mail stands first
    abstract = ""
    kept: list[str] = []
    for title, text in _sections(body):
        if title.lower() == "abstract":
            abstract = " ".join(text.split("\n", 2)[-1].split())
        elif title.lower() not in _LEFT_OUT:
            kept.append(text.strip("\n"))
    document = without_addresses("\n\n\n".join(part for part in kept if part))
    abstract = without_addresses(abstract)
    if len(abstract.split()) < LEAST_SUMMARY or len(document.split()) < LEAST_WORDS:
        return None
    return abstract, document


def _sections(body: str) -> Iterator[tuple[str, str]]:
    """Title and text, with its title, of each section of the highest level; what stands before has an empty one."""
    lines = body.split("\n")
    marks = [
        (place, lines[place + 1][0])
        for place in range(len(lines) - 1)
        if lines[place].strip() and not lines[place][0].isspace() and _is_title(lines, place)
    ]
    highest = marks[0][1] if marks else ""
    starts = [0, *(place for place, mark in marks if mark == highest), len(lines)]
    for first, last in itertools.pairwise(starts):
        titled = first in {place for place, _ in marks}
        yield lines[first].strip() if titled else "", "\n".join(lines[first:last])


def _is_title(lines: list[str], place: int) -> bool:
    underline = lines[place + 1]
    return _UNDERLINE.fullmatch(underline) is not None and len(underline.rstrip()) >= len(lines[place].rstrip()) - 1
