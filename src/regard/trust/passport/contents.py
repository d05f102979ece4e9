"""What a passport says: its manifest as values, written as JSON and judged when it is read.

Everything in a manifest may have been written by somebody else. A key that is not known, one that is absent, or a value
of another kind makes it corrupt; so does a version that this regard does not read.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal, cast

from regard.trust.passport.units import Side, Yardstick

FORMAT, VERSION = "regard passport", 1

Kind = Literal["layer", "output", "input", "parameter"]


@dataclass(frozen=True)
class Item:
    """One tensor of a model that is compared: a layer's or the model's output, or a gradient.

    name: of the module with its call, of the output, of the input or of the parameter.
    shape: of the whole tensor. every: of its elements, one after another, each so many is kept.
    truth, made: keys of the float64 truth and of what the recorder made.
    plain: by dtype, what plain torch makes of it.
    recorder: the recorder's own error in units of plain torch's.
    """

    kind: Kind
    name: str
    side: Side
    shape: tuple[int, ...]
    dtype: str
    every: int
    truth: str
    made: str
    plain: dict[str, Yardstick]
    recorder: float


@dataclass(frozen=True)
class Call:
    """One attention call: the whole problem, its answer in float64, and what the recorder made.

    options: as `regard.trust.passport.calls` writes them.
    kept: what of the call is here, in words; "" where it is all of it.
    truth: keys of the float64 output ("output") and gradients by name. made: the same of the recorder, where known.
    """

    name: str
    implementation: str
    dtype: str
    query: str
    key: str
    value: str
    options: dict[str, Any]
    kept: str
    truth: dict[str, str]
    made: dict[str, str]


@dataclass(frozen=True)
class Made:
    """Where and by what a passport was made.

    isa: the instruction set of the native core; torch_isa: that of torch. implementation: who computes attention in a
    transformers model. active: whether `regard.activate()` was on.
    """

    regard: str
    torch: str
    transformers: str
    python: str
    platform: str
    device: str
    isa: str
    torch_isa: str
    threads: int
    seed: int
    dtype: str
    model: str
    implementation: str
    active: bool
    gradients: bool


@dataclass(frozen=True)
class FileFacts:
    """What the file of tensors has to be; `carried` has the dtype and shape of tensors that stand in it as bytes."""

    bytes: int
    sha256: str
    carried: dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Contents:
    """All that a manifest says.

    order: of the points of the model, as they ended. weights: of each parameter, the first 16 digits of its sha256.
    left_out: what is not here, one line each.
    """

    format: str
    version: int
    made: Made
    inputs: dict[str, Any]
    items: tuple[Item, ...]
    calls: tuple[Call, ...]
    weights: dict[str, str]
    left_out: tuple[str, ...]
    files: dict[str, FileFacts]


class WrongContentsError(Exception):
    """What is wrong with a manifest: what was expected, what was found."""

    def __init__(self, expected: str, found: str) -> None:
        self.expected, self.found = expected, found
        super().__init__(f"expected {expected}, found {found}")


def to_json(contents: Contents) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(contents)


def from_json(says: object) -> Contents:
    """What a manifest says. Raises WrongContentsError where it is none that this version reads."""
    told: dict[str, object] = _of_type(dict, says, "it")
    for key, wanted in (("format", FORMAT), ("version", VERSION)):
        if told.get(key) != wanted or type(told.get(key)) is not type(wanted):
            raise WrongContentsError(f"{key} {wanted!r}", repr(told.get(key))[:80])
    return cast("Contents", _read(Contents, told, "it"))


def _read(kind: Any, value: object, where: str) -> Any:
    """A value of this kind, or WrongContentsError with where it stands."""
    if dataclasses.is_dataclass(kind):
        return _read_fields(cast("type", kind), value, where)
    if typing.get_origin(kind) is not None:
        return _read_generic(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    return value if kind is Any else _of_type(kind, value, where)


def _read_generic(kind: Any, value: object, where: str) -> Any:
    """A dict, a tuple, a Literal or `... | None`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        told = _of_type(dict, value, where)
        return {key: _read(inner[1], part, f"{where}.{key}") for key, part in told.items()}
    if origin is tuple:
        return _read_tuple(inner, value, where)
    if origin is Literal:
        if value not in inner:
            raise WrongContentsError(f"{where}: one of {', '.join(inner)}", repr(value)[:80])
        return value
    return None if value is None else _read(inner[0], value, where)


def _read_fields(kind: type, value: object, where: str) -> Any:
    told = _of_type(dict, value, where)
    wanted = typing.get_type_hints(kind)
    for key in sorted(told.keys() - wanted.keys()):
        raise WrongContentsError(f"{where}: no key {str(key)[:40]!r}", repr(told[key])[:80])
    for key in wanted:
        if key not in told:
            raise WrongContentsError(f"{where}: a key {key!r}", "none")
    return kind(**{key: _read(wanted[key], told[key], f"{where}.{key}") for key in wanted})


def _read_tuple(inner: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    told = _of_type(list, value, where)
    if inner[-1] is Ellipsis:
        return tuple(_read(inner[0], part, f"{where}[{place}]") for place, part in enumerate(told))
    if len(told) != len(inner):
        raise WrongContentsError(f"{where}: {len(inner)} entries", str(len(told)))
    return tuple(_read(part, value, where) for part, value in zip(inner, told, strict=True))


def _of_type(kind: type, value: object, where: str) -> Any:
    if type(value) is not kind:  # True is an int to Python, not here
        raise WrongContentsError(f"{where}: {kind.__name__}", repr(value)[:80])
    return value
