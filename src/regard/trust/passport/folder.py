"""A passport on the disk: a folder with one file of tensors and the manifest.

    passport/
        tensors.safetensors     inputs, true values, what the recorder made
        manifest.json           what they are (`regard.trust.passport.contents`), with the sha256 of the tensors; last,
                                the sha256 of the manifest itself

It appears in one step, whole. Only safetensors and JSON are read, and nothing that they name is run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regard._errors import ArgumentError, CheckpointError
from regard._sealed_folder import MANIFEST, CorruptCheckpointError, load_tensors, sealed, sync_folder, verified
from regard._tensor_file import Carried, tensor_file, write_durably
from regard.trust.passport.contents import Contents, FileFacts, Item, WrongContentsError, from_json, to_json

TENSORS = "tensors"


@dataclass(frozen=True)
class Passport:
    """A passport that was verified: what it says, and its tensors on the CPU."""

    folder: Path
    contents: Contents
    tensors: dict[str, Tensor]


def check_new(folder: Path) -> None:
    """Raise ArgumentError when there is something in this place."""
    if os.path.lexists(folder):  # False, where `Path.exists` raises, for a name that no file system takes
        raise ArgumentError(
            "path", expected="a folder that does not exist yet", got=repr(str(folder)), do="Name another, or remove it."
        )


def write(folder: Path, contents: Contents, tensors: Mapping[str, Tensor]) -> int:
    """Write a new passport; its size in bytes.

    Raises:
        ArgumentError: there is something in that place, or a manifest that is too long.
        CheckpointError: the disk is full, broken or read-only; nothing is left behind.
    """
    check_new(folder)
    file = tensor_file(TENSORS, tensors)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        digest = file.write(temporary / f"{TENSORS}.safetensors")
        carried = {key: (entry.dtype, entry.shape) for key, entry in file.carried.items()}
        facts = FileFacts(file.size, digest, carried)
        manifest = sealed(to_json(dataclasses.replace(contents, files={TENSORS: facts})))
        write_durably(temporary / MANIFEST, [manifest])
        sync_folder(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the passport is not written to {str(folder)!r}: {problem.strerror or problem}. Nothing is left of it."
        ) from problem
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return file.size + len(manifest)


def read(folder: Path) -> Passport:
    """A passport whose every byte is what it was.

    Raises:
        CheckpointError: there is none, or it is truncated, changed, of another version, or not what it says.
    """
    if not _is_there(folder / MANIFEST):
        what = "no such folder" if not _is_there(folder) else "a file" if folder.is_file() else "no manifest.json in it"
        raise CheckpointError(
            f"{str(folder)!r}: expected a passport, found {what}. Give the folder that `regard passport record` wrote."
        )
    contents = verified(folder, _parsed, lambda says: says.files)
    facts = contents.files[TENSORS]
    carried = {key: Carried(dtype, shape) for key, (dtype, shape) in facts.carried.items()}
    tensors = load_tensors(folder / f"{TENSORS}.safetensors", carried)
    try:
        _check_references(contents, tensors)
    except WrongContentsError as problem:
        raise CorruptCheckpointError(folder / MANIFEST, problem.expected, problem.found) from problem
    return Passport(folder, contents, tensors)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _parsed(path: Path, says: object) -> Contents:
    try:
        contents = from_json(says)
    except WrongContentsError as problem:
        raise CorruptCheckpointError(path, problem.expected, problem.found) from problem
    except RecursionError as problem:
        raise CorruptCheckpointError(path, "a passport", "nesting without end") from problem
    if contents.files.keys() != {TENSORS}:
        found = ", ".join(map(repr, contents.files)) or "none"
        raise CorruptCheckpointError(path, f"one file {TENSORS!r}", found)
    return contents


def _check_references(contents: Contents, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor that is named is there, and of the size that is said."""
    for item in contents.items:
        _check_item(item, tensors)
    for call in contents.calls:
        for key in (call.query, call.key, call.value, *call.truth.values(), *call.made.values()):
            if key not in tensors:
                raise WrongContentsError(f"a tensor {key!r} for the call {call.name!r}", "none")


def _check_item(item: Item, tensors: Mapping[str, Tensor]) -> None:
    if item.every < 1 or min(item.shape, default=0) < 0:
        raise WrongContentsError(f"sizes of {item.name!r}", f"{list(item.shape)}, every {item.every}")
    count = -(-math.prod(item.shape) // item.every)
    for key, dtype in ((item.truth, torch.float64), (item.made, getattr(torch, item.dtype, None))):
        found = tensors.get(key)
        if found is None or found.dtype != dtype or found.numel() != count:
            said = "none" if found is None else f"{found.dtype} with {found.numel()}"
            raise WrongContentsError(f"a tensor {key!r} of {dtype} with {count} numbers for {item.name!r}", said)
