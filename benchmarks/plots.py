"""Plots of a results file: time, memory, and fraction of the FMA peak, each against length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Curves = dict[str, list[tuple[int, float]]]

# Colour, marker and dashes: dark to light in printed grey, and each with a mark of its own.
_STYLES = {
    "regard": ("#000000", "o", "-"),
    "sdpa": ("#9c1f1f", "s", "--"),
    "flex": ("#1f5fb4", "^", "-."),
    "eager": ("#d98200", "D", ":"),
    "eager-pages-kept": ("#e8a93c", "v", "-"),
    "openvino": ("#2a8f6a", "P", "--"),
    "onnxruntime": ("#a374c9", "X", "-."),
    "activated": ("#777777", "*", ":"),
}
_WORDS = {
    "sdpa": "torch SDPA",
    "flex": "FlexAttention, compiled",
    "eager": "plain eager",
    "eager-pages-kept": "plain eager, pages kept",
    "openvino": "OpenVINO",
    "onnxruntime": "onnxruntime",
    "activated": "SDPA with regard.activate()",
}


@dataclass(frozen=True)
class Figure:
    """One kind of plot: the words on it, and the height of a point."""

    kind: str
    title: str
    label: str
    height: Callable[[Mapping[str, Any]], float | None]
    logarithmic: bool = True


def draw(document: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Write every plot that the document has numbers for, and say where."""
    timed = [outcome for contest in document["contests"] for outcome in contest["outcomes"]]
    peaks = document["limits"]["fma_flops_per_second"]

    def of_peak(row: Mapping[str, Any]) -> float | None:
        peak = peaks.get(row["problem"]["dtype"])
        return 1e9 * row["gflops"] / peak if peak and "gflops" in row else None

    figures = (
        (Figure("time", "Time", "median time (ms)", lambda row: _times(1e3, row.get("median_seconds"))), timed),
        (Figure("peak", "Fraction of the FMA peak", "useful work / FMA peak", of_peak, logarithmic=False), timed),
        (
            Figure(
                "memory",
                "Peak memory above the inputs",
                "resident memory (MiB)",
                lambda row: _times(2**-20, row.get("peak_bytes")),
            ),
            document["memory"],
        ),
    )
    written: list[Path] = []
    for figure, rows in figures:
        for key, some in _grouped(rows).items():
            path = folder / f"{name}-{figure.kind}-{key.replace(' ', '-').replace('=', '')}.png"
            if _draw(figure, some, key, path):
                written.append(path)
    return written


def _times(factor: float, number: float | None) -> float | None:
    return None if number is None else factor * number


def _grouped(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """One figure for each dtype, direction and head size; plain square problems of eight heads only."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        problem = row["problem"]
        square = problem["q_len"] == problem["kv_len"] and problem["head_dim"] == problem["value_dim"]
        if square and problem["extra"] == "none" and problem["heads"] > 1:
            key = f"{problem['dtype']} {problem['direction']} d={problem['head_dim']}"
            groups.setdefault(key, []).append(row)
    return groups


def _draw(figure: Figure, rows: Rows, key: str, path: Path) -> bool:
    """One panel for each pattern that has two lengths or more."""
    panels = {pattern: _curves(figure, rows, pattern) for pattern in _patterns(rows)}
    panels = {pattern: curves for pattern, curves in panels.items() if max(map(len, curves.values()), default=0) > 1}
    if not panels:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plot: Any = plt
    sheet, axes = plot.subplots(1, len(panels), figsize=(4.6 * len(panels) + 0.6, 4.9), sharey=True, squeeze=False)
    for place, (pattern, curves) in enumerate(panels.items()):
        _panel(axes[0][place], figure, pattern, curves)
    axes[0][0].set_ylabel(figure.label)
    labels = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    rows_of_legend = -(-len(labels) // (2 * len(panels)))
    columns = -(-len(labels) // rows_of_legend)
    sheet.legend(
        labels.values(), labels.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=9, handlelength=3.5
    )
    sheet.suptitle(f"{figure.title}: {key}", fontsize=12)
    sheet.tight_layout(rect=(0, 0.02 + 0.05 * rows_of_legend, 1, 1))
    sheet.savefig(path, dpi=150)
    plot.close(sheet)
    return True


def _panel(axis: Any, figure: Figure, pattern: str, curves: Curves) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name, points in sorted(curves.items(), key=lambda item: _order(item[0])):
        colour, marker, dashes = _style(name)
        lengths, heights = zip(*sorted(points), strict=True)
        axis.plot(
            lengths,
            heights,
            color=colour,
            marker=marker,
            linestyle=dashes,
            label=_word(name),
            markersize=5,
            linewidth=1.6,
        )
    axis.set_xscale("log", base=2)
    lengths = sorted({length for points in curves.values() for length, _ in points})
    axis.set_xticks(lengths, [str(length) for length in lengths], rotation=45 if len(lengths) > 5 else 0)
    axis.minorticks_off()
    if figure.logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(_plain))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.set_ylim(0, 1)
    axis.set_title(_PATTERNS.get(pattern, pattern), fontsize=11)
    axis.set_xlabel("length (tokens)")
    axis.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)


def _plain(height: float, _place: float) -> str:
    return f"{height:g}"


_PATTERNS = {"window": "window ±256", "window+global": "window ±256 and 16 global tokens"}


def _patterns(rows: Rows) -> list[str]:
    order = ("dense", "causal", "window", "window+global")
    present = {row["problem"]["pattern"] for row in rows}
    return [pattern for pattern in order if pattern in present]


def _curves(figure: Figure, rows: Rows, pattern: str) -> Curves:
    """A length that several contests had is shown once, by the median of what they found."""
    heights: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        height = figure.height(row)
        if row["problem"]["pattern"] == pattern and height:
            heights.setdefault(row["contestant"], {}).setdefault(row["problem"]["q_len"], []).append(height)
    return {
        name: [(length, statistics.median(found)) for length, found in by_length.items()]
        for name, by_length in heights.items()
    }


def _order(name: str) -> int:
    return list(_STYLES).index(name) if name in _STYLES else 0


def _style(name: str) -> tuple[str, str, str]:
    if name in _STYLES:
        return _STYLES[name]
    return ("#777777", "d", ":") if name.count("-") > 1 else _STYLES["regard"]  # regard-native-avx2 is no regard-native


def _word(name: str) -> str:
    return _WORDS.get(name, name.replace("-", " (", 1) + ")" if name.startswith("regard-") else name)
