"""The alignment of a translation as a picture: source words across, target words down, the darker the more weight.

PNG, SVG and PDF by matplotlib; HTML as one page of text and rectangles, without scripts, that needs no network.
"""

from __future__ import annotations

import contextlib
import html
import math
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from regard._errors import ArgumentError, DataError, DependencyError
from regard.recipes.translation.translate import Translation
from regard.training.whole_file import write_whole

ENDINGS = (".png", ".svg", ".pdf", ".html")
_CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Noto Serif CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
                  "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei", "Droid Sans Fallback",
                  "Noto Sans CJK JP")  # fmt: skip
"""The last is all that matplotlib before 3.11 sees of Noto's collection."""
_CELL, _CHARACTER = 26, 9
_DOTS, _MOST_PIXELS = 150.0, 12e6
"""To an inch, and in all: a picture of hundreds of words gets fewer dots, or it would take gigabytes."""
_STYLE = (
    'body{font:15px "Noto Sans SC","PingFang SC","Microsoft YaHei",system-ui,sans-serif;margin:24px;color:#1b1b1b;'
    "background:#fff}text{fill:currentColor}rect{fill:#1f5fae}line{stroke:currentColor;stroke-opacity:.12}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#16181c}rect{fill:#6fb1ff}}"
)


def check_heatmap(path: Path) -> None:
    """Say before any work that a picture cannot be drawn there.

    Raises:
        ArgumentError: an ending that is none of ENDINGS.
        DataError: no folder to write into; or a PNG or PDF, and no font with Chinese characters.
        DependencyError: matplotlib is needed and absent.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ArgumentError(
            "--heatmap", expected=f"a name that ends in {', '.join(ENDINGS)}", got=repr(str(path)), do=""
        )
    try:
        fitting = path.absolute().parent.is_dir() and not path.is_dir()
    except OSError as problem:  # a name that is too long for any file
        raise _unwritten(path, problem) from problem
    if not fitting:
        raise DataError(f"--heatmap: {str(path)!r} cannot be written: no such folder, or it is one itself.")
    if path.suffix.lower() != ".html":
        fonts = _fonts()
        if not fonts and path.suffix.lower() != ".svg":
            raise DataError(
                "--heatmap: no font with Chinese characters is installed (such as Debian's fonts-noto-cjk). "
                "Install one, or take .svg or .html, which use the fonts of whoever looks."
            )


def draw_heatmap(translation: Translation, path: Path) -> None:
    """Write the picture; the ending says in which format. See `check_heatmap` for what is refused."""
    check_heatmap(path)
    try:
        if path.suffix.lower() == ".html":
            write_whole(path, _page(translation))
        else:
            _draw(translation, path)
    except OSError as problem:
        raise _unwritten(path, problem) from problem


def _unwritten(path: Path, problem: OSError) -> DataError:
    return DataError(f"--heatmap: {str(path)!r} cannot be written: {problem.strerror or problem}.")


def _draw(translation: Translation, path: Path) -> None:
    matplotlib: Any = import_module("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    words, targets = translation.source_words, translation.target_words
    with matplotlib.rc_context(
        {"font.family": [*_fonts(), "DejaVu Sans"], "svg.fonttype": "none", "svg.hashsalt": "regard"}
    ):
        width, height = 2.0 + 0.38 * len(words), 1.6 + 0.34 * len(targets)
        dots = min(_DOTS, math.sqrt(_MOST_PIXELS / (width * height)))
        figure: Any = Figure(figsize=(width, height), dpi=dots, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        shades = {"cmap": "Blues", "vmin": 0.0, "vmax": 1.0, "interpolation": "none"}
        axes.imshow(translation.alignment or [[0.0]], aspect="auto", **shades)
        axes.set_xticks(
            range(len(words)), [_plain(word) for word in words], rotation=60, ha="left", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(targets)), [_plain(word) for word in targets])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        of_svg = path.suffix.lower() == ".svg"
        with warnings.catch_warnings():
            if of_svg:  # its words stay words, in a font of whoever looks
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(path, dpi=dots, metadata={"Date": None} if of_svg else None)


def _plain(word: str) -> str:
    """matplotlib reads what stands between two dollars as a formula."""
    return word.replace("$", r"\$")


def _fonts() -> list[str]:
    try:
        manager: Any = import_module("matplotlib.font_manager")
    except ImportError as problem:
        raise DependencyError("matplotlib", "plot") from problem
    if not _chinese(manager):
        _list_new_fonts(manager)
    return _chinese(manager)


def _chinese(manager: Any) -> list[str]:
    there = {font.name for font in manager.fontManager.ttflist}
    return [name for name in _CHINESE_FONTS if name in there][:1]


def _list_new_fonts(manager: Any) -> None:
    """matplotlib keeps the list of its first day: fonts that were installed later are not in it."""
    listed = {font.fname for font in manager.fontManager.ttflist}
    for path in manager.findSystemFonts():
        if path not in listed:
            with contextlib.suppress(Exception):  # matplotlib's own list leaves out whatever it cannot read, too
                manager.fontManager.addfont(path)


def _page(translation: Translation) -> str:
    words, targets = translation.source_words, translation.target_words
    left = _CELL // 2 + _CHARACTER * 2 * max((len(word) for word in targets), default=1)
    top = _CELL // 2 + _CHARACTER * max((len(word) for word in words), default=1)
    width, height = left + _CELL * len(words) + top, top + _CELL * len(targets)
    parts = [*_source(words, left, top), *_targets(targets, left, top), *_cells(translation, left, top)]
    title = html.escape(translation.source[:80])
    return (
        '<!doctype html><html lang="zh"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<p>{html.escape(translation.source)}</p><p>{html.escape(translation.translation)}</p>"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img" '
        f'aria-label="alignment of source and translation">{"".join(parts)}</svg></body></html>\n'
    )


def _source(words: Sequence[str], left: int, top: int) -> list[str]:
    return [
        f'<text transform="translate({left + _CELL * place + _CELL * 0.6:.0f},{top - 6}) rotate(-60)">'
        f"{html.escape(word)}</text>"
        for place, word in enumerate(words)
    ]


def _targets(words: Sequence[str], left: int, top: int) -> list[str]:
    return [
        f'<text x="{left - 8}" y="{top + _CELL * place + _CELL * 0.7:.0f}" text-anchor="end">{html.escape(word)}</text>'
        for place, word in enumerate(words)
    ]


def _cells(translation: Translation, left: int, top: int) -> list[str]:
    """A rectangle for each weight that can be seen; what it says when pointed at is the weight."""
    return [
        f'<rect x="{left + _CELL * column + 1}" y="{top + _CELL * row + 1}" width="{_CELL - 2}" height="{_CELL - 2}" '
        f'fill-opacity="{weight:.3f}"><title>{html.escape(translation.target_words[row])} - '
        f"{html.escape(translation.source_words[column])}: {weight:.3f}</title></rect>"
        for row, weights in enumerate(translation.alignment)
        for column, weight in enumerate(weights)
        if weight >= 0.005
    ]
