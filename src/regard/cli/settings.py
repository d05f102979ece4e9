"""The settings of a recipe for people: each with its value and, from the docstring that explains it, what it is for."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regard.training.config import TrainingConfig

_INDENT = " " * 4
_ENTRY = re.compile(r"(?P<keys>\w+(?:, \w+)*): (?P<text>.+)")
_WIDTH = 100


def settings_text(config: TrainingConfig) -> str:
    """`key=value`, and below it what it means; the recipe's own settings come first."""
    from regard.training.config import TrainingConfig

    told = explanations(type(config))
    keys = sorted(type(config).model_fields, key=lambda key: key in TrainingConfig.model_fields)
    return "\n".join(_lines(key, getattr(config, key), told.get(key, "")) for key in keys) + "\n"


def explanations(config: type[TrainingConfig]) -> dict[str, str]:
    """Key by key, from the docstrings of a configuration and of what it is built on."""
    found: dict[str, str] = {}
    for each in reversed(config.__mro__):
        found |= dict(_entries(inspect.cleandoc(each.__dict__.get("__doc__") or "")))
    return {key: text for key, text in found.items() if key in config.model_fields}


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    """The keys below `Args:`; what explains several counts for each."""
    _, _, section = docstring.partition("Args:\n")
    section, _, _ = textwrap.dedent(section).partition("\n\n")
    for entry in re.split(r"\n(?! )", section):
        match = _ENTRY.fullmatch(" ".join(entry.split()))
        if match:
            for key in match["keys"].split(", "):
                yield key, match["text"]


def _lines(key: str, value: object, text: str) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    wrapped = textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join([f"{key}={shown}", *wrapped])
