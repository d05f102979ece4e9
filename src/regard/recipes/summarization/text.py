"""From a text to paragraphs of sentences, by rules: no model, no language data.

Blank lines end a paragraph. Within it a list item or a line that is set further in than the first begins a sentence of
its own; elsewhere a sentence ends where . ! ? is followed by a space and what can begin a sentence, and at the Chinese
marks, which need no space.
"""

from __future__ import annotations

import re

Paragraphs = tuple[tuple[str, ...], ...]
"""Sentences in paragraphs; none of them is empty."""

ADDRESS = "URL"
"""What stands where a text had the address of a page."""

_ADDRESS = re.compile(
    r"(?:\b[a-z][a-z0-9+.-]{1,15}://|\bwww\.)[^\s<>\"'`{}|\\^\[\]]*[^\s<>\"'`{}|\\^\[\].,;:!?)]", re.IGNORECASE
)
_ITEM = re.compile(r"\s*(?:[-*+\u2022\u00b7o]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s+(?=\S)")
_END = re.compile(
    r"(?<=[.!?])([\"'\u2019\u201d)\]]*)\s+(?=[\"'\u2018\u201c(\[`]*[A-Z0-9\u3400-\u9fff])|(?<=[\u3002\uff01\uff1f])"
)
_RULE = re.compile(r"([=\-~^\"'`*+#.])\1{2,}")
_NO_END = re.compile(r"(?:^|[\s(\"'])(?:e\.g|i\.e|cf|vs|etc|resp|approx|incl|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|[A-Z])\.$")
_LONGEST_END = 16
"""Longer than anything that `_NO_END` finds, with what stands before it."""


def without_addresses(text: str) -> str:
    """Addresses of pages and hosts are replaced: they say nothing about what a text is about."""
    return _ADDRESS.sub(ADDRESS, text)


def paragraphs_of(text: str) -> Paragraphs:
    """The sentences of a text, paragraph by paragraph, each on one line."""
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n"))
    found = (tuple(sentence for piece in _pieces(block) for sentence in sentences_of(piece)) for block in blocks)
    return tuple(paragraph for paragraph in found if paragraph)


def sentences_of(line: str) -> list[str]:
    """The sentences of running text."""
    sentences: list[str] = []
    begun: list[str] = []
    end_of_it = ""  # all that tells an end; to look at the whole each time would take the square of its length
    for piece in _END.sub(lambda end: f"{end[1] or ''}\n", " ".join(line.split())).split("\n"):
        between = " " if end_of_it and end_of_it[-1] not in "\u3002\uff01\uff1f" else ""
        begun += (between, piece)
        end_of_it = (end_of_it + between + piece)[-_LONGEST_END:]
        if not _NO_END.search(end_of_it):
            sentences.append("".join(begun))
            begun, end_of_it = [], ""
    return [
        sentence.strip()
        for sentence in (*sentences, "".join(begun))
        if any(map(str.isalnum, sentence)) and not _number(sentence)
    ]


def _number(text: str) -> bool:
    """Nothing but the number of an item."""
    return not any(map(str.isalpha, text)) and len(text.split()) < 2


def _pieces(block: str) -> list[str]:
    """A paragraph's running text, and each of its list items by itself."""
    pieces: list[list[str]] = []
    margin: int | None = None
    for line in block.split("\n"):
        if not line.strip():
            continue
        if _RULE.fullmatch(line.strip()):  # what stood above it was a title
            margin = -1
            continue
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else margin
        item = _ITEM.match(line)
        if item is not None:
            pieces.append([line[item.end() :]])
            margin = item.end()
        elif pieces and indent <= margin:
            pieces[-1].append(line.strip())
        else:
            pieces.append([line])
            margin = indent
    return [" ".join(lines) for lines in pieces]
