"""Masks, positions and the inputs of models as JSON and tensors, and back. Nothing that is read is run.

Tensors stand in a file under keys; JSON refers to them by key. A mask of `regard.masks` is told by name and arguments,
so that a kernel meets the same structure again; any other is written out, a bit for each pair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from regard import masks, positions
from regard._errors import ArgumentError, RegardError
from regard.masks import Dense, Mask
from regard.positions import Position
from regard.trust.passport.runs import Inputs

Keep = Callable[[str, Tensor], str]
"""Takes a tensor under a name, and gives the key under which it will be found."""
_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
_PLAIN = (bool, int, float, str, type(None))


class NotWritableError(Exception):
    """What cannot be told in JSON and tensors; the message says what and why."""


# ------------------------------------------------------------------------------------------------- masks


def writable(mask: Mask) -> bool:
    """Whether a mask can be told by what it is made of; any other is first written out over all its pairs."""
    return all(isinstance(part, Dense) or _told(part) is not None for part in mask.conjuncts)


def write_mask(mask: Mask, keep: Keep) -> dict[str, Any]:
    """A mask that is writable as JSON; its tensors go to `keep`."""
    if len(mask.conjuncts) > 1:
        return {"all": [write_mask(part, keep) for part in mask.conjuncts]}
    told = _told(mask)
    if told is not None:
        return told
    if not isinstance(mask, Dense):
        raise NotWritableError(f"a mask that is no regard.masks value: {type(mask).__name__}")
    shared = unspread(mask.tensor)
    return {
        "kind": "Dense",
        "bits": keep("mask", packed(shared)),
        "stored": list(shared.shape),
        "shape": list(mask.tensor.shape),
    }


def read_mask(written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mask:
    """The mask again. Raises ValueError for what is none."""
    if "all" in written:
        whole, *others = (read_mask(part, tensors) for part in written["all"])
        for part in others:
            whole = whole & part
        return whole
    if written["kind"] == "Dense":
        return Dense(unpacked(tensors[written["bits"]], written["stored"]).expand(written["shape"]))
    made = _public(masks, written["kind"], Mask)
    return made(**{name: _as_tuple(value) for name, value in written["arguments"].items()})


def _told(mask: Mask) -> dict[str, Any] | None:
    """By name and arguments, if these make an equal mask again."""
    name = type(mask).__name__
    if getattr(masks, name, None) is not type(mask) or not dataclasses.is_dataclass(mask):
        return None
    fields = [entry.name for entry in dataclasses.fields(mask) if not entry.name.startswith("_")]
    arguments = {name: getattr(mask, name) for name in fields}
    if not all(_is_plain(value) for value in arguments.values()):
        return None
    try:
        again = type(mask)(**arguments)
    except (RegardError, TypeError):
        return None
    return {"kind": name, "arguments": arguments} if again == mask else None


def packed(allowed: Tensor) -> Tensor:
    """A bool tensor as uint8, eight pairs in each."""
    flat = allowed.detach().reshape(-1).cpu()
    flat = torch.cat([flat, flat.new_zeros(-flat.numel() % 8)])
    return (flat.view(-1, 8) * _BITS).sum(-1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: list[int]) -> Tensor:
    """The bool tensor again. Raises ValueError when it has another size."""
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        raise ValueError(f"a mask of {count} pairs, found {bits.numel()} bytes")
    return (bits.reshape(-1, 1) & _BITS).bool().reshape(-1)[:count].reshape(shape)


def unspread(tensor: Tensor) -> Tensor:
    """The same numbers with size 1 where they are only spread over memory."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


# --------------------------------------------------------------------------------------------- positions


def write_position(position: Position, keep: Keep) -> dict[str, Any]:
    """A position as JSON; its tables go to `keep`."""
    name = type(position).__name__
    options = {key: value for key, value in position.options().items() if value is not None}
    if getattr(positions, name, None) is not type(position) or not all(map(_is_plain, options.values())):
        raise NotWritableError(f"the position {name}, whose options are not all numbers and words")
    tables = {key: keep(f"position.{key}", tensor) for key, tensor in position.state_dict().items()}
    written = {"kind": name, "options": options, "tables": tables, "dtype": _dtype_name(position)}
    try:
        read_position(written, {key: position.state_dict()[name] for name, key in tables.items()})
    except (RegardError, TypeError, ValueError, RuntimeError) as problem:
        raise NotWritableError(f"the position {name}, which its options do not make again ({problem})") from problem
    return written


