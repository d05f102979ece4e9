"""What tests of checkpoints share: small checkpoints, equality of bits, forged manifests, a disk with faults."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.training.checkpoint import Checkpoints, Saved, read_checkpoint

DIGEST = "d" * 64
FACTS: dict[str, Any] = {"state": {"step": 7, "best": 0.1 + 0.2, "word": "银 </script>"}, "log": None}

# What changes a disk. Closing and reading are left alone.
CHANGES = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir")


def tensors_of(step: int) -> dict[str, dict[str, Tensor]]:
    """Small, and others for each step."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "model": {"weight": weight, "bias": weight[0].to(torch.bfloat16)},
        "optimizer": {"weight/exp_avg": weight * 2, "weight/step": torch.tensor(float(step))},
    }


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, tensors_of(step), FACTS | {"at": step}, digest=DIGEST)


def filled(folder: Path, *steps: int, keep: int = 9) -> Path:
    """A folder with checkpoints of these steps."""
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            save(checkpoints, step)
    return folder


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], list[int]]:
    plain = tensor.detach().resolve_conj().resolve_neg()
    # No clone: torch copies no tensor of a few bits. One number counts as contiguous whatever its stride.
    flat = plain.contiguous().as_strided((plain.numel(),), (1,))
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).tolist()


def all_bits(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, object]]:
    return {name: {key: bits(tensor) for key, tensor in named.items()} for name, named in files.items()}


def assert_is(saved: Saved | None, step: int) -> None:
    """The checkpoint of this step, to the last bit."""
    assert saved is not None
    assert (saved.step, saved.digest, saved.facts) == (step, DIGEST, FACTS | {"at": step})
    assert all_bits(saved.tensors) == all_bits(tensors_of(step))


def names(folder: Path) -> list[str]:
    """What is in a folder but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def newest(folder: Path) -> Saved:
    return read_checkpoint(folder)


def forge(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again, as somebody would who means harm."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    head = json.dumps(manifest, indent=1).removesuffix("\n}").encode()
    path.write_bytes(head + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode())


def forge_file(checkpoint: Path, name: str, content: bytes) -> None:
    """Put other content into a file of tensors, with the sums that fit."""
    (checkpoint / f"{name}.safetensors").write_bytes(content)
    sums = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(checkpoint, lambda manifest: manifest["files"][name].update(sums))


class Disk:
    """Counts what changes the disk, in `done`; the change number `at` raises `fault` instead.

    With `half`, a write brings half of its bytes to the disk before. `lasting`: so do all changes after it.
    """

    def __init__(self, at: int | None = None, fault: BaseException | None = None, *, half: bool, lasting: bool) -> None:
        self.done: list[str] = []
        self._at, self._fault, self._half, self._lasting = at, fault, half, lasting

    def wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number = len(self.done)
            self.done.append(name)
            if self._fault is not None and self._at is not None and number >= self._at:
                if number == self._at and self._half and name == "write":
                    original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                if number == self._at or self._lasting:
                    raise self._fault
            return original(*arguments, **options)

        return call


@contextmanager
def disk(
    at: int | None = None, fault: BaseException | None = None, *, half: bool = False, lasting: bool = False
) -> Iterator[Disk]:
    """A disk that behaves so."""
    broken = Disk(at, fault, half=half, lasting=lasting)
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, broken.wrapped(name, getattr(os, name)))
        yield broken
