"""An audit as facts, as Markdown, and as text with the two masks side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from regard.trust.audit.result import first_difference

if TYPE_CHECKING:
    from regard.trust.audit.examination import View
    from regard.trust.audit.result import Audit

CELLS = 32
"""So many rows and columns of a mask are shown in text."""
MEANINGS = {"■": "attends", "·": "does not", "+": "attends, declared not to", "-": "does not, declared to"}


def facts(audit: Audit) -> dict[str, Any]:
    """For JSON. The mask is one string for each query: 1 = attends."""
    sinks = None if audit.sinks is None else [float(sink) for sink in audit.sinks]
    found: dict[str, Any] = {
        "mask": {"words": audit.description.words, "named": _repr(audit.named_mask), "rows": _rows(audit)},
        "corner": audit.corner,
        "scale": audit.scale,
        "softcap": audit.softcap,
        "sinks": sinks,
        "bias": None if audit.bias is None or not audit.bias.numel() else float(audit.bias.abs().max()),
        "groups": audit.groups,
        "dropped": audit.dropped,
    }
    return _strict(
        {
            "target": audit.name,
            "passed": audit.passed,
            "strict": audit.strict,
            "declared": dict(audit.declared),
            "findings": [finding.facts() for finding in audit.findings],
            "warnings": [finding.facts() for finding in audit.warnings],
            "limits": list(audit.limits),
            "found": found,
            "views": [_view_facts(view) for view in audit.views],
            "ways": {name: facts(way) for name, way in audit.ways.items()},
        }
    )


def _repr(thing: object) -> str | None:
    return None if thing is None else repr(thing)


def _rows(audit: Audit) -> list[str]:
    sample, head = first_difference(audit.views[0])
    return ["".join("1" if bool(cell) else "0" for cell in row) for row in audit.mask[sample, head]]


def _view_facts(view: View) -> dict[str, Any]:
    from regard.trust.audit.describe_mask import describe

    return {
        "setting": view.setting.label,
        "found": describe(view.found.allowed).words,
        "declared": None if view.expected is None else describe(view.expected).words,
        "findings": [finding.code for finding in view.findings],
    }


def _strict(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _strict(part) for key, part in cast("dict[object, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in cast("list[Any]", value)]
    return value


# ---------------------------------------------------------------------------------------------------- words


def recovered(audit: Audit) -> Iterator[tuple[str, str]]:
    """What was found, as (name, words)."""
    yield "mask", audit.description.words
    if audit.named_mask is not None:
        yield "as regard.masks", repr(audit.named_mask)
    if audit.corner is not None:
        yield "corner", audit.corner
    if audit.scale is not None:
        yield "scale", _number(audit.scale)
    if audit.softcaps:
        yield "softcap", "none" if audit.softcap is None else _number(audit.softcap)
    if audit.scales:
        yield "sinks", "none" if audit.sinks is None else ", ".join(f"{float(sink):.3g}" for sink in audit.sinks)
    if audit.bias is not None:
        size = float(audit.bias.max() - audit.bias.min()) if audit.bias.numel() else 0.0
        yield "bias", "none" if size < 0.01 else f"up to {size:.3g} between keys"
    if audit.groups is not None:
        yield "key/value head of each query head", " ".join(map(str, audit.groups))
    if audit.dropped is not None:
        yield "weights dropped", f"{100 * audit.dropped:.0f}%"


def _number(value: float | Sequence[float | None]) -> str:
    parts = [value] if isinstance(value, int | float) else list(value)
    return ", ".join("none" if part is None else f"{part:.5g}" for part in parts)


def headline(audit: Audit) -> str:
    """One line: does it do what is declared?"""
    if audit.passed:
        return f"{audit.name}: does what is declared"
    if not audit.findings:
        return f"{audit.name}: {_counted(audit.warnings, 'warning')}, and strict was asked for"
    return f"{audit.name}: {_counted(audit.findings, 'finding')}"


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}" if len(things) == 1 else f"{len(things)} {name}s"


def text(audit: Audit) -> str:
    """For a terminal."""
    declared = ", ".join(f"{name} {value}" for name, value in audit.declared.items())
    lines = [headline(audit), f"declared: {declared or 'plain attention'}", ""]
    lines += [f"  {finding}" for finding in audit.findings]
    lines += [f"  warning, {finding}" for finding in audit.warnings]
    lines += [""] if audit.findings or audit.warnings else []
    lines += [f"  {name}: {words}" for name, words in recovered(audit)]
    lines += ["", *side_by_side(audit)]
    lines += [f"note: {limit}" for limit in audit.limits]
    return "\n".join(lines).rstrip()


def side_by_side(audit: Audit) -> list[str]:
    """The declared mask and the recovered one, cell by cell."""
    view = audit.shown()
    sample, head = first_difference(view)
    found = view.found.allowed[sample, head]
    wanted = None if view.expected is None else view.expected[sample, head]
    rows, cols = (_shown_part(found, wanted, dim) for dim in (0, 1))
    cut = "" if (len(rows), len(cols)) == tuple(found.shape) else f" from {rows.start} and {cols.start} on"
    title = f"{view.setting.label}: queries down, keys across{cut}; sample {sample}, head {head}"
    if wanted is None:
        return [title, "found", *(_cells(found, None, row, cols) for row in rows)]
    width = max(2 * len(cols) - 1, len("declared"))
    lines = [f"{_cells(wanted, None, row, cols):<{width}}   {_cells(found, wanted, row, cols)}" for row in rows]
    used = [mark for mark in MEANINGS if any(mark in line for line in lines)]
    legend = ", ".join(f"{mark} {MEANINGS[mark]}" for mark in used)
    return [title, f"{'declared':<{width}}   found", *lines, legend]


def _shown_part(found: Tensor, wanted: Tensor | None, dim: int) -> range:
    """At most CELLS rows (dim 0) or columns (1): those around the first difference, or the first ones."""
    length = found.shape[dim]
    start = 0
    if wanted is not None and length > CELLS:
        wrong = (found != wanted).any(1 - dim).nonzero()
        start = max(0, min(int(wrong[0]) - CELLS // 4, length - CELLS)) if wrong.numel() else 0
    return range(start, min(length, start + CELLS))


def _cells(found: Tensor, wanted: Tensor | None, row: int, cols: range) -> str:
    def mark(col: int) -> str:
        attends = bool(found[row, col])
        if wanted is None or attends == bool(wanted[row, col]):
            return "■" if attends else "·"
        return "+" if attends else "-"

    return " ".join(mark(col) for col in cols)


def markdown(audit: Audit) -> str:
    """For a page or a bug report."""
    lines = [f"# {headline(audit)}", ""]
    lines += [f"- declared {name}: `{value}`" for name, value in audit.declared.items()]
    lines += ["", "| code | what | seen |", "|---|---|---|"] if audit.findings or audit.warnings else []
    for finding in audit.findings:
        lines.append(f"| `{finding.code}` | {_cell(finding.sentence)} | {_cell('; '.join(finding.where))} |")
    for finding in audit.warnings:
        lines.append(f"| `{finding.code}` (warning) | {_cell(finding.sentence)} | |")
    lines += ["", "| recovered | |", "|---|---|"]
    lines += [f"| {name} | {_cell(words)} |" for name, words in recovered(audit)]
    lines += ["", "```text", *side_by_side(audit), "```", ""]
    lines += [f"- {limit}" for limit in audit.limits]
    return "\n".join(lines).rstrip() + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")
