"""The results: one JSON document, written whole or not at all, and its tables for people."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contest import Contest, Outcome
from benchmarks.memory import Memory
from benchmarks.problems import SEED
from benchmarks.small import Cell
from benchmarks.timing import median_ratio
from benchmarks.verdicts import Limits, Verdict

FORMAT = 1


@dataclass
class Report:
    """Everything that one run of the benchmark found so far."""

    command: Mapping[str, object]
    ours: str
    machine: Mapping[str, Any] = field(default_factory=machine.describe)
    load_before: tuple[float, ...] = field(default_factory=os.getloadavg)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    limits: Limits = field(default_factory=Limits)
    contests: list[Contest] = field(default_factory=list[Contest])
    memory: list[Memory] = field(default_factory=list[Memory])
    cells: list[Cell] = field(default_factory=list[Cell])
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    finished: bool = False

    def as_json(self) -> dict[str, Any]:
        """The document."""
        return {
            "format": FORMAT,
            "started": self.started,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": self.finished,
            "command": dict(self.command),
            "ours": self.ours,
            "machine": dict(self.machine),
            "seed": SEED,
            "load_before": list(self.load_before),
            "load_after": list(os.getloadavg()),
            "limits": self.limits.as_json(),
            "contests": [contest.as_json() for contest in self.contests],
            "memory": [memory.as_json() for memory in self.memory],
            "small_shapes": [cell.as_json() for cell in self.cells],
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
        }


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Beside the place first, then into place at once: a reader sees the old file or the new one."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def print_report(report: Report, console: Console) -> None:
    """The tables that have rows."""
    if report.contests:
        console.print(contest_table(report))
    if report.memory:
        console.print(memory_table(report.memory))
    if report.cells:
        console.print(small_table(report.cells))
    if report.verdicts:
        console.print(verdict_table(report.verdicts))
    for reason in sorted({reason for reason in report.limits.reasons.values() if reason}):
        console.print(f"Fractions of the FMA peak are left out: {reason}.", highlight=False)


def contest_table(report: Report) -> Table:
    """Every contestant of every contest: median, speed, fraction of the peak, and who is how much faster."""
    table = _table(
        "Time", ("problem", "contestant", "*ms", "*± %", "*GF/s", "*of peak", "*ours is x faster", "why not")
    )
    for contest in report.contests:
        for outcome in contest.outcomes:
            table.add_row(*_contest_row(contest, outcome, report))
        table.add_section()
    return table


def _contest_row(contest: Contest, outcome: Outcome, report: Report) -> tuple[str, ...]:
    problem = outcome.entry.problem
    if not outcome.ran:
        return (problem.name, outcome.entry.name, "", "", "", "", "", outcome.reason)
    facts: dict[str, Any] = outcome.as_json()
    peak = report.limits.peaks.get(problem.dtype)
    mine = [other for other in contest.outcomes if other.entry.name == report.ours and other.entry.problem == problem]
    compared = mine and mine[0].ran and mine[0] is not outcome
    return (
        problem.name,
        outcome.entry.name,
        f"{1e3 * outcome.median:.3f}",
        f"{100 * facts['spread']:.0f}",
        f"{facts['gflops']:.1f}",
        f"{outcome.speed / peak:.0%}" if peak else "",
        f"{median_ratio(outcome.seconds, mine[0].seconds):.2f}" if compared else "",
        "",
    )


def memory_table(rows: Sequence[Memory]) -> Table:
    """Peak memory of each entry."""
    table = _table("Peak memory above the inputs", ("problem", "contestant", "*MiB", "*x results", "why not"))
    for row in rows:
        known = row.peak_bytes is not None
        peak = f"{(row.peak_bytes or 0) / 2**20:.1f}" if known else ""
        beyond = f"{row.beyond_results:.2f}" if known else ""
        table.add_row(row.entry.problem.name, row.entry.name, peak, beyond, row.reason)
    return table


def small_table(cells: Sequence[Cell]) -> Table:
    """Ours / SDPA in microseconds, a row for each length and a column for each head size; holes are marked !"""
    widths = sorted({cell.problem.head_dim for cell in cells})
    header = ("way", "problem", "*n", *(f"*d={width}" for width in widths))
    table = _table("Small shapes: microseconds, ours / SDPA (! = a hole)", header)
    rows: dict[tuple[str, str, int], dict[int, str]] = {}
    for cell in cells:
        key = (cell.way, f"{cell.problem.dtype} {cell.problem.direction}", cell.problem.q_len)
        shown = "absent" if cell.reason else f"{1e6 * cell.ours:.0f} / {1e6 * cell.sdpa:.0f}{' !' if cell.hole else ''}"
        rows.setdefault(key, {})[cell.problem.head_dim] = shown
    for (way, kind, length), shown in sorted(rows.items()):
        table.add_row(way, kind, str(length), *(shown.get(width, "") for width in widths))
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """line / needed / measured / met, and by how much."""
    table = _table("Acceptance", ("line", "what", "*needed", "*measured", "met", "*by", "note"))
    for verdict in verdicts:
        measured = "" if verdict.measured is None else f"{verdict.measured:.3g}"
        margin = "" if verdict.margin is None or not math.isfinite(verdict.margin) else _by(verdict)
        met = {True: "yes", False: "NO", None: "not measured"}[verdict.met]
        table.add_row(verdict.line, verdict.what, verdict.needed, measured, met, margin, verdict.reason)
    return table


def _by(verdict: Verdict) -> str:
    counted = verdict.needed == "<= 0"
    return f"{verdict.margin:+.0f}" if counted else f"{verdict.margin:+.1%}"


def _table(title: str, header: Sequence[str]) -> Table:
    """A column whose heading begins with * holds numbers and stands right."""
    table = Table(title=title, title_justify="left")
    for heading in header:
        right = heading.startswith("*")
        table.add_column(heading.removeprefix("*"), justify="right" if right else "left", overflow="fold")
    return table
