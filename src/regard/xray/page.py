"""The x-ray's report: one offline page, and the same facts as strict JSON.

The text of a model or a user is never markup here. It travels as JSON inside a data block in which every
character that could end the block is escaped, and the script shows it with `textContent` only. A content
security policy names the hashes of the one script and the one style sheet, so nothing else can run or load.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from regard._errors import ArgumentError, DataError

Language = Literal["en", "zh"]

BUDGET = 12_000_000  # bytes of one page, however long the text
SCRIPTS = ("strings.js", "data.js", "dom.js", "tables.js", "map.js", "text.js", "report.js")

_HTML_LANGUAGE = {"en": "en", "zh": "zh-CN"}
# What could end a script block, is a line end to old scripts, cannot be UTF-8, or is invisible to a reviewer.
_UNSAFE = re.compile("[<>&\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def render(payload: Mapping[str, Any], *, language: Language = "en") -> str:
    """The report as one self-contained HTML page.

    Args:
        payload: what the x-ray found: `regard`, `model`, `machine`, `streams`, `layers`, `warnings` and `maps`.
        language: the language the page opens in; a button switches it.

    Raises:
        DataError: when the page would be larger than `BUDGET` even without its maps.
    """
    if language not in _HTML_LANGUAGE:
        raise ArgumentError("language", expected="'en' or 'zh'", got=repr(language), do="Take one of these two.")
    style, script = _source("report.css"), _script()
    parts = {
        "language": _HTML_LANGUAGE[language],
        "policy": _policy(style, script),
        "title": escape(_SURROGATE.sub("\ufffd", f"regard xray: {payload['model']['name']}")),
        "style": style,
        "script": script,
    }
    room = BUDGET - sum(len(part.encode()) for part in parts.values()) - len(_source("report.html"))
    return _fill(_source("report.html"), parts | {"data": _data(payload, language, room)})


def write_report(payload: Mapping[str, Any], folder: str | Path, *, language: Language = "en") -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder` (made if absent); returns both paths.

    Both are made in full before either is put in place, so a failure leaves what was there before.
    """
    page = render(payload, language=language).encode()
    facts = _escaped(json.dumps(_strict(_facts(payload)), ensure_ascii=False, allow_nan=False, indent=2)).encode()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"folder: expected a folder to write to, got the file {folder}. Name another.") from error
    targets = folder / "report.json", folder / "report.html"
    _replace_all(list(zip(targets, (facts + b"\n", page), strict=True)))
    return targets


def _source(name: str) -> str:
    # Line ends as the browser's parser makes them: the policy hashes what the parser hands on.
    return (files(__package__ or "regard.xray") / "page" / name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _script() -> str:
    return "\n".join(_source(name) for name in SCRIPTS)


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """One pass, so that a `{{...}}` inside a part stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _data(payload: Mapping[str, Any], language: Language, room: int) -> str:
    """The data block: everything if it fits, else without the exact weights, else without maps - and it says which."""
    layers = [dict(layer) for layer in payload["layers"]]
    streams = {name: _page_stream(stream) for name, stream in payload["streams"].items()}
    whole = {**payload, "layers": layers, "streams": streams, "language": language}
    maps: list[Mapping[str, Any]] = list(payload.get("maps") or [])
    for left_out, kept in (
        (None, maps),
        ("exact weights", [{**entry, "top": None} for entry in maps]),
        ("maps", cast("list[Mapping[str, Any]]", [])),
    ):
        text = json.dumps(
            _strict({**whole, "maps": kept, "left_out": left_out}),
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        )
        safe = _escaped(text)
        if len(safe.encode()) <= room:
            return safe
    raise DataError(f"payload: expected text that fits in a page of {BUDGET} bytes, got more. Give a shorter text.")


def _page_stream(stream: Mapping[str, Any]) -> dict[str, Any]:
    """A stream as the page needs it: the cells' texts, and the text that no token covers before each and at the end."""
    text: str = stream["text"]
    truncated = bool(stream["truncated"])
    cells: Sequence[Mapping[str, Any]] = stream["cells"]
    ends = [0, *(int(cell["end"]) for cell in cells)]
    return {
        "truncated": truncated,
        "cells": [cell["text"] for cell in cells],
        "special": [index for index, cell in enumerate(cells) if cell["special"]],
        "gaps": [text[end : int(cell["start"])] for end, cell in zip(ends, cells, strict=False)],
        # What was cut off was not seen by the model, and may be megabytes.
        "tail": "" if truncated else text[ends[-1] :],
    }


def _facts(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload without what only a picture needs."""
    streams = {
        name: {key: value for key, value in stream.items() if key != "cells"}
        for name, stream in payload["streams"].items()
    }
    return {**{key: value for key, value in payload.items() if key != "maps"}, "streams": streams}


def _strict(value: Any) -> Any:
    """The value as JSON has it: no NaN, no infinity, no tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        items = cast("Iterable[tuple[Any, Any]]", value.items())
        return {str(key): _strict(item) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in cast("Iterable[Any]", value)]
    return value


def _escaped(text: str) -> str:
    """JSON in which no character can end a script block or fail to be written as UTF-8."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _replace_all(contents: list[tuple[Path, bytes]]) -> None:
    """Put all files in place, or none: everything that can fail for want of space happens before the first rename."""
    with ExitStack() as leftovers:
        waiting: list[tuple[Path, Path]] = []
        for target, content in contents:
            beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            leftovers.callback(beside.unlink, missing_ok=True)
            _write_through(beside, content)
            waiting.append((beside, target))
        for beside, target in waiting:
            beside.replace(target)
    _sync_folder(contents[0][0].parent)


def _write_through(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the renames last, where folders can be synced (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
