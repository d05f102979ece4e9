"""Where the class token of a ViT looks, drawn over the image as the network got it.

The map lies on the *preprocessed* 28 x 28 image: on the photograph, which was cut and scaled, it would point beside the
mark. The class token's weight on itself is no place; it stands in the title and never enters the colours.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor

from regard._errors import ArgumentError, DataError, DependencyError
from regard.recipes.image_classification.model import ClassAttention

FORMATS = (".png", ".svg", ".pdf")


def check_target(path: Path) -> None:
    """Before any work: can a drawing be written here?

    Raises:
        ArgumentError: an ending that is none of `FORMATS`.
        DataError: no such folder.
        DependencyError: no matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("matplotlib", "plot")
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(
            "heatmap", expected=f"a file that ends in {', '.join(FORMATS)}", got=repr(path.name), do="Name it so."
        )
    if not path.parent.is_dir():
        raise DataError(f"{str(path.parent)!r}: there is no such folder. Make it first.")


def draw_class_attention(image: Tensor, seen: ClassAttention, title: str, path: Path) -> None:
    """The image, the mean over heads upon it, and each head upon it, side by side.

    Args:
        image: uint8 (side, side), preprocessed.
        seen: weights of the class token.
        title: what was predicted.
        path: a PNG, SVG or PDF.

    Raises:
        DataError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps = [("mean of heads", seen.patches.mean(0), float(seen.to_itself.mean()))]
    maps += [
        (f"head {number}", each, float(itself))
        for number, (each, itself) in enumerate(zip(seen.patches, seen.to_itself, strict=True))
    ]
    highest = max(float(each.max()) for _, each, _ in maps)
    figure: Any = Figure(figsize=(2.2 * (len(maps) + 1) + 0.8, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(maps) + 1)
    pixels, side = image.numpy(), image.shape[0]
    axes[0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes[0].set_title("as the network got it", fontsize=8)
    colours: Any = None
    for axis, (name, each, itself) in zip(axes[1:], maps, strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        edges = (-0.5, side - 0.5, side - 0.5, -0.5)
        colours = axis.imshow(each.numpy(), cmap="inferno", vmin=0, vmax=highest, alpha=0.6, extent=edges)
        axis.set_title(f"{name}\nclass token on itself: {itself:.0%}", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(colours, ax=axes, label="weight of a patch", shrink=0.8)
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise DataError(f"{str(path)!r}: the drawing cannot be written ({error.strerror or error}).") from error
