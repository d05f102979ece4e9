"""Named tensors in one safetensors file, bit for bit, whatever their dtype.

The format has names for most dtypes; tensors of the others stand in it as bytes, and the manifest says what they are.
A file is written in one pass through the system's own calls, so that a full disk is seen where it happens, and its
sha256 is that of what was meant, not of what came back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard._errors import ArgumentError
from regard._weights_check import ENTRY_LIMIT, HEADER_LIMIT, LENGTH_BYTES, TensorEntry, check_safetensors

_NAMED = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMED.items()}
NAME_RULE = "names of tensors that are printable and no paths out of a folder"
_PIECE = 1 << 24
"""Bytes that are hashed and written at a time."""


@dataclass(frozen=True)
class Carried:
    """What a tensor is that stands in the file as bytes."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorFile:
    """Tensors as a file, before it is written.

    Attributes:
        header: the format's description of the tensors, with its length before it.
        tensors: in the order of the file.
        carried: what those are that the format has no dtype for.
        size: of the file in bytes.
    """

    header: bytes
    tensors: list[Tensor]
    carried: dict[str, Carried]
    size: int

    def write(self, path: Path) -> str:
        """Write a new file and bring it to the disk; its sha256."""
        return write_durably(path, chain([self.header], (_memory(_plain(tensor)) for tensor in self.tensors)))


def tensor_file(name: str, tensors: Mapping[str, Tensor]) -> TensorFile:
    """How these tensors are laid out.

    Raises:
        ArgumentError: a name or a tensor that no file can hold, or more of them than are read again.
    """
    if len(tensors) > ENTRY_LIMIT:
        raise _unfit(name, f"at most {ENTRY_LIMIT} tensors", str(len(tensors)))
    entries: dict[str, object] = {}
    carried: dict[str, Carried] = {}
    # Readers want each tensor to begin at a multiple of its element's size: the widest come first.
    order = sorted(tensors, key=lambda key: (-_width(tensors[key]), key))
    reached = 0
    for key in order:
        tensor = tensors[key]
        _check_fit(name, key, tensor)
        size = tensor.numel() * tensor.element_size()
        dtype, shape = _NAMED.get(tensor.dtype, "U8"), list(tensor.shape)
        if tensor.dtype not in _NAMED:
            carried[key] = Carried(str(tensor.dtype).removeprefix("torch."), tuple(shape))
            shape = [size]
        entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + size]}
        reached += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_LIMIT:
        raise _unfit(name, f"names that make a header of at most {HEADER_LIMIT} bytes", str(len(header)))
    header = len(header).to_bytes(LENGTH_BYTES, "little") + header
    return TensorFile(header, [tensors[key] for key in order], carried, len(header) + reached)


def read_tensors(path: Path, carried: Mapping[str, Carried]) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own.

    Raises:
        CheckpointError: the header does not fit the file.
        ValueError: a name that is refused, or what is `carried` does not fit.
    """
    entries = check_safetensors(path)
    if refused := sorted(key for key in entries if not is_name(key)):
        raise ValueError(f"{NAME_RULE}, found {refused[0]!r}")
    if absent := sorted(carried.keys() - entries.keys()):
        raise ValueError(f"a tensor {absent[0]!r}, found none")
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        begin = LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little")
        for key, entry in entries.items():
            tensor = _empty(entry, carried.get(key))
            file.seek(begin + entry.begin)
            if file.readinto(_memory(tensor)) != entry.end - entry.begin:
                raise ValueError(f"{entry.end - entry.begin} bytes for tensor {key!r}, found others")
            tensors[key] = tensor
    return tensors


def is_name(name: str) -> bool:
    """Whether a tensor may be called so: nothing that somebody could take for a path out of a folder."""
    path_like = name.startswith("/") or "\\" in name or ".." in name.split("/")
    return bool(name) and name.isprintable() and not path_like and name != "__metadata__"


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """A new file of these parts, on the disk (fsync) before this returns; its sha256."""
    hashed = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for part in parts:
            whole = memoryview(part)
            for begin in range(0, len(whole), _PIECE):
                piece = whole[begin : begin + _PIECE]
                hashed.update(piece)
                while piece:
                    piece = piece[os.write(descriptor, piece) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return hashed.hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    """The same elements, one after another on the CPU. "Conjugate" and "negative" may be no more than a mark on it."""
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def _memory(tensor: Tensor) -> memoryview:
    """The bytes that a plain tensor lives in."""
    row = tensor.reshape(-1).as_strided((tensor.numel(),), (1,))  # one number alone may stand at any stride
    flat: Any = row.view(torch.uint8).numpy()
    return memoryview(flat)


def _empty(entry: TensorEntry, carried: Carried | None) -> Tensor:
    """Room for a tensor; ValueError if what is carried is no such dtype, or has another size."""
    if carried is None:
        return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    dtype = getattr(torch, carried.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype in _NAMED:
        raise ValueError(f"a dtype that is carried as bytes, found {carried.dtype!r}")
    if math.prod(carried.shape) * dtype.itemsize != entry.end - entry.begin:
        raise ValueError(f"{entry.end - entry.begin} bytes, found {carried.dtype} {list(carried.shape)}")
    # torch.empty warns of some dtypes, a view does not.
    return torch.empty(entry.end - entry.begin, dtype=torch.uint8).view(dtype).reshape(carried.shape)


def _width(tensor: Tensor) -> int:
    return tensor.element_size() if tensor.dtype in _NAMED else 1


def _check_fit(name: str, key: str, tensor: Tensor) -> None:
    if not is_name(key):
        raise _unfit(name, NAME_RULE, repr(key))
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise _unfit(name, f"plain dense tensors, {key!r} too", kind)


def _unfit(name: str, expected: str, got: str) -> ArgumentError:
    return ArgumentError(f"tensors[{name!r}]", expected=expected, got=got, do="Only what can be read again is written.")