def read_position(written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Position:
    """The position again. Raises ValueError or RuntimeError for what is none."""
    made = _public(positions, written["kind"], Position)
    position = made(**{name: _as_tuple(value) for name, value in written["options"].items()})
    if written["dtype"]:
        position = position.to(dtype_of(written["dtype"]))
    position.load_state_dict({name: tensors[key] for name, key in written["tables"].items()})
    return position


def _dtype_name(position: Position) -> str:
    first = next(iter(position.state_dict().values()), None)
    return "" if first is None or not first.is_floating_point() else name_of(first.dtype)


# ------------------------------------------------------------------------------------------------ inputs


def write_inputs(inputs: Inputs, keep: Keep) -> dict[str, Any]:
    """What a model is called with as JSON; its tensors go to `keep`."""

    def write(where: str, entry: Any) -> Any:
        if isinstance(entry, Tensor):
            return {"tensor": keep(where, entry)}
        if isinstance(entry, Mapping):
            parts = cast("Mapping[Any, Any]", entry).items()
            return {"mapping": {str(key): write(f"{where}.{key}", part) for key, part in parts}}
        if isinstance(entry, (list, tuple)):
            parts = enumerate(cast("tuple[Any, ...]", entry))
            return {type(cast("Any", entry)).__name__: [write(f"{where}.{place}", part) for place, part in parts]}
        if isinstance(entry, _PLAIN):
            return {"plain": entry}
        raise ArgumentError(
            f"inputs {where}",
            expected="tensors, numbers, words, and lists, tuples and mappings of them",
            got=type(entry).__name__,
            do="A passport has to be read elsewhere, without running anything that it brings.",
        )

    args = [write(str(place), entry) for place, entry in enumerate(inputs.args)]
    return {"args": args, "named": {name: write(name, entry) for name, entry in inputs.named.items()}}


def read_inputs(written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Inputs:
    """The inputs again. Raises ValueError or KeyError for what are none."""

    def read(entry: Any) -> Any:
        ((kind, value),) = entry.items()
        if kind == "tensor":
            return tensors[value].clone()
        if kind == "mapping":
            return {key: read(part) for key, part in value.items()}
        if kind in ("list", "tuple"):
            parts = [read(part) for part in value]
            return parts if kind == "list" else tuple(parts)
        if kind != "plain" or not isinstance(value, _PLAIN):
            raise ValueError(f"an input, found {kind!r}")
        return value

    named = {name: read(entry) for name, entry in written["named"].items()}
    return Inputs(tuple(read(entry) for entry in written["args"]), named)


# ------------------------------------------------------------------------------------------------ dtypes

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_of(name: str) -> torch.dtype:
    """A float dtype by its name. Raises ArgumentError for another."""
    if name not in DTYPES:
        raise ArgumentError("dtype", expected=f"one of {', '.join(DTYPES)}", got=repr(name), do="Name one of them.")
    return DTYPES[name]


def name_of(dtype: torch.dtype) -> str:
    """The name of torch.float32 is "float32"."""
    return str(dtype).removeprefix("torch.")


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in cast("tuple[object, ...]", value))
    return isinstance(value, _PLAIN)


def _as_tuple(value: Any) -> Any:
    """JSON has lists only; what these masks and positions take are tuples."""
    return tuple(_as_tuple(part) for part in cast("list[Any]", value)) if isinstance(value, list) else value


def _public(room: Any, name: str, kind: type) -> Callable[..., Any]:
    found = getattr(room, name, None) if name in room.__all__ else None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"a name of {room.__name__}, found {name!r}")  # noqa: TRY004 - what was read is wrong
    return cast("Callable[..., Any]", found)
