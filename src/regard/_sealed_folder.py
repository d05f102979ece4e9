"""A folder of safetensors files with a manifest that says what has to be in it, to the last bit.

    folder/
        model.safetensors, ...
        manifest.json       what its owner says, with size and sha256 of each file; last, its own sha256

The manifest is written last: a folder without one was never finished. Reading believes nothing: a folder is what its
manifest says and holds nothing else, or it is corrupt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from regard._errors import ArgumentError, CheckpointError
from regard._tensor_file import Carried, read_tensors
from regard._weights_check import HEADER_LIMIT

MANIFEST = "manifest.json"
_SEAL = ',\n "sha256": "{}"\n}}\n'
_SEAL_BYTES = len(_SEAL.format("0" * 64))

Parsed = TypeVar("Parsed")


class CorruptCheckpointError(CheckpointError):
    """A folder that is not what it was: which file of it, what was expected, what was found."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        self.line = f"{path.parent.name}/{path.name}: expected {expected}, found {found}"
        super().__init__(f"{str(path)!r}: corrupt: expected {expected}, found {found}.")


class FileFacts(Protocol):
    """What a file of tensors has to be."""

    @property
    def bytes(self) -> int:
        """Its size."""
        ...

    @property
    def sha256(self) -> str:
        """The sum of all of it."""
        ...


def sealed(says: Mapping[str, Any]) -> bytes:
    """A manifest with its own sha256 as its last entry.

    Raises:
        ArgumentError: it is not JSON, or too long to be read again.
    """
    try:
        text = json.dumps(says, indent=1)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ArgumentError("facts", expected="what JSON can hold", got=str(problem), do="Leave it out.") from problem
    whole = _with_seal(text.removesuffix("\n}").encode())
    if len(whole) > HEADER_LIMIT:
        raise ArgumentError(
            "facts", expected=f"a manifest of at most {HEADER_LIMIT} bytes", got=str(len(whole)), do="Save less."
        )
    return whole


def verified(
    folder: Path,
    parse: Callable[[Path, Any], Parsed],
    files_of: Callable[[Parsed], Mapping[str, FileFacts]],
) -> Parsed:
    """The manifest of a folder whose every byte is what it was.

    Args:
        folder: where it is.
        parse: from the manifest's path and its JSON, without the seal, to what it says; raises CorruptCheckpointError.
        files_of: the files that it names, without their ".safetensors".

    Raises:
        CorruptCheckpointError: something is not what it has to be.
    """
    try:
        found = _regular_files(folder)
        if MANIFEST not in found:
            raise CorruptCheckpointError(folder / MANIFEST, "a manifest", _instead(found.keys()))
        manifest = parse(folder / MANIFEST, _unsealed(folder / MANIFEST, found[MANIFEST]))
        files = {f"{name}.safetensors": facts for name, facts in files_of(manifest).items()}
        if extra := sorted(found.keys() - files.keys() - {MANIFEST}):
            raise CorruptCheckpointError(folder / extra[0], "no such file", f"{found[extra[0]]} bytes")
        for name, facts in files.items():
            size = f"{found[name]} bytes" if name in found else "no such file"
            expect(folder / name, f"{facts.bytes} bytes", size)
        for name, facts in files.items():
            expect(folder / name, f"sha256 {facts.sha256}", f"sha256 {_sum(folder / name)}")
    except OSError as problem:
        broken = Path(os.fsdecode(problem.filename)) if problem.filename is not None else folder
        raise CorruptCheckpointError(broken, "to be read", problem.strerror or str(problem)) from problem
    return manifest


def load_tensors(path: Path, carried: Mapping[str, Carried]) -> dict[str, Tensor]:
    """The tensors of a verified file.

    Raises:
        CorruptCheckpointError: it is not what its header says, though its sum is right.
    """
    try:
        return read_tensors(path, carried)
    except (CheckpointError, ValueError, RuntimeError, OSError) as problem:
        raise CorruptCheckpointError(path, "sound tensors", one_line(problem)) from problem


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expect(path: Path, expected: str, found: str) -> None:
    """Raise CorruptCheckpointError when these differ."""
    if expected != found:
        raise CorruptCheckpointError(path, expected, found)


def one_line(problem: BaseException) -> str:
    """The message of somebody else's error, fit for one line."""
    return " ".join(str(problem).split())[:160] or type(problem).__name__


def _regular_files(folder: Path) -> dict[str, int]:
    """The sizes of the files in a folder that holds nothing else."""
    if folder.is_symlink():
        raise CorruptCheckpointError(folder, "a folder", "a symbolic link")
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    for name, status in found.items():
        if not stat.S_ISREG(status.st_mode):
            raise CorruptCheckpointError(folder / name, "a file", _kind(status.st_mode))
    return {name: status.st_size for name, status in found.items()}


def _unsealed(path: Path, size: int) -> Any:
    """What a manifest says, without its seal, once that was found to be right."""
    if not _SEAL_BYTES < size <= HEADER_LIMIT:
        raise CorruptCheckpointError(path, f"{_SEAL_BYTES} to {HEADER_LIMIT} bytes", f"{size} bytes")
    whole = path.read_bytes()
    meant = _with_seal(whole[:-_SEAL_BYTES])
    if whole != meant:
        raise CorruptCheckpointError(path, f"as its last entry {_last_entry(meant)}", _last_entry(whole))
    try:
        return json.loads(whole[:-_SEAL_BYTES] + b"}")
    except (ValueError, RecursionError) as problem:
        raise CorruptCheckpointError(path, "JSON", one_line(problem)) from problem


def _with_seal(head: bytes) -> bytes:
    return head + _SEAL.format(hashlib.sha256(head).hexdigest()).encode()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_entry(manifest: bytes) -> str:
    end = manifest[-_SEAL_BYTES:]
    stated = re.fullmatch(rb',\n ("sha256": "[0-9a-f]{64}")\n}\n', end)
    return stated[1].decode() if stated else f"{end[-24:]!r}"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def _instead(names: Any) -> str:
    return f"only {', '.join(sorted(names)[:3])}" if names else "an empty folder"
