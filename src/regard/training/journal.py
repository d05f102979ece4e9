"""One JSON value a line, in a file that survives being killed and a full disk.

A line is written at once, so that it can be followed, and stands on the disk after `position`. What the system has
not said to be there is kept in memory (some hundred bytes a line) and written again: a full disk costs a warning, and
once there is room no line is missing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from regard._errors import DataError


class Journal:
    """A file of JSON lines.

    Args:
        path: of the file; its folder exists.
        kept: bytes of the file that count; the rest is cut off. None: a new file; one that is there is renamed to
            NAME.before.
        warn: is told in one line what went wrong while the journal went on.

    Raises:
        DataError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path, kept: int | None, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._safe = 0
        """Bytes at the beginning of the file that are on the disk."""
        self._later = bytearray()
        """What comes after them ..."""
        self._written = 0
        """... and how much of that the system has taken."""
        self._troubled = False
        try:
            if kept is None and path.exists():
                path.replace(path.with_name(path.name + ".before"))
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._safe = self._mended(kept or 0)
            os.ftruncate(self._file, self._safe)
            os.fsync(self._file)
            _sync_folder(path.parent)
        except OSError as problem:
            raise DataError(
                f"{str(path)!r} cannot be written: {problem.strerror}. Make room or give another folder."
            ) from problem

    def add(self, line: Mapping[str, object]) -> None:
        """Write one line. What is no number (NaN, infinities) becomes null: JSON has no word for it."""
        text = json.dumps(_plain(line), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
        self._later += text.encode() + b"\n"
        self._write()

    def position(self) -> int:
        """How many bytes of the file are whole lines that are on the disk (fsync).

        After a fault these may be fewer than were added; the rest is tried again with the next call.
        """
        if self._write():
            try:
                os.fsync(self._file)
            except OSError as problem:  # what was written may be gone though a later fsync succeeds: write it again
                self._written = 0
                self._fault(problem)
            else:
                self._safe += len(self._later)
                self._later.clear()
                self._written = 0
                self._troubled = False
        return self._safe

    def close(self) -> None:
        """Bring everything to the disk if it can be, and close the file."""
        self.position()
        os.close(self._file)

    def _write(self) -> bool:
        """Write what has not been; whether all of it was taken."""
        try:
            while self._written < len(self._later):
                rest = bytes(self._later[self._written :])
                self._written += os.pwrite(self._file, rest, self._safe + self._written)
        except OSError as problem:
            self._fault(problem)
            return False
        return True

    def _fault(self, problem: OSError) -> None:
        """Warn once, until everything is on the disk again: not for each line."""
        if not self._troubled:
            what = f"{str(self._path)!r} cannot be written: {problem.strerror}"
            self._warn(f"{what}. Training goes on; lines are kept and written when it can be.")
        self._troubled = True

    def _mended(self, kept: int) -> int:
        """The largest number of bytes, at most `kept`, that are whole lines of the file."""
        found = b""
        while len(found) < kept and (more := os.pread(self._file, kept - len(found), len(found))):
            found += more
        whole = found.rfind(b"\n") + 1
        if whole != kept:
            self._warn(
                f"{str(self._path)!r} has {whole} bytes of whole lines where the checkpoint counted {kept}: "
                "some are lost. Training goes on."
            )
        return whole


def _plain(value: object) -> Any:
    """As JSON can say it."""
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {str(key): _plain(entry) for key, entry in entries.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in cast("list[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _sync_folder(folder: Path) -> None:
    """A new name stands on the disk only with its folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
