"""The declared mask, the recovered one, and where they differ, as a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from regard._errors import DependencyError
from regard.masks._draw import checked_path, write_picture
from regard.trust.audit.report import headline
from regard.trust.audit.result import first_difference

if TYPE_CHECKING:
    from regard.trust.audit.examination import View
    from regard.trust.audit.result import Audit

KINDS = {
    "does not attend": "#f2f2f2",
    "attends": "#0b4f8a",
    "attends, declared not to": "#d55e00",
    "does not, declared to": "#f0c808",
}
"""Four colours that differ in lightness, too."""
FINDINGS = 4
"""So many findings are told below the picture."""


def draw(audit: Audit, path: str | Path | None) -> Any:
    """The figure, also written to `path` unless that is None."""
    target = None if path is None else checked_path(Path(path))
    view = audit.shown()
    sample, head = first_difference(view)
    figure, axes = _panels(*view.found.allowed.shape[-2:], count=1 if view.expected is None else 2)
    _paint(axes[-1], _kinds(view, sample, head), "found")
    if view.expected is not None:
        _paint(axes[0], view.expected[sample, head].to(torch.int8), "declared")
    _legend(figure, view, sample, head)
    figure.suptitle(_title(audit, view, sample, head), fontsize=9, parse_math=False)
    if target is not None:
        write_picture(figure, target)
    return figure


def _panels(q_len: int, kv_len: int, *, count: int) -> tuple[Any, list[Any]]:
    """A figure with `count` panels side by side, each in the proportions of the mask."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("matplotlib", "plot") from error
    longest = max(q_len, kv_len, 1)
    width, height = (max(1.4, 3.6 * length / longest) for length in (kv_len, q_len))
    figure = Figure(figsize=(max(count * (width + 0.6), 6.4), height + 2.4), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def _kinds(view: View, sample: int, head: int) -> Tensor:
    """Which of KINDS each pair is."""
    found = view.found.allowed[sample, head]
    if view.expected is None:
        return found.to(torch.int8)
    wanted = view.expected[sample, head]
    kinds = found.to(torch.int8)
    return kinds.masked_fill(found & ~wanted, 2).masked_fill(~found & wanted, 3)


def _paint(axes: Any, kinds: Tensor, title: str) -> None:
    from matplotlib.colors import ListedColormap

    q_len, kv_len = kinds.shape
    extent = (-0.5, kv_len - 0.5, q_len - 0.5, -0.5)
    colours = ListedColormap(list(KINDS.values()))
    axes.imshow(cast("Any", kinds).tolist(), cmap=colours, vmin=0, vmax=3, extent=extent, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("key index")
    axes.set_ylabel("query index")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _legend(figure: Any, view: View, sample: int, head: int) -> None:
    from matplotlib.patches import Patch

    drawn = _kinds(view, sample, head)
    present = [pair for place, pair in enumerate(KINDS.items()) if place < 2 or bool((drawn == place).any())]
    handles = [Patch(facecolor=colour, edgecolor="#666666", label=kind) for kind, colour in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _title(audit: Audit, view: View, sample: int, head: int) -> str:
    lines = [headline(audit), f"{view.setting.label}; sample {sample}, head {head}"]
    for finding in audit.findings[:FINDINGS]:
        lines += textwrap.wrap(f"{finding.code}: {finding.sentence}", 96)[:2]
    if len(audit.findings) > FINDINGS:
        lines.append(f"and {len(audit.findings) - FINDINGS} more")
    return "\n".join(lines)
