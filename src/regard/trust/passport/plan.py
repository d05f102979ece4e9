"""What of a model fits into a budget, and what is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from regard._errors import ArgumentError

TRUE_BYTES = 8
"""Of a number of the truth, in float64."""
MOST_OF_A_PARAMETER = 4096
"""Numbers of a parameter's gradient that are compared, evenly spread."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_NAMED = 6
"""Names that a line of what is left out tells."""


def budget_bytes(budget: int | str) -> int:
    """Bytes of "64 MB", "1.5 GiB" or 64000000."""
    found = _BUDGET.fullmatch(str(budget))
    unit = found[2].upper() if found else "?"
    if isinstance(budget, bool) or found is None or unit not in _UNITS:
        raise ArgumentError("budget", expected='bytes, or a text like "64 MB"', got=repr(budget), do="Say how large.")
    return int(float(found[1]) * _UNITS[unit])


def shown_bytes(count: int) -> str:
    """As people read it: "64 MB"."""
    for unit in ("GB", "MB", "kB"):
        if count >= _UNITS[unit.upper()]:
            return f"{count / _UNITS[unit.upper()]:.3g} {unit}"
    return f"{count} bytes"


@dataclass(frozen=True)
class Plan:
    """Points that are recorded, in the order in which they end, and what is left out, in words."""

    points: tuple[str, ...]
    left_out: tuple[str, ...]
    spent: int


def chosen_points(
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    layers: Collection[str] | None,
    room: int,
    *,
    gradients: bool,
) -> Plan:
    """From the whole to the parts: what does not fit is left out where the model is finest."""
    asked = [name for name in found if layers is None or module_of(name) in layers]
    taken: set[str] = set()
    missing: list[str] = []
    spent = 0
    for name in sorted(asked, key=lambda name: name.count(".")):
        shape, dtype = found[name]
        need = math.prod(shape) * (TRUE_BYTES + dtype.itemsize) * (2 if gradients else 1)
        if spent + need > room:
            missing.append(name)
            continue
        taken.add(name)
        spent += need
    return Plan(tuple(name for name in found if name in taken), left_out("layers", missing, len(asked)), spent)


def every_of(count: int, most: int) -> int:
    """Each so many of `count` numbers are kept, so that there are at most `most`."""
    return max(1, -(-count // max(most, 1)))


def left_out(what: str, missing: Collection[str], whole: int) -> tuple[str, ...]:
    """One line for what did not fit; none where all did."""
    if not missing:
        return ()
    names = list(missing)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (f"{len(names)} of {whole} {what} do not fit into the budget: {', '.join(names[:_NAMED])}{more}",)


def module_of(point: str) -> str:
    """The module's name of a point that may have the number of its call behind it."""
    return point.rpartition(" (call ")[0] or point
