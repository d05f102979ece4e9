"""One checkpoint: a folder of safetensors files, and a manifest that says what has to be in them.

    ckpt-000123/
        model.safetensors, optimizer.safetensors, ...
        manifest.json       version, step, versions of torch and regard, digest of the configuration, facts,
                            size and sha256 of each file; last, the sha256 of the manifest itself

The manifest is written last: a folder without one was never finished. Reading believes nothing: a checkpoint is what
its manifest says to the last bit and holds nothing else, or it is corrupt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from regard._errors import ArgumentError, CheckpointError
from regard._version import __version__
from regard._weights_check import HEADER_LIMIT
from regard.training._checkpoint_tensors import Carried, TensorFile, read_tensors, tensor_file, write_durably

MANIFEST = "manifest.json"
_SEAL = ',\n "sha256": "{}"\n}}\n'
_SEAL_BYTES = len(_SEAL.format("0" * 64))
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class CorruptCheckpointError(CheckpointError):
    """A checkpoint that is not what it was: which file of it, what was expected, what was found."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        self.line = f"{path.parent.name}/{path.name}: expected {expected}, found {found}"
        super().__init__(f"{str(path)!r}: corrupt: expected {expected}, found {found}.")


class _FileFacts(BaseModel):
    """What a file of tensors has to be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: int = Field(ge=8)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    carried: dict[str, Carried] = {}


class Manifest(BaseModel):
    """What a checkpoint has to be; `files` by their names without ".safetensors"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["regard checkpoint"]
    version: Literal[1]
    step: int = Field(ge=0)
    regard: str
    torch: str
    digest: str
    files: dict[str, _FileFacts]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A checkpoint before it is written."""

    step: int
    digest: str
    facts: Mapping[str, Any]
    files: Mapping[str, TensorFile]
    size: int

    @classmethod
    def of(cls, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any], digest: str) -> Draft:
        """Everything that could be wrong with what is to be saved is found here, before a disk is touched.

        Raises:
            ArgumentError: see `tensor_file`; or a name that is none for a file, or facts that are not JSON.
        """
        for name in tensors:
            if not _KEY.fullmatch(name):
                raise ArgumentError(
                    "tensors", expected="names of letters, digits, - and _", got=repr(name), do="They become files."
                )
        files = {name: tensor_file(name, named) for name, named in tensors.items()}
        draft = cls(step, digest, facts, files, sum(file.size for file in files.values()))
        manifest = draft.manifest(dict.fromkeys(files, "0" * 64))
        return cls(step, digest, facts, files, draft.size + len(manifest))

    def write(self, folder: Path) -> None:
        """Into an empty folder; all of it is on the disk when this returns."""
        sums = {name: file.write(folder / f"{name}.safetensors") for name, file in self.files.items()}
        write_durably(folder / MANIFEST, [self.manifest(sums)])
        sync_folder(folder)

    def manifest(self, sums: Mapping[str, str]) -> bytes:
        """manifest.json, for these sha256 sums of the files."""
        files = {
            name: _FileFacts(bytes=file.size, sha256=sums[name], carried=file.carried).model_dump()
            for name, file in self.files.items()
        }
        says = {
            "format": "regard checkpoint",
            "version": 1,
            "step": self.step,
            "regard": __version__,
            "torch": torch.__version__,
            "digest": self.digest,
            "files": files,
            "facts": dict(self.facts),
        }
        try:
            text = json.dumps(says, indent=1)
        except (TypeError, ValueError, RecursionError) as problem:
            raise ArgumentError(
                "facts", expected="what JSON can hold", got=str(problem), do="Leave it out."
            ) from problem
        whole = _sealed(text.removesuffix("\n}").encode())
        if len(whole) > HEADER_LIMIT:
            raise ArgumentError(
                "facts", expected=f"a manifest of at most {HEADER_LIMIT} bytes", got=str(len(whole)), do="Save less."
            )
        return whole


def verify(folder: Path, step: int | None = None) -> Manifest:
    """The manifest of a checkpoint whose every byte is what it was; of this step, if one is given.

    Raises:
        CorruptCheckpointError: it is not.
    """
    try:
        if folder.is_symlink():
            raise CorruptCheckpointError(folder, "a folder", "a symbolic link")
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
        for name, status in found.items():
            if not stat.S_ISREG(status.st_mode):
                raise CorruptCheckpointError(folder / name, "a file", _kind(status.st_mode))
        if MANIFEST not in found:
            raise CorruptCheckpointError(folder / MANIFEST, "a manifest", _instead(found.keys()))
        manifest = _read_manifest(folder / MANIFEST, found[MANIFEST].st_size)
        if step is not None:
            _expect(folder / MANIFEST, f"step {step}", f"step {manifest.step}")
        sizes = {f"{name}.safetensors": file.bytes for name, file in manifest.files.items()}
        if extra := sorted(found.keys() - sizes.keys() - {MANIFEST}):
            raise CorruptCheckpointError(folder / extra[0], "no such file", f"{found[extra[0]].st_size} bytes")
        for name, size in sizes.items():
            _expect(folder / name, f"{size} bytes", f"{found[name].st_size} bytes" if name in found else "no such file")
        for name, file in manifest.files.items():
            path = folder / f"{name}.safetensors"
            _expect(path, f"sha256 {file.sha256}", f"sha256 {_sum(path)}")
    except OSError as problem:
        broken = Path(os.fsdecode(problem.filename)) if problem.filename is not None else folder
        raise CorruptCheckpointError(broken, "to be read", problem.strerror or str(problem)) from problem
    return manifest


def load(folder: Path, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """The tensors of a verified checkpoint.

    Raises:
        CorruptCheckpointError: its files are not what their headers say, though their sums are right.
    """
    loaded: dict[str, dict[str, Tensor]] = {}
    for name, file in manifest.files.items():
        path = folder / f"{name}.safetensors"
        try:
            loaded[name] = read_tensors(path, file.carried)
        except (CheckpointError, ValueError, RuntimeError, OSError) as problem:
            raise CorruptCheckpointError(path, "sound tensors", _one_line(problem)) from problem
    return loaded


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(path: Path, size: int) -> Manifest:
    if not _SEAL_BYTES < size <= HEADER_LIMIT:
        raise CorruptCheckpointError(path, f"{_SEAL_BYTES} to {HEADER_LIMIT} bytes", f"{size} bytes")
    whole = path.read_bytes()
    meant = _sealed(whole[:-_SEAL_BYTES])
    if whole != meant:
        raise CorruptCheckpointError(path, f"as its last entry {_last_entry(meant)}", _last_entry(whole))
    try:
        manifest = Manifest.model_validate(json.loads(whole[:-_SEAL_BYTES] + b"}"))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise CorruptCheckpointError(path, f"{where}: {first['msg']}", repr(first["input"])[:80]) from problem
    except (ValueError, RecursionError) as problem:
        raise CorruptCheckpointError(path, "JSON", _one_line(problem)) from problem
    if refused := sorted(name for name in manifest.files if not _KEY.fullmatch(name)):
        raise CorruptCheckpointError(path, "files named by letters, digits, - and _", repr(refused[0]))
    return manifest


def _sealed(head: bytes) -> bytes:
    """A manifest's text with its own sha256 as its last entry."""
    return head + _SEAL.format(hashlib.sha256(head).hexdigest()).encode()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_entry(manifest: bytes) -> str:
    end = manifest[-_SEAL_BYTES:]
    stated = re.fullmatch(rb',\n ("sha256": "[0-9a-f]{64}")\n}\n', end)
    return stated[1].decode() if stated else f"{end[-24:]!r}"


def _expect(path: Path, expected: str, found: str) -> None:
    if expected != found:
        raise CorruptCheckpointError(path, expected, found)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def _instead(names: Any) -> str:
    return f"only {', '.join(sorted(names)[:3])}" if names else "an empty folder"


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:160] or type(problem).__name__
