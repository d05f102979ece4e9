"""Draws docs/masks.png: six masks as `Mask.draw` shows them, side by side. `python -m tests.draw_masks`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from regard.masks import BigBird, Causal, Documents, GlobalTokens, GridBlocks, SlidingWindow

TARGET = Path(__file__).parents[1] / "docs" / "masks.png"
WIDTH, COLOURS, ROWS, COLUMNS = 1320, 64, 2, 3
MASKS = (
    Causal(),
    Causal() & SlidingWindow(8, 0),
    SlidingWindow(4) | GlobalTokens(2),
    Causal() & Documents([20, 44]),
    BigBird(4, random_blocks=2),
    GridBlocks((8, 8), (4, 4)),
)


def sheet(folder: Path) -> Image.Image:
    """All masks on one picture; each is drawn into `folder` first."""
    drawn = []
    for index, mask in enumerate(MASKS):
        mask.draw(folder / f"{index}.png", q_len=64)
        with Image.open(folder / f"{index}.png") as picture:
            drawn.append(picture.convert("RGB"))
    width, height = max(each.width for each in drawn), max(each.height for each in drawn)
    whole = Image.new("RGB", (COLUMNS * width, ROWS * height), "white")
    for index, each in enumerate(drawn):
        row, column = divmod(index, COLUMNS)
        whole.paste(each, (column * width, row * height))
    return whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sheet(Path(folder)).quantize(COLOURS).save(TARGET, optimize=True)
    sys.stdout.write(f"{TARGET.name}\n")
