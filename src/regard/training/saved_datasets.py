"""What `datasets.Dataset.save_to_disk` wrote: its rows as objects with keys, as lines of JSONL are.

A class is its name, a picture its bytes. Only the columns that are asked for are read, and as they lie there: to decode
them could run other packages, or fetch what they name. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from regard._errors import DataError, DependencyError

_ONE, _SEVERAL = "state.json", "dataset_dict.json"
_FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, RecursionError)
"""What json, the package and pyarrow raise for files that are cut or bent."""


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    try:
        return (path / _ONE).is_file() or (path / _SEVERAL).is_file()
    except OSError:  # a name that is too long for any file, a folder that nobody may read
        return False


def rows_of_dataset(folder: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, such as "FOLDER, row 1", and its columns by name; those not in `columns` are None.

    Raises:
        DataError: the folder holds several parts or is damaged, or a row cannot be read.
        DependencyError: the package datasets is not installed.
    """
    number = 0
    for file in data_files(folder):
        table, names, left_out = _opened(file, folder, columns)
        for place in range(table.num_rows):
            number += 1
            where = f"{folder}, row {number}"
            yield where, {**left_out, **_fields(table.slice(place, 1), names, where)}


def data_files(folder: Path) -> list[Path]:
    """The files that hold the rows, in their order.

    Raises:
        DataError: the folder holds several parts, or what says which files these are is damaged.
    """
    if not (folder / _ONE).is_file():
        raise _of_several_parts(folder)
    try:
        state: Any = json.loads((folder / _ONE).read_text(encoding="utf-8"))
        names = [str(each["filename"]) for each in state["_data_files"]]
    except _FAULTS as problem:
        raise _damaged(folder, problem) from problem
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise _damaged(folder, FileNotFoundError(f"no file {name!r} in it"))
    return [folder / name for name in names]


def _of_several_parts(folder: Path) -> DataError:
    """regard splits data itself, so that nothing of the test is in training."""
    try:
        parts: Any = json.loads((folder / _SEVERAL).read_text(encoding="utf-8"))["splits"]
        told = ", ".join(map(str, cast("list[Any]", parts) if isinstance(parts, list) else [parts]))
    except _FAULTS as problem:
        return _damaged(folder, problem)
    return DataError(f"{folder}: expected one dataset, got several parts ({told}); name the folder of one of them")


def _opened(file: Path, folder: Path, columns: Collection[str]) -> tuple[Any, dict[str, list[str]], dict[str, None]]:
    """The table of the columns asked for, the names of their classes, and the other columns."""
    datasets = _package()
    try:
        found = datasets.Dataset.from_file(str(file.absolute()))
        kept = [name for name in found.column_names if name in columns]
        names = {name: found.features[name].names for name in kept if _has_classes(datasets, found.features[name])}
        return found.data.table.select(kept), names, dict.fromkeys(found.column_names)
    except _FAULTS as problem:
        raise _damaged(folder, problem) from problem


def _package() -> Any:
    try:
        found: Any = import_module("datasets")
        found.Dataset.from_file  # noqa: B018 - a folder of the same name, in which somebody works, is no package
    except (ImportError, AttributeError) as problem:
        raise DependencyError("datasets", "datasets") from problem
    return found


def _has_classes(datasets: Any, feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel)


def _fields(row: Any, names: dict[str, list[str]], where: str) -> dict[str, Any]:
    try:
        (fields,) = cast("list[dict[str, Any]]", row.to_pylist())
    except (ValueError, OverflowError) as problem:
        raise DataError(f"{where}: cannot be read ({_cause(problem)})") from problem
    return {key: _class_name(value, names[key], where) if key in names else value for key, value in fields.items()}


def _class_name(place: int | None, names: list[str], where: str) -> str | None:
    """A class that is not known, -1, is nothing."""
    if place is None or place == -1:
        return None
    if not 0 <= place < len(names):
        raise DataError(f"{where}: expected one of {len(names)} classes, got number {place}")
    return names[place]


def _damaged(folder: Path, problem: Exception) -> DataError:
    return DataError(
        f"{folder}: expected a dataset as save_to_disk writes it, got a damaged one ({_cause(problem)}). Save it again."
    )


def _cause(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
