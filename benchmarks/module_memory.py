"""Peak memory of the forms that should need memory in proportion to the length, each in a fresh process.

`python -m benchmarks.module_memory` reads one JSON line, the form and its length, and answers with one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from benchmarks.memory import answer_one, asked, rise_of
from benchmarks.module_peers import PublicS4D
from benchmarks.problems import SEED, Direction
from benchmarks.sides import Side, Sizes, normal
from benchmarks.verdicts import Verdict, needed_words, verdict_of
from regard import nn as mechanisms

LENGTHS = (4096, 16384)
LINEAR_FACTOR = 4.3
"""Four times the length may need so many times the memory."""

PUBLIC = "public S4D"
OF_PUBLIC = 1 / 20
WARM_LENGTH = 128

FORMS: dict[str, Callable[[Sizes], nn.Module]] = {
    "Linformer": lambda sizes: mechanisms.LinformerAttention(
        sizes.width, sizes.heads, max_length=sizes.length, projected_length=sizes.slots
    ),
    "Performer": lambda sizes: mechanisms.PerformerAttention(sizes.width, sizes.heads),
    "Performer causal": lambda sizes: mechanisms.PerformerAttention(sizes.width, sizes.heads, causal=True),
    "elu-linear": lambda sizes: mechanisms.LinearAttention(sizes.width, sizes.heads),
    "elu-linear causal": lambda sizes: mechanisms.LinearAttention(sizes.width, sizes.heads, causal=True),
    "softmax-linear": lambda sizes: mechanisms.EfficientAttention(sizes.width, sizes.heads),
    "Nystrom": lambda sizes: mechanisms.NystromAttention(sizes.width, sizes.heads),
    "S4D": lambda sizes: mechanisms.S4D(sizes.width),
    "selective scan": lambda sizes: mechanisms.SelectiveStateSpace(sizes.width),
    PUBLIC: lambda sizes: PublicS4D(sizes.width),
}


def side_of(form: str, sizes: Sizes) -> Side:
    """A form and its input."""
    torch.default_generator.manual_seed(SEED)
    shape = (sizes.width, sizes.length) if form == PUBLIC else (sizes.length, sizes.width)
    return Side(FORMS[form](sizes), (normal(1, *shape),))


def peaks_of(form: str, sizes: Sizes, direction: Direction) -> dict[str, object]:
    """Peak bytes above weights and inputs at each length; the public S4D is asked for the first one only."""
    peaks: dict[str, int] = {}
    for length in LENGTHS[:1] if form == PUBLIC else LENGTHS:
        wish = {
            "form": form,
            "sizes": asdict(replace(sizes, length=length)),
            "direction": direction,
            "threads": torch.get_num_threads(),
        }
        answer = asked("benchmarks.module_memory", wish, {})
        if "peak_bytes" not in answer:
            return {"form": form, "direction": direction, "reason": f"n={length}: {answer['cannot']}"}
        peaks[str(length)] = answer["peak_bytes"]
    return {"form": form, "direction": direction, "peak_bytes": peaks}


def peak_here(form: str, sizes: Sizes, direction: Direction) -> int:
    """The rise of this process's high-water mark. A short text comes first, so that libraries are not counted."""
    side_of(form, replace(sizes, length=min(WARM_LENGTH, sizes.length))).run(direction)()
    return rise_of(side_of(form, sizes).run(direction))


def verdicts(rows: dict[str, dict[str, Any]]) -> list[Verdict]:
    """Is each form linear, and does our S4D need a twentieth of the public one?"""
    short, long = map(str, LENGTHS)
    found: list[Verdict] = []
    for row in rows.values():
        line, peaks = f"memory {row['form']} {row['direction']}", row.get("peak_bytes", {})
        if long in peaks:
            found.append(_at_most(line, f"peak({long}) / peak({short})", peaks[long] / peaks[short], LINEAR_FACTOR))
        elif row["form"] != PUBLIC:
            needed = needed_words(LINEAR_FACTOR, at_most=True)
            found.append(Verdict(line, f"peak({long}) / peak({short})", needed, None, None, None, row["reason"]))
    for row in rows.values():
        ours = rows.get(f"S4D {row['direction']}", {}).get("peak_bytes")
        if row["form"] == PUBLIC and ours and "peak_bytes" in row:
            line, share = f"memory S4D {row['direction']}", ours[short] / row["peak_bytes"][short]
            found.append(_at_most(line, f"of the public S4D's at n={short}", share, OF_PUBLIC))
    return found


def _at_most(line: str, what: str, measured: float, needed: float) -> Verdict:
    return verdict_of(line, what, measured, needed=needed, at_most=True)


if __name__ == "__main__":
    answer_one(lambda wish: {"peak_bytes": peak_here(wish["form"], Sizes(**wish["sizes"]), wish["direction"])})
