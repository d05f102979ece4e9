"""What a replay found: a row for each tensor, in units of what plain eager torch makes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from regard.trust.passport.contents import Made
from regard.trust.passport.units import FACTORS, Side

State = Literal["passed", "differs", "refused", "not judged"]
What = Literal["layer", "output", "input", "parameter", "attention"]


@dataclass(frozen=True)
class Row:
    """One tensor that was replayed.

    what: a layer's output, the model's, the gradient of a float input or of a parameter, or of an attention call.
    name: of the module with its call, of the output, ... part: "output"; of an attention call also whose gradient it
        is, or "problem", where something else is asked than was recorded.
    state: "not judged" where plain torch does not get there either; "refused" by a backend that lacks an option.
    error: the largest difference from the truth. limit: the largest that passes.
    ratio: the error in units of plain torch's; 2 of them pass, of a gradient 3.
    recorder: the ratio of whoever recorded it; None where it is not known.
    same_bits: whether it is what was recorded, to the last bit; None in another dtype, or where it cannot be told.
    note: what else is to be said.
    """

    what: What
    name: str
    part: str
    side: Side
    state: State
    error: float
    limit: float
    ratio: float
    recorder: float | None = None
    same_bits: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A replay.

    path: of the passport. made: where and by what it was made. here: the same of this replay.
    backend: who was asked to compute, or "" for the model as it is.
    rows: forward in the order in which the layers end, then gradients from the end to the begin, then attention calls.
    why: what is known about the first difference. notes: what else is to be said.
    """

    path: str
    made: Made
    here: Made
    backend: str
    rows: tuple[Row, ...]
    why: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing differs, nothing was refused, and something was compared."""
        states = {row.state for row in self.rows}
        return "passed" in states and not states & {"differs", "refused"}

    @property
    def first_difference(self) -> str | None:
        """The first thing that differs, in the order of `rows`; None where nothing does."""
        return next((row.name for row in self.rows if row.state == "differs"), None)

    @property
    def worst(self) -> Row | None:
        """The row that comes nearest to its limit, or is farthest beyond it."""
        judged = [row for row in self.rows if row.state in ("passed", "differs") and math.isfinite(row.ratio)]
        return max(judged, key=lambda row: row.ratio / FACTORS[row.side], default=None)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: no NaN, no Inf (null)."""
        told = dataclasses.asdict(self)
        told |= {"passed": self.passed, "first_difference": self.first_difference}
        return finite(told)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """A report for people: what was compared, what differs, how near the rest comes."""
        yield from self.headlines()
        yield from self._table()

    def headlines(self) -> Iterator[str]:
        """The same without its rows."""
        yield f"{'passed' if self.passed else 'failed'}: {self.path}, {self.made.model}"
        yield f"  recorded with {told(self.made)}"
        yield f"  replayed with {told(self.here)}{f', backend {self.backend}' if self.backend else ''}"
        counts = Counter(row.state for row in self.rows)
        yield f"  {', '.join(f'{count} {state}' for state, count in counts.items())}"
        if (worst := self.worst) is not None:
            limit = FACTORS[worst.side]
            yield f"  worst: {label(worst)}, {worst.ratio:.2f} of {limit:g} errors of plain torch in {self.here.dtype}"
        if self.first_difference is not None:
            yield f"  first difference: {self.first_difference}"
        yield from (f"    {line}" for line in self.why)
        yield from (f"  {line}" for line in self.notes)

    def _table(self) -> Iterator[str]:
        bad = [row for row in self.rows if row.state != "passed"]
        for row in bad[:MOST_ROWS]:
            size = "" if math.isnan(row.error) else f"error {row.error:.2e}, limit {row.limit:.2e} ({row.ratio:.3g})"
            yield f"  {row.state:10s} {label(row)}: {size}{'; ' if size and row.note else ''}{row.note}"
        if len(bad) > MOST_ROWS:
            yield f"  and {len(bad) - MOST_ROWS} more"


MOST_ROWS = 12
"""Rows that differ which a text shows; JSON has all."""


def label(row: Row) -> str:
    """What a row is of, in words."""
    if row.what == "attention":
        part = {"output": "", "problem": ", what it is asked"}.get(row.part, f", gradient of its {row.part}")
        return f"attention {row.name}{part}"
    kind = {"layer": "", "output": "output ", "input": "", "parameter": "parameter "}[row.what]
    return f"gradient of {kind}{row.name}" if row.side == "gradient" else f"{kind}{row.name}"


def told(made: Made) -> str:
    """Where something was computed, in one line."""
    who = f", {made.implementation}" if made.implementation else ""
    active = f", regard active on {made.isa}" if made.active else ""
    return f"torch {made.torch} on {made.device} ({made.torch_isa}, {made.threads} threads), {made.dtype}{who}{active}"


def finite(value: Any) -> Any:
    """JSON without NaN and Inf, which it does not have: null in their place."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(part) for part in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
