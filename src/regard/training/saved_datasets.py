"""What `datasets.Dataset.save_to_disk` wrote: its rows as objects with keys, as lines of JSONL are.

A class is its name, a picture its bytes. Nothing is fetched, and nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from regard._errors import DataError, DependencyError

_ONE, _SEVERAL = "state.json", "dataset_dict.json"


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    return (path / _ONE).is_file() or (path / _SEVERAL).is_file()


def rows_of_dataset(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, such as "FOLDER, row 1", and its columns by name.

    Raises:
        DataError: the folder holds several parts, or is damaged.
        DependencyError: the package datasets is not installed.
    """
    _refuse_several(folder)
    if _holds_nothing(folder):
        return
    try:
        datasets: Any = import_module("datasets")
    except ImportError as problem:
        raise DependencyError("datasets", "datasets") from problem
    try:
        found = _undecoded(datasets, datasets.load_from_disk(str(folder.absolute())).with_format(None))
        names = _class_names(datasets, found)
        for number, row in enumerate(found, 1):
            yield f"{folder}, row {number}", _with_class_names(row, names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as problem:
        cause = " ".join(str(problem).split()) or type(problem).__name__
        raise DataError(
            f"{folder}: expected a dataset as save_to_disk writes it, and it is damaged ({cause})"
        ) from problem


def _refuse_several(folder: Path) -> None:
    """regard splits data itself, so that nothing of the test is in training."""
    if (folder / _ONE).is_file():
        return
    try:
        parts: Any = json.loads((folder / _SEVERAL).read_text(encoding="utf-8"))["splits"]
        told = ", ".join(map(str, parts))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{folder / _SEVERAL}: expected the names of the parts, got none that can be read") from problem
    raise DataError(f"{folder}: expected one dataset, got several parts ({told}); name the folder of one of them")


def _holds_nothing(folder: Path) -> bool:
    """The package writes datasets without rows and cannot read them."""
    try:
        return json.loads((folder / _ONE).read_text(encoding="utf-8"))["_data_files"] == []
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _undecoded(datasets: Any, found: Any) -> Any:
    """Pictures stay bytes: who reads them says what is too large, and which is damaged."""
    for name, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(name, datasets.Image(decode=False))
    return found


def _class_names(datasets: Any, found: Any) -> dict[str, list[str]]:
    return {name: each.names for name, each in found.features.items() if isinstance(each, datasets.ClassLabel)}


def _with_class_names(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """A class that is not known, -1, is nothing."""
    of_classes = {key: cast("int | None", row[key]) for key in names}
    return row | {
        key: names[key][place] if place is not None and place >= 0 else None for key, place in of_classes.items()
    }
