"""One checkpoint: a folder of safetensors files, and a manifest that says what has to be in them.

    ckpt-000123/
        model.safetensors, optimizer.safetensors, ...
        manifest.json       version, step, versions of torch and regard, digest of the configuration, facts,
                            size and sha256 of each file; last, the sha256 of the manifest itself

How it is written and verified stands in regard._sealed_folder; here is what a checkpoint's manifest says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from regard._errors import ArgumentError
from regard._sealed_folder import (
    MANIFEST,
    CorruptCheckpointError,
    expect,
    load_tensors,
    sealed,
    sync_folder,
    verified,
)
from regard._tensor_file import Carried, TensorFile, tensor_file, write_durably
from regard._version import __version__

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Carried(BaseModel):
    """What a tensor is that stands in its file as bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: str
    shape: list[int]


class _FileFacts(BaseModel):
    """What a file of tensors has to be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: int = Field(ge=8)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    carried: dict[str, _Carried] = {}


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
            name: _FileFacts(bytes=file.size, sha256=sums[name], carried=_said(file.carried)).model_dump()
            for name, file in self.files.items()
        }
        return sealed(
            {
                "format": "regard checkpoint",
                "version": 1,
                "step": self.step,
                "regard": __version__,
                "torch": torch.__version__,
                "digest": self.digest,
                "files": files,
                "facts": dict(self.facts),
            }
        )


def verify(folder: Path, step: int | None = None) -> Manifest:
    """The manifest of a checkpoint whose every byte is what it was; of this step, if one is given.

    Raises:
        CorruptCheckpointError: it is not.
    """

    def parse(path: Path, says: Any) -> Manifest:
        manifest = _parsed(path, says)
        if step is not None:
            expect(path, f"step {step}", f"step {manifest.step}")
        return manifest

    return verified(folder, parse, lambda manifest: manifest.files)


def load(folder: Path, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """The tensors of a verified checkpoint.

    Raises:
        CorruptCheckpointError: its files are not what their headers say, though their sums are right.
    """
    return {
        name: load_tensors(
            folder / f"{name}.safetensors",
            {key: Carried(carried.dtype, tuple(carried.shape)) for key, carried in file.carried.items()},
        )
        for name, file in manifest.files.items()
    }


def _said(carried: Mapping[str, Carried]) -> dict[str, _Carried]:
    return {key: _Carried(dtype=tensor.dtype, shape=list(tensor.shape)) for key, tensor in carried.items()}


def _parsed(path: Path, says: Any) -> Manifest:
    try:
        manifest = Manifest.model_validate(says)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise CorruptCheckpointError(path, f"{where}: {first['msg']}", repr(first["input"])[:80]) from problem
    if refused := sorted(name for name in manifest.files if not _KEY.fullmatch(name)):
        raise CorruptCheckpointError(path, "files named by letters, digits, - and _", repr(refused[0]))
    return manifest
