"""LibreOffice's help in two languages: one paragraph has one id in every language, so alignment is exact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_PARAGRAPH = re.compile(r"p|h[1-6]")
_CODE = re.compile(r"code", re.IGNORECASE)


def help_pairs(english: Path, other: Path) -> Iterator[tuple[str, str]]:
    """The paragraphs that two unpacked help packages share, in the order of file names and ids."""
    there = dict(_pages(other))
    for name, path in _pages(english):
        if name in there:
            source, target = paragraphs(path), paragraphs(there[name])
            yield from ((source[key], target[key]) for key in source if key in target)


def paragraphs(page: Path) -> dict[str, str]:
    """The text of each paragraph and heading of a page by its id, but for those that are program code."""
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    return reader.texts


def _pages(package: Path) -> Iterator[tuple[str, Path]]:
    """Each page, by its path below the folder of its language."""
    for root in sorted((package / "usr/share/libreoffice/help").glob("*/text")):
        for path in sorted(root.rglob("*.html")):
            yield path.relative_to(root).as_posix(), path


class _Reader(HTMLParser):
    """Collects paragraphs. Of wordings for several systems (`switchinline`) it keeps the default, else the first."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, str] = {}
        self._id: str | None = None
        self._tag = ""
        self._texts: list[list[str]] = []  # innermost last; text goes there
        self._spans: list[str] = []  # "plain", "switch" or the name of a choice
        self._choices: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if self._id is None:
            name, kind = attributes.get("id", ""), attributes.get("class", "")
            if _PARAGRAPH.fullmatch(tag) and name.startswith(("par_id", "hd_id")) and not _CODE.search(kind):
                self._id, self._tag, self._texts, self._spans, self._choices = name, tag, [[]], [], []
        elif tag == "span":
            self._open_span(attributes)
        elif tag == "br":
            self._texts[-1].append(" ")

    def _open_span(self, attributes: dict[str, str]) -> None:
        if attributes.get("class") == "switchinline":
            self._spans.append("switch")
            self._choices.append({})
        elif self._spans and self._spans[-1] == "switch":
            name = "default" if attributes.get("id", "").startswith("default") else attributes.get("class", "other")
            self._spans.append(f"choice {name}")
            self._texts.append([])
        else:
            self._spans.append("plain")

    def handle_endtag(self, tag: str) -> None:
        if self._id is None:
            return
        if tag == "span" and self._spans:
            self._close_span(self._spans.pop())
        elif tag == self._tag:
            self.texts.setdefault(self._id, "".join("".join(text) for text in self._texts))
            self._id = None

    def _close_span(self, kind: str) -> None:
        if kind == "switch":
            choices = self._choices.pop()
            self._texts[-1].append(choices.get("choice default") or next(iter(choices.values()), ""))
        elif kind.startswith("choice "):
            text = "".join(self._texts.pop())
            self._choices[-1].setdefault(kind, text)

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self._texts[-1].append(data)
