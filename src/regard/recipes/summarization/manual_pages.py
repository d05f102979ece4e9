"""Manual pages to documents: the NAME line is the summary, the rest without roff's macros the document.

Rules, not a typesetter: requests that set a word in another face give their arguments, those that begin a paragraph or
an item end the one before, tables, synopses and listings are left out. Some residue of macros remains.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from regard.recipes.summarization.documents import Example
from regard.recipes.summarization.text import paragraphs_of, without_addresses

_FACES = {"B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "R", "Nm", "Ar", "Fl", "Xr", "Pa", "Va", "Fn", "Em"}
_BREAKS = {"PP", "P", "LP", "sp", "TP", "IP", "HP", "SS", "SH", "Pp", "It", "Sh", "Ss", "TQ", "RS", "RE", "AP", "br"}
_HIDDEN = {"nf": "fi", "EX": "EE", "Vb": "Ve", "CS": "CE", "TS": "TE", "de": ".", "ig": ".", "SY": "YS", "ds": ""}
_LEFT_OUT = {"SYNOPSIS", "COPYRIGHT", "AUTHOR", "AUTHORS", "SEE ALSO", "COLOPHON", "NAME", "LIBRARY"}
_SIGNS = {
    "-": "-", "e": "\\", "&": "", "/": "", ",": "", "|": "", "^": "", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`",
    "(aq": "'", "(cq": "'", "(oq": "'", "(dq": '"', "(lq": '"', "(rq": '"', "(bu": "\u2022", "(em": " - ", "(en": "-",
    "(mi": "-", "(co": "(c)", "(ti": "~", "(ha": "^", "(rs": "\\", "(bv": "|", "(<=": "<=", "(>=": ">=",
    ":": "", "%": "", "c": "", "(ga": "`", "*(L": '"', "*(R": '"',
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[+-]?\d+|\*\([LR]?.|\*\[[^\]]*\]|\[[^\]]*\]|\(..|[hvmM](?:'[^']*'|\[[^\]]*\])|n\(..|.)"
)


def manual_pages(folder: Path) -> Iterator[Example]:
    """The pages below `folder`/usr/share/man/man*, each file once, in the order of their paths. Links are no pages."""
    for path in sorted((folder / "usr/share/man").glob("man*/*")):
        if path.is_symlink() or not path.is_file():
            continue
        packed = path.read_bytes()
        source = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8", errors="replace")
        found = read_page(source)
        if found is not None:
            summary, text = found
            yield Example(path.name.removesuffix(".gz"), summary.lower(), paragraphs_of(text), summary)


def read_page(source: str) -> tuple[str, str] | None:
    """The summary and the text of a page, or None where it has no NAME line or is not written in roff."""
    sections = _sections(source)
    named = re.split(r"\s+(?:\\-|\\\(em|--?)\s+", " ".join(sections.get("NAME", [])), maxsplit=1)
    if len(named) < 2:
        return None
    summary = without_addresses(_plain(named[1])).strip().rstrip(".")
    text = "\n\n".join(_text(lines) for title, lines in sections.items() if title not in _LEFT_OUT)
    return (summary, without_addresses(text)) if summary and text.strip() else None


def _sections(source: str) -> dict[str, list[str]]:
    """The lines below each .SH, by its title in capitals; what stands before the first is macros."""
    sections: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in source.split("\n"):
        title = re.match(r"[.']\s*S[Hh]\s+(.+)", line)
        if title is not None:
            name = _plain(" ".join(_arguments(title[1]))).strip().upper()
            lines = sections.setdefault(name, [])
        elif lines is not None:
            lines.append(_described(line) if "NAME" in sections and len(sections) == 1 else line)
    return sections


def _described(line: str) -> str:
    """In a NAME section: comments and other requests go, BSD's .Nd brings the dash."""
    if line.startswith(".Nd"):
        return f" \\- {line[3:].strip()}"
    request = re.match(r"[.']\s*(\w+|\\\")\s*(.*)", line)
    if request is None:
        return line
    return " ".join(_arguments(request[2])) if request[1] in _FACES else ""


def _text(lines: list[str]) -> str:
    found: list[str] = []
    until: str | None = None
    for line in lines:
        request = re.match(r"[.']\s*(\\\"|\w*\.?)\s*(.*)", line)
        if until is not None:
            until = None if request is not None and request[1] == until else until
        elif request is None:
            found.append(_plain(line))
        elif request[1] in _FACES:
            found.append(_face(request[1], _arguments(request[2])))
        elif request[1] in _BREAKS:
            found.append("")
        elif _HIDDEN.get(request[1]):
            until = _HIDDEN[request[1]]
            found.append("")
    return "\n".join(line.strip() for line in found)


def _face(request: str, arguments: list[str]) -> str:
    """Requests of two letters set their arguments without spaces between them."""
    joined = "" if len(request) == 2 and request.isupper() and request not in {"SM", "SB"} else " "
    return _plain(joined.join(arguments))


def _arguments(text: str) -> list[str]:
    """Words, and what stands in quotes."""
    return [quoted or word for quoted, word in re.findall(r'"([^"]*)"?|(\S+)', text)]


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: _SIGNS.get(match[0][1:], ""), re.sub(r'\\".*', "", text))
