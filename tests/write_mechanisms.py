"""docs/mechanisms.md, from the cards of the mechanisms and what `python -m benchmarks.mechanisms` measured of them.

`tests.write_reference` writes it, and a test compares.
"""

from __future__ import annotations

import functools
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from regard import nn as mechanisms
from regard.nn import Card

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mechanisms.md"
MEASURED = ROOT / "benchmarks" / "results" / "mechanisms.json"

SECTIONS = {
    "1": "Multi-head attention",
    "2.1": "Transformer blocks",
    "2.2": "Vision: channels and places",
    "2.3": "Several modalities",
    "3.1": "Long sequences: sparse, low rank, kernels",
    "4.1": "Hierarchies",
    "4.2": "Gates",
    "4.3": "Memory",
    "5": "Grids and state spaces",
}
"""By how the guide's section on a card begins; the first one that fits."""

HEAD = """# Mechanisms

<!-- Written by `python -m tests.write_reference` from the cards and benchmarks/results/mechanisms.json; a test fails
when it is out of date. -->

Every mechanism of `regard.nn`, as its `card` tells it and as `tests/nn/test_laws.py` holds it to. *Causal*: it may be
used where a token must not see later ones; the test asks that no gradient of an output reaches a later input.
*Padding*: it takes a mask of padded tokens, which then have no influence. A dash: the question does not arise, as for
an image. *Exact*: it computes its formula, and does not approximate softmax attention.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, how_measured()]
    cards = carded()
    for begins, title in SECTIONS.items():
        some = {name: card for name, card in cards.items() if section_of(card) == begins}
        parts.append(f"\n## {title}\n")
        parts.append(table(some))
        parts.append(measured_table(some))
        beside = peer_table(some)
        parts.extend([beside] if beside else [])
        parts.extend(entry(name, card) for name, card in some.items())
    return "\n".join(parts).rstrip() + "\n"


def carded() -> dict[str, Card]:
    """The public classes that have a card."""
    classes = {name: getattr(mechanisms, name) for name in mechanisms.__all__}
    return {name: each.card for name, each in classes.items() if inspect.isclass(each) and hasattr(each, "card")}


def section_of(card: Card) -> str:
    """The key of SECTIONS under which it stands."""
    return next(begins for begins in SECTIONS if card.guide.startswith(begins))


def table(cards: dict[str, Card]) -> str:
    """Name, cost, validity."""
    lines = ["| mechanism | time | memory | causal | padding | exact |", "|---|---|---|---|---|---|"]
    for name, card in cards.items():
        cells = (
            f"[`{name}`](#{name.lower()})",
            order(card.time),
            order(card.memory),
            *map(answer, (card.causal, card.padding, card.exact)),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


@functools.cache
def measured() -> dict[str, Any]:
    """What the benchmark wrote down."""
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def how_measured() -> str:
    """On what, and what the numbers mean."""
    machine = measured()["machine"]
    rows = [*measured()["pairs"].values(), *measured()["survey"].values()]
    threads = {row["threads"] for row in rows if "threads" in row}
    if len(threads) != 1:
        raise LookupError(f"times of {sorted(threads)} threads cannot stand in one table: measure all with as many")
    versions = {"torch": machine["versions"]["torch"], **machine["peers"]}
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    text = (
        f"Measured on {machine['processor']}, {threads.pop()} threads, float32, {told}, by "
        "`python -m benchmarks.mechanisms`. *Error* of an exact mechanism: what float32 does to its output, "
        "|found - exact| / |exact| against float64 (top-k may then keep another of two keys with nearly the same "
        "score). Of an approximation, marked ~: how far its output is from softmax attention with the same maps, for "
        "unit-normal tokens and Xavier weights, untrained. *Time* in ms: forward without gradients; forward and "
        "backward, to inputs and weights. *Beside* others: the same input and, where theirs has them, the same "
        "weights; how many times longer the other takes, the median of interleaved pairs; and both errors, with "
        "backward the largest of the output and the gradients of the inputs."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def measured_table(cards: dict[str, Card]) -> str:
    """Error and times. A mechanism that was not measured is an error of whoever added it."""
    lines = ["| made as | input | error | forward | with backward |", "|---|---|--:|--:|--:|"]
    for name in cards:
        row = measured()["survey"].get(name, {})
        missing = {"error", "forward_seconds", "training_seconds"} - row.keys()
        if missing:
            raise LookupError(f"{name} is not measured: python -m benchmarks.mechanisms --survey --only {name}")
        about = "~" if row["error_kind"] == "approximation" else ""
        lines.append(
            f"| `{row['made']}` | {', '.join(map(shape, row['shapes']))} | {about}{short(row['error'])} | "
            f"{milliseconds(row['forward_seconds'])} | {milliseconds(row['training_seconds'])} |"
        )
    return "\n".join(lines) + "\n"


def peer_table(cards: dict[str, Card]) -> str:
    """How much slower others are, or nothing where there is nobody."""
    lines = ["| beside others | peer | input | their time / ours | error | their error |", "|---|---|---|--:|--:|--:|"]
    for name, row in measured()["pairs"].items():
        if row["mechanism"] in cards and "our_error" in row and "reason" not in row:
            slower = f"{row['ratio']:.2g}" if "ratio" in row else "-"
            errors = f"{short(row['our_error'])} | {short(row['their_error'])}"
            lines.append(f"| {name} | {row['peer']} | {shape(row['shape'])} | {slower} | {errors} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def shape(sizes: list[int]) -> str:
    """1 x 4096 x 512."""
    return " x ".join(map(str, sizes))


def short(error: float) -> str:
    """Two digits."""
    return f"{error:.1e}" if error < 1e-2 else f"{error:.2g}"


def milliseconds(seconds: float) -> str:
    """As many digits as mean something."""
    return f"{1e3 * seconds:.2f}" if seconds < 1e-2 else f"{1e3 * seconds:.0f}"


def order(cost: str) -> str:
    """A cost in the one way of writing it."""
    return cost if cost.startswith("O(") else f"O({cost})"


def answer(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def entry(name: str, card: Card) -> str:
    """What does not fit into a table."""
    told = f"### {name}\n\n{card.source}. The guide's {card.guide}.\n\n```text\n{card.equation}\n```\n"
    return told + (f"\n{card.note}\n" if card.note else "")
