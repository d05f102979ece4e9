"""Two sources that keep their texts in JSON: the HSK sentences, and the user interface of Home Assistant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast


def hsk_pairs(package: Path) -> Iterator[tuple[str, str]]:
    """Graded sentences for learners of Chinese."""
    rows = json.loads((package / "hsk_sentences_audio/data/sentences.json").read_text(encoding="utf-8"))
    for row in rows:
        yield row["translation"]["en"], row["chinese"]


def home_assistant_pairs(package: Path, language: str) -> Iterator[tuple[str, str]]:
    """The texts of every component that are there in English and in a language (a file name without .json)."""
    for english in sorted(package.glob("homeassistant/components/*/translations/en.json")):
        other = english.with_name(f"{language}.json")
        if other.exists():
            sources, targets = dict(_leaves(english)), dict(_leaves(other))
            yield from ((sources[key], targets[key]) for key in sources if key in targets)


def _leaves(path: Path) -> Iterator[tuple[str, str]]:
    def walk(node: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, str):
            yield key, node
        elif isinstance(node, dict):
            for name, child in cast("dict[str, Any]", node).items():
                yield from walk(child, f"{key}/{name}")

    yield from walk(json.loads(path.read_text(encoding="utf-8")), "")
