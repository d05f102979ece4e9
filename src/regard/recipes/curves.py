"""Curves with bands, for results: one line for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regard._errors import DependencyError
from regard.training.whole_file import replaced


def draw_curves(
    lines: Mapping[str, Sequence[Mapping[str, float] | None]],
    at: Sequence[int],
    path: Path,
    *,
    across: str,
    up: str,
    marked: int | None = None,
    named: Sequence[str] | None = None,
) -> None:
    """Write a PNG with one line of "value" and a band from "low" to "high" for each name.

    Args:
        lines: for each name as many intervals as there are places in `at`; None leaves a place out.
        at: places on the axis, drawn by powers of two unless `named` says what stands there.
        across, up: what the axes are.
        marked: a place with a vertical line, where training was.
        named: words for the places, evenly spaced.

    Raises:
        DependencyError: matplotlib is absent.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise DependencyError("matplotlib", "plot") from problem
    figure: Any = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    places = list(at) if named is None else list(range(len(at)))
    for number, (name, intervals) in enumerate(lines.items()):
        colour = f"C{number % 10}"
        style = "-" if number < 10 else "--"
        there = [(place, each) for place, each in zip(places, intervals, strict=True) if each is not None]
        across_here = [place for place, _ in there]
        value, low, high = ([each[key] for _, each in there] for key in ("value", "low", "high"))
        axes.plot(across_here, value, style, color=colour, marker="o", ms=3, label=name)
        axes.fill_between(across_here, low, high, color=colour, alpha=0.15)
    if named is None:
        axes.set_xscale("log", base=2)
    if marked is not None:
        axes.axvline(marked, color="0.6", linestyle=":")
    axes.set_xticks(places, [str(place) for place in (at if named is None else named)])
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(fontsize=8)
    with replaced(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
