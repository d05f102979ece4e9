"""Small files that are either the old one or all of the new one, whichever processes write them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Generator[Path]:
    """A name beside `path`, of this process alone, to write to; what is there at the end takes the place of `path`.

    The processes of torchrun write the same results: with one name for all, one would rename the file under another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A text, in UTF-8."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")
