"""Users' own data, checked line by line: pairs, documents, dialogues, images with labels.

Text is UTF-8; a byte order mark, Windows' ends of lines and empty lines are accepted. Everything else that is not as
described is an error that names the file and the line and says what was expected. Keys of a JSON object that a
function does not name are ignored.

Instead of a JSONL file or a folder of images each takes a folder that `datasets.Dataset.save_to_disk` wrote, whose
columns are called as the keys are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeVar, cast

from regard._errors import DataError
from regard.training.saved_datasets import is_saved_dataset, rows_of_dataset

LONGEST_LINE = 4_000_000
"""Characters; a longer one is no text but a file without ends of lines."""
LONGEST_SENTENCE = 10_000
_LONGEST_BYTES = 4 * LONGEST_LINE
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".pgm", ".ppm")
_KEYS = frozenset({"source", "target", "translation", "document", "summary", "turns", "image", "label"})
_Row = TypeVar("_Row")


class Document(NamedTuple):
    """A text and, where it has one, its summary."""

    document: str
    summary: str | None


class Turn(NamedTuple):
    """What one speaker says."""

    speaker: str
    text: str


class LabelledImage(NamedTuple):
    """A picture and what it shows: a class, or a caption. `content`: the picture itself, where it has no file."""

    path: Path
    label: str
    content: bytes | None = None


def read_pairs(path: Path | str, languages: tuple[str, str] | None = None) -> list[tuple[str, str]]:
    """Sentences and their translations.

    A `.jsonl` file has one object a line, with the texts `source` and `target`; or with an object `translation` whose
    keys are the two `languages`, such as ("en", "zh"). Any other is tab-separated: two columns, after a first line
    `source<TAB>target` if one likes.

    Raises:
        DataError: with the line, when something is not so.
    """

    def pair(fields: dict[str, Any], where: str) -> tuple[str, str]:
        if languages is None or "source" in fields or "translation" not in fields:
            return _json_pair(fields, where)
        texts, where = fields["translation"], f"{where}, translation"
        if not isinstance(texts, dict):
            raise DataError(f"{where}: expected an object with the texts by language, got {_named(texts)}")
        texts = cast("dict[str, Any]", texts)
        return _text(texts, languages[0], where, LONGEST_SENTENCE), _text(texts, languages[1], where, LONGEST_SENTENCE)

    path = Path(path)
    if path.suffix == ".jsonl" or is_saved_dataset(path):
        return _filled(path, _rows(path, pair))
    return _filled(path, _tab_separated(path, ("source", "target"), _sentence))


def read_documents(path: Path | str) -> list[Document]:
    """JSONL: one object a line with the text `document` and, for training, the text `summary`."""

    def document(fields: dict[str, Any], where: str) -> Document:
        summary = _text(fields, "summary", where, LONGEST_LINE) if fields.get("summary") is not None else None
        return Document(_text(fields, "document", where, LONGEST_LINE), summary)

    path = Path(path)
    return _filled(path, _rows(path, document))


def read_dialogues(path: Path | str) -> list[tuple[Turn, ...]]:
    """JSONL: one object a line with the list `turns`: objects with the texts `speaker` and `text`.

    A turn may also be a text alone; then two speakers, "A" and "B", alternate.
    """

    def dialogue(fields: dict[str, Any], where: str) -> tuple[Turn, ...]:
        turns: Any = fields.get("turns")
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{where}: expected a list 'turns' that is not empty, got {_named(turns)}")
        return tuple(_turn(turn, place, where) for place, turn in enumerate(cast("list[Any]", turns)))

    path = Path(path)
    return _filled(path, _rows(path, dialogue))


def read_images(folder: Path | str) -> list[LabelledImage]:
    """A folder of images with `labels.tsv`: the name of a file below the folder, a tab, its label or caption.

    A first line `file<TAB>label` is accepted. Each image is named once, and is there. Of a saved dataset they are the
    columns `image` and `label`.
    """
    folder = Path(folder)
    if is_saved_dataset(folder):
        return _filled(folder, _rows(folder, _image_inside))
    path = folder / "labels.tsv"
    if folder.is_dir() and not path.exists():
        raise DataError(f"{folder}: expected a file labels.tsv: the name of an image, a tab, its label")
    seen: set[str] = set()

    def image(columns: list[str], where: str) -> LabelledImage:
        name, label = (column.strip() for column in columns)
        if not name or not label:
            raise DataError(f"{where}: expected a file and a label, got {columns!r}")
        if name in seen:
            raise DataError(f"{where}: {name!r} was labelled before; one label for each image")
        seen.add(name)
        return LabelledImage(_inside(folder, name, where), label)

    return _filled(path, _tab_separated(path, ("file", "label"), image))


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not empty, with their numbers from 1."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_BYTES):
                number += 1
                if len(line) == _LONGEST_BYTES:
                    raise DataError(f"{path}, line {number}: expected at most {LONGEST_LINE} characters, got more")
                text = _decoded(line, f"{path}, line {number}", first=number == 1)
                if text.strip():
                    yield number, text
    except IsADirectoryError as error:
        raise DataError(f"{path}: expected a file, or a folder that datasets saved, got another folder") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decoded(line: bytes, where: str, *, first: bool) -> str:
    if first and line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{where}: expected UTF-8, got UTF-16; save the file as UTF-8")
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(f"{where}: expected UTF-8, got the byte 0x{byte:02x} at byte {error.start + 1}") from error
    if "\0" in text:
        raise DataError(f"{where}: holds a NUL character; this is no text file")
    return text


def _tab_separated(path: Path, header: tuple[str, str], row: Callable[[list[str], str], _Row]) -> Iterator[_Row]:
    expected = "<TAB>".join(header)
    first = True
    for number, line in lines(path):
        where, columns = f"{path}, line {number}", line.split("\t")
        if len(columns) != len(header):
            raise DataError(f"{where}: expected {len(header)} columns, {expected}, got {len(columns)}")
        names = tuple(column.strip().casefold() for column in columns)
        if names == header and first:
            first = False
            continue
        if names == header or (first and names in {header[::-1], (header[0],) * 2, (header[1],) * 2}):
            raise DataError(f"{where}: the header {expected} belongs once, at the beginning, got {columns!r}")
        first = False
        yield row(columns, where)


def _rows(path: Path, row: Callable[[dict[str, Any], str], _Row]) -> Iterator[_Row]:
    for where, fields in rows_of_dataset(path, _KEYS) if is_saved_dataset(path) else _objects(path):
        yield row(fields, where)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines(path):
        where = f"{path}, line {number}"
        try:
            fields: Any = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected a JSON object, got {line[:40]!r}: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(f"{where}: expected a JSON object, got {_named(fields)}")
        yield where, cast("dict[str, Any]", fields)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key!r} stands there twice")
        fields[key] = value
    return fields


def _json_pair(fields: dict[str, Any], where: str) -> tuple[str, str]:
    return _text(fields, "source", where, LONGEST_SENTENCE), _text(fields, "target", where, LONGEST_SENTENCE)


def _sentence(columns: list[str], where: str) -> tuple[str, str]:
    return _json_pair({"source": columns[0], "target": columns[1]}, where)


def _turn(turn: Any, place: int, where: str) -> Turn:
    where = f"{where}, turn {place + 1}"
    if isinstance(turn, str):
        return Turn("AB"[place % 2], _text({"text": turn}, "text", where, LONGEST_SENTENCE))
    if not isinstance(turn, dict):
        raise DataError(f"{where}: expected a text, or an object with 'speaker' and 'text', got {_named(turn)}")
    fields = cast("dict[str, Any]", turn)
    return Turn(_text(fields, "speaker", where, 100), _text(fields, "text", where, LONGEST_SENTENCE))


def _text(fields: dict[str, Any], key: str, where: str, longest: int) -> str:
    if key not in fields:
        raise DataError(f"{where}: expected the key {key!r}, got {', '.join(map(repr, fields)) or 'none'}")
    value = fields[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: expected {key!r} to be a text, got {_named(value)}")
    text = value.strip()
    if not text:
        raise DataError(f"{where}: {key!r} is empty")
    if len(text) > longest:
        raise DataError(f"{where}: expected {key!r} to have at most {longest} characters, got {len(text)}")
    if any("\ud800" <= mark <= "\udfff" for mark in text):
        raise DataError(f"{where}: {key!r} holds half of a surrogate pair, which is no character")
    return text


def _image_inside(fields: dict[str, Any], where: str) -> LabelledImage:
    """Of a saved dataset: the picture's bytes, and the name that its file had."""
    label = _text(fields, "label", where, LONGEST_SENTENCE)
    image: Any = fields.get("image")
    content = cast("dict[str, Any]", image).get("bytes") if isinstance(image, dict) else None
    if not isinstance(content, bytes):
        raise DataError(f"{where}: expected a picture in the column 'image' with its bytes, got {_named(image)}")
    return LabelledImage(Path(where), label, content)


def _inside(folder: Path, name: str, where: str) -> Path:
    """An image of the folder, and of nowhere else."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or PureWindowsPath(name).drive or "\\" in name or ".." in parts.parts:
        raise DataError(f"{where}: expected the name of a file below {folder}, got {name!r}")
    path = folder / parts
    if path.suffix.lower() not in _IMAGES:
        raise DataError(f"{where}: expected an image ({', '.join(_IMAGES)}), got {name!r}")
    if not path.is_file():
        raise DataError(f"{where}: there is no file {path}")
    return path


def _filled(path: Path, rows: Iterable[_Row]) -> list[_Row]:
    found = list(rows)
    if not found:
        raise DataError(f"{path}: holds no record")
    return found


def _named(value: Any) -> str:
    kinds: dict[type[Any], str] = {type(None): "nothing", bool: "a truth value", str: "a text", bytes: "bytes"}
    kinds |= {int: "a number", float: "a number"}
    return kinds.get(cast("type[Any]", type(value)), "a list" if isinstance(value, list) else "an object")
