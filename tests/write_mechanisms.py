"""docs/mechanisms.md, from the cards of the mechanisms; `tests.write_reference` writes it, and a test compares."""

from __future__ import annotations

import inspect
from pathlib import Path

from regard import nn as mechanisms
from regard.nn import Card

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mechanisms.md"

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

<!-- Written by `python -m tests.write_reference` from the cards; a test fails when it is out of date. -->

Every mechanism of `regard.nn`, as its `card` tells it and as `tests/nn/test_laws.py` holds it to. *Causal*: it may be
used where a token must not see later ones; the test asks that no gradient of an output reaches a later input.
*Padding*: it takes a mask of padded tokens, which then have no influence. A dash: the question does not arise, as for
an image. *Exact*: it computes its formula, and does not approximate softmax attention.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    cards = carded()
    for begins, title in SECTIONS.items():
        some = {name: card for name, card in cards.items() if section_of(card) == begins}
        parts.append(f"\n## {title}\n")
        parts.append(table(some))
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


def order(cost: str) -> str:
    """A cost in the one way of writing it."""
    return cost if cost.startswith("O(") else f"O({cost})"


def answer(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]


def entry(name: str, card: Card) -> str:
    """What does not fit into a table."""
    told = f"### {name}\n\n{card.source}. The guide's {card.guide}.\n\n```text\n{card.equation}\n```\n"
    return told + (f"\n{card.note}\n" if card.note else "")
