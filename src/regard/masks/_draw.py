"""Pictures of masks. matplotlib is imported here only, inside the functions, and never its global state.

Short lengths are drawn cell by cell. Longer ones are drawn from the block map, one cell for a square of pairs,
so that a picture of a million tokens costs no more than one of a thousand.
"""

from __future__ import annotations

import math
import sys
import textwrap
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from regard._errors import DataError, DependencyError
from regard.masks._block_map import FULL
from regard.masks._numbers import numbers_of

if TYPE_CHECKING:
    from regard.masks._base import Mask

CELLS = 512  # at most so many cells on a side
LETTERS = 240  # at most so many of them in a title
SUFFIXES = (".pdf", ".png", ".svg")
MEANINGS = ("may not attend", "partly", "may attend")
COLOURS = ("#f2f2f2", "#8fc1e3", "#0b4f8a")  # light to dark: also readable without colour
LINES = "#d55e00"


def draw_mask(
    mask: Mask,
    path: str | Path | None,
    *,
    q_len: int,
    kv_len: int,
    title: str | None = None,
    block_size: int | None = None,
) -> Any:
    """The picture of `mask` as a matplotlib Figure, also written to `path` unless that is None.

    A mask that depends on the sample or the head is drawn for the first of them, and the title says so.
    Raises DependencyError without matplotlib, and DataError when `path` cannot be written.
    """
    target = None if path is None else checked_path(Path(path))
    mask.check(q_len, kv_len)
    cell = max(1, math.ceil(max(q_len, kv_len) / CELLS))
    figure, axes = _figure(q_len, kv_len)
    kinds = _kinds(mask, q_len, kv_len, cell)
    _paint(axes, kinds, q_len, kv_len)
    if block_size is not None:
        _block_lines(axes, q_len, kv_len, block_size)
    axes.set_title(_title(mask, title, cell), fontsize=9, parse_math=False)
    if target is not None:
        write_picture(figure, target)
    return figure


def demonstrate(mask: Mask, *, length: int = 64) -> None:
    """Draw `mask` as its file's own picture: to the path given on the command line, or ./NAME.png."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(f"{Path(sys.argv[0]).stem}.png")
    try:
        draw_mask(mask, target, q_len=length, kv_len=length)
    except (DataError, DependencyError) as error:
        sys.exit(str(error))
    density = float(mask.dense(length, length).float().mean())
    sys.stdout.write(f"{mask!r}\nkeeps {density:.1%} of the pairs at length {length}\n{target}\n")


def _kinds(mask: Mask, q_len: int, kv_len: int, cell: int) -> Tensor:
    """int8 (rows, cols), one kind for each cell of the first sample and head; all EMPTY when there is none."""
    if cell > 1:
        return _first(mask.blocks(q_len, kv_len, cell).kinds)
    kept = mask.dense(q_len, kv_len).to(torch.int8) * FULL
    return kept if kept.ndim == 2 else _first(kept)


def _first(kinds: Tensor) -> Tensor:
    return kinds.flatten(0, 1)[:1].sum(0, dtype=torch.int8)  # a sum over one or none


def _figure(q_len: int, kv_len: int) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("matplotlib", "plot") from error
    longest = max(q_len, kv_len, 1)
    width, height = (max(1.2, 5 * length / longest) for length in (kv_len, q_len))
    figure = Figure(figsize=(max(width, 4.0) + 1.2, height + 1.6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _paint(axes: Any, kinds: Tensor, q_len: int, kv_len: int) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    # The edges of the cells are -0.5, 0.5, ...: the tick of an index stands in the middle of its cell.
    extent = (-0.5, max(kv_len, 1) - 0.5, max(q_len, 1) - 0.5, -0.5)
    painted = kinds if kinds.numel() else torch.zeros(1, 1, dtype=torch.int8)
    axes.imshow(
        cast("Any", painted).tolist(),
        cmap=ListedColormap(COLOURS),
        vmin=0,
        vmax=2,
        extent=extent,
        interpolation="nearest",
    )
    axes.set_xlabel("key index")
    axes.set_ylabel("query index")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    present = sorted(set(numbers_of(kinds.flatten())), reverse=True)
    handles = [Patch(facecolor=COLOURS[kind], edgecolor="#666666", label=MEANINGS[kind]) for kind in present]
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _block_lines(axes: Any, q_len: int, kv_len: int, size: int) -> None:
    axes.hlines([edge - 0.5 for edge in range(size, q_len, size)], -0.5, kv_len - 0.5, color=LINES, linewidth=0.6)
    axes.vlines([edge - 0.5 for edge in range(size, kv_len, size)], -0.5, q_len - 0.5, color=LINES, linewidth=0.6)


def _title(mask: Mask, title: str | None, cell: int) -> str:
    told = repr(mask) if title is None else title
    lines = textwrap.wrap(told if len(told) <= LETTERS else f"{told[:LETTERS]} ...", 62) or [""]
    parts = [name for name, count in (("sample 0", mask.batch_size), ("head 0", mask.head_count)) if count is not None]
    if parts:
        lines.append(f"({', '.join(parts)})")
    if cell > 1:
        lines.append(f"(one cell = {cell} x {cell} pairs)")
    return "\n".join(lines)


def checked_path(path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"picture file: expected a name ending in one of {', '.join(SUFFIXES)}, got {path.name!r}. Rename it."
        )
    if not path.parent.is_dir():
        raise DataError(f"picture file: expected an existing folder, got {str(path.parent)!r}. Make it first.")
    return path


def write_picture(figure: Any, path: Path) -> None:
    """Write beside the target and move into place, so that no half-written picture is ever there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        figure.savefig(temporary, format=path.suffix[1:].lower())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"picture file: expected a writable place, got {str(path)!r} ({error.strerror}). Take another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
