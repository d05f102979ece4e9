"""Is this safetensors file sound? Answered from its header alone, before any library maps the file.

The format has no checksum, so a reader can only compare what the header promises with what the file
holds. Everything that does not add up exactly is refused, also what the usual reader lets pass: two
tensors of one name (the last would win silently) and headers large enough to be an attack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from regard._errors import CheckpointError

HEADER_LIMIT = 8 * 1024 * 1024
ENTRY_LIMIT = 50_000
LENGTH_BYTES = 8

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor; `begin` and `end` count from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_safetensors(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a sound file by name; `CheckpointError` with one line otherwise."""
    try:
        size = path.stat().st_size
        header, data_size = _header(path, size)
    except OSError as problem:
        raise CheckpointError(f"{str(path)!r}: cannot be read: {problem.strerror}") from problem
    tensors = {
        name: _entry(path, name, value) for name, value in _parse(path, header).items() if name != "__metadata__"
    }
    _check_cover(path, tensors, data_size)
    return tensors


def _corrupt(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{str(path)!r}: corrupt weights: expected {expected}, found {found}. Fetch the file again.")


def _header(path: Path, size: int) -> tuple[bytes, int]:
    """The header's bytes, and how many bytes of data follow it."""
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        if len(prefix) < LENGTH_BYTES:
            raise _corrupt(path, f"at least {LENGTH_BYTES} bytes", f"{len(prefix)}")
        length = int.from_bytes(prefix, "little")
        if length > HEADER_LIMIT:
            raise _corrupt(path, f"a header of at most {HEADER_LIMIT} bytes", f"a stated length of {length}")
        if LENGTH_BYTES + length > size:
            raise _corrupt(path, f"a header of {length} bytes", f"a file of {size} bytes")
        return file.read(length), size - LENGTH_BYTES - length


def _parse(path: Path, header: bytes) -> dict[str, object]:
    try:
        parsed: object = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as problem:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nesting without end" if isinstance(problem, RecursionError) else " ".join(str(problem).split())[:120]
        raise _corrupt(path, "a header in JSON", reason) from problem
    if not isinstance(parsed, dict):
        raise _corrupt(path, "a header that is a JSON object", type(parsed).__name__)
    entries = cast("dict[str, object]", parsed)
    if len(entries) > ENTRY_LIMIT:
        raise _corrupt(path, f"at most {ENTRY_LIMIT} tensors", f"{len(entries)}")
    return entries


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} twice")
        found[name] = value
    return found


def _entry(path: Path, name: str, value: object) -> TensorEntry:
    fields: dict[str, object] = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    dtype, shape, span = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2 or span[0] > span[1]:
        raise _corrupt(path, f"dtype, shape and data_offsets for tensor {name!r}", str(fields)[:120])
    if dtype not in BITS:
        raise _corrupt(path, f"a known dtype for tensor {name!r}", repr(dtype))
    need = math.prod(shape) * BITS[dtype] // 8
    if need != span[1] - span[0]:
        raise _corrupt(path, f"{need} bytes for tensor {name!r} of {dtype} {list(shape)}", f"{span[1] - span[0]}")
    return TensorEntry(dtype, shape, span[0], span[1])


def _counts(value: object) -> tuple[int, ...] | None:
    """A JSON list of whole numbers >= 0 as a tuple; None for anything else (`true` is an int to Python)."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    counts = tuple(item for item in items if type(item) is int and item >= 0)
    return counts if len(counts) == len(items) else None


def _check_cover(path: Path, tensors: Mapping[str, TensorEntry], data_size: int) -> None:
    """The tensors must tile the data exactly: no gap, no overlap, nothing missing, nothing left over."""
    reached = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise _corrupt(path, f"tensor {name!r} to begin at byte {reached} of the data", f"{entry.begin}")
        reached = entry.end
    if reached != data_size:
        raise _corrupt(path, f"{reached} bytes of data", f"{data_size}")
