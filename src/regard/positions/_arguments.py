"""How the arguments of a position's constructor are refused: one wording for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regard._errors import ArgumentError


def check_count(owner: str, name: str, value: object, *, minimum: int = 1) -> int:
    """`value` when it is an int of at least `minimum`. A bool is not a count."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
        return value
    raise ArgumentError(
        f"{owner} {name}",
        expected=f"an int >= {minimum}",
        got=repr(value),
        do=f"Give {name} as a whole number of at least {minimum}.",
    )


def check_even(owner: str, name: str, value: object, *, minimum: int = 2) -> int:
    """`value` when it is an even int of at least `minimum`."""
    count = check_count(owner, name, value, minimum=minimum)
    if count % 2 == 0:
        return count
    raise ArgumentError(
        f"{owner} {name}",
        expected="an even int, since it is split in two halves",
        got=repr(value),
        do=f"Take {count - 1 if count > minimum else count + 1} or {count + 1} as {name}.",
    )


def check_number(owner: str, name: str, value: object, *, minimum: float, above: bool = False) -> float:
    """`value` as a float when it is a finite number >= `minimum` (with `above`: > `minimum`)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if number > minimum or (number == minimum and not above):
            return number
    relation = ">" if above else ">="
    raise ArgumentError(
        f"{owner} {name}",
        expected=f"a finite number {relation} {minimum:g}",
        got=repr(value),
        do=f"Give {name} as a number {relation} {minimum:g}.",
    )


def check_choice(owner: str, name: str, value: object, choices: Sequence[str | None]) -> None:
    """Refuse a `value` that is none of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ArgumentError(
            f"{owner} {name}", expected=f"one of {listed}", got=repr(value), do=f"Give one of these as {name}."
        )
