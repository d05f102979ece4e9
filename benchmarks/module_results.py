"""The results of the mechanisms: one document that grows line by line, its verdicts, and its tables for people.

A run replaces what it measured and leaves the rest, so that a whole table can be taken in slices. What another machine
measured is not mixed in: the document is then begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine, module_memory
from benchmarks.module_peers import PACKAGES
from benchmarks.problems import SEED
from benchmarks.report import verdict_table, write_json
from benchmarks.sides import Sizes
from benchmarks.verdicts import Verdict, needed_words, verdict_of

FORMAT = 1
SECTIONS = ("pairs", "memory", "survey")
Row = dict[str, Any]


class Results:
    """The rows of every section, by name. Of the machine it tells how it was when something was timed the last time."""

    def __init__(self, path: Path, sizes: Sizes, *, timed: bool = True) -> None:
        self.path = path
        self.machine = {**machine.describe(), "peers": {name: machine.version_of(name) for name in PACKAGES}}
        del self.machine["threads"]
        self.sizes = asdict(sizes)
        self.sections: dict[str, dict[str, Row]] = {section: {} for section in SECTIONS}
        before = _read(path)
        if before and before["sizes"] == self.sizes and alike(before["machine"], self.machine):
            self.sections = {section: dict(before[section]) for section in SECTIONS}
            self.machine = self.machine if timed else before["machine"]

    def put(self, section: str, name: str, row: Mapping[str, object]) -> None:
        """Add to what is known under this name; what could not be measured keeps no old numbers."""
        before = self.sections[section].get(name, {})
        kept = {} if {"reason"} & {*row, *before} else before
        self.sections[section][name] = {**kept, **row, "measured": datetime.now(UTC).date().isoformat()}

    def as_json(self) -> dict[str, Any]:
        """The document."""
        return {"format": FORMAT, "machine": self.machine, "seed": SEED, "sizes": self.sizes, **self.sections}

    def save(self) -> None:
        """Write it whole or not at all."""
        write_json(self.as_json(), self.path)

    def verdicts(self) -> list[Verdict]:
        """Everything that is claimed."""
        pairs = [verdict for row in self.sections["pairs"].values() for verdict in pair_verdicts(row)]
        return [*pairs, *module_memory.verdicts(self.sections["memory"])]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("format") == FORMAT else None


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Were these numbers taken on one machine with one torch? Each time has its own number of threads beside it."""
    names = ("processor", "cores", "isa_of_torch")
    return all(one[name] == other[name] for name in names) and one["versions"]["torch"] == other["versions"]["torch"]


def pair_verdicts(row: Row) -> list[Verdict]:
    """How much faster, and with how much of the other's error, where that is claimed."""
    line, found = f"{row['line']} {row['direction']}", list[Verdict]()
    if row["needed"] is not None:
        found.append(_verdict(line, f"x {row['peer']}", row, row.get("ratio"), row["needed"], at_most=False))
    if row["error_needed"] is not None:
        share = None if "our_error" not in row else row["our_error"] / row["their_error"]
        found.append(_verdict(line, f"of the error of {row['peer']}", row, share, row["error_needed"], at_most=True))
    return found


def _verdict(line: str, what: str, row: Row, measured: float | None, needed: float, *, at_most: bool) -> Verdict:
    if measured is None:
        return Verdict(line, what, needed_words(needed, at_most=at_most), None, None, None, row.get("reason", ""))
    verdict = verdict_of(line, what, measured, needed=needed, at_most=at_most)
    most = None if at_most else row.get("most")
    return verdict if most is None else replace(verdict, reason=f"{most:.3g} at this machine's FMA peak")


# ----------------------------------------------------------------------------------------------------- tables


def print_results(results: Results, console: Console, *, measured: Iterable[tuple[str, str]]) -> None:
    """The tables of what this run measured, and every verdict on it."""
    rows = {section: [results.sections[section][name] for kind, name in measured if kind == section]
            for section in SECTIONS}  # fmt: skip
    for section, draw in (("pairs", pair_table), ("memory", memory_table), ("survey", survey_table)):
        if rows[section]:
            console.print(draw(rows[section]))
    verdicts = [verdict for row in rows["pairs"] for verdict in pair_verdicts(row)]
    if rows["memory"]:
        verdicts += module_memory.verdicts(results.sections["memory"])
    if verdicts:
        console.print(verdict_table(verdicts))


def pair_table(rows: Iterable[Row]) -> Table:
    """Both sides of every line."""
    header = (
        "line",
        "peer",
        "input",
        "*ours ms",
        "*theirs ms",
        "*x",
        "*at peak",
        "*needed",
        "*error",
        "*theirs",
        "why not",
    )
    table = _table("Beside the layers of others", header)
    for row in rows:
        ratio = row.get("ratio")
        table.add_row(
            f"{row['line']} {row['direction']}",
            row["peer"],
            shape_words(row["shape"]),
            _ms(row.get("our_seconds")),
            _ms(row.get("their_seconds")),
            "" if ratio is None else f"{ratio:.2f}",
            "" if row.get("most") is None else f"{row['most']:.1f}",
            "" if row["needed"] is None else f"{row['needed']:g}",
            error_words(row.get("our_error")),
            error_words(row.get("their_error")),
            row.get("reason", ""),
        )
    return table


def memory_table(rows: Iterable[Row]) -> Table:
    """Peak memory of every form."""
    lengths = [str(length) for length in module_memory.LENGTHS]
    table = _table("Peak memory above weights and inputs, MiB", ("form", *(f"*n={n}" for n in lengths), "why not"))
    for row in rows:
        peaks = row.get("peak_bytes", {})
        shown = [f"{peaks[n] / 2**20:.1f}" if n in peaks else "" for n in lengths]
        table.add_row(f"{row['form']} {row['direction']}", *shown, row.get("reason", ""))
    return table


def survey_table(rows: Iterable[Row]) -> Table:
    """Every mechanism alone."""
    table = _table("Mechanisms", ("mechanism", "inputs", "*forward ms", "*with backward", "*error", "of"))
    for row in rows:
        table.add_row(
            row["made"],
            ", ".join(shape_words(shape) for shape in row["shapes"]),
            _ms(row.get("forward_seconds")),
            _ms(row.get("training_seconds")),
            error_words(row.get("error")),
            row.get("error_kind", ""),
        )
    return table


def shape_words(shape: Iterable[int]) -> str:
    """1 x 4096 x 512."""
    return " x ".join(map(str, shape))


def error_words(error: float | None) -> str:
    """Two digits."""
    return "" if error is None else f"{error:.1e}" if error < 1e-2 else f"{error:.2g}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _table(title: str, header: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in header:
        table.add_column(
            heading.removeprefix("*"), justify="right" if heading.startswith("*") else "left", overflow="fold"
        )
    return table
