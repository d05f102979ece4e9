"""Sizes and lists of sizes, checked once and kept as plain ints, so that masks are hashable values."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor

from regard._errors import MaskError

LIMIT = 2**31  # below it, the products of two sizes stay within int64
Integers = Iterable[int] | Tensor


def whole(what: str, value: object, *, least: int = 0) -> int:
    """`value` as an int of at least `least`, or MaskError."""
    number = _integer(value)
    if number is None or not least <= number < LIMIT:
        raise MaskError(
            what,
            expected=f"an integer from {least} to {LIMIT - 1}",
            got=repr(value),
            do="Sizes and indices count tokens; a size as large as the text sets no bound.",
        )
    return number


def wholes(what: str, values: Integers, *, least: int = 0) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least `least`, or MaskError."""
    if isinstance(values, Tensor):
        values = _unpacked(what, values)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise MaskError(
            what, expected="a list, a tuple or a 1-D tensor of integers", got=repr(values), do="Write it as [3, 5]."
        )
    return tuple(whole(f"{what}[{place}]", value, least=least) for place, value in enumerate(values))


def _unpacked(what: str, values: Tensor) -> list[int]:
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise MaskError(
            what,
            expected="a 1-D tensor of integers",
            got=f"a {values.ndim}-D tensor of {values.dtype}",
            do="Give one integer for each entry, as values.long().",
        )
    return numbers_of(values)


def numbers_of(values: Tensor) -> list[int]:
    """A 1-D tensor of integers as a list."""
    return cast("list[int]", cast("Any", values).tolist())


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None  # True is an int to Python, but never a size to a reader
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, RuntimeError):
        return None
