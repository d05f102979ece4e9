"""Data as the two recipes of images have them, made up and small: what is learnt from them can be learnt at once."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from regard.recipes.image_classification.data import Pictures, Splits
from regard.recipes.image_text.data import Concept, Emoji, split_of

COLOURS = {"en": ["red", "green", "blue", "yellow"], "zh": ["红", "绿", "蓝", "黄"]}
SHAPES = {"en": ["circle", "square", "bar", "corner", "ring"], "zh": ["圆", "方", "条", "角", "环"]}


def clothes(train: int = 200, others: int = 50) -> Splits:
    """Ten classes, each a bright band at another height, with noise."""
    return Splits(_bands(train, 1), _bands(others, 2), _bands(others, 3))


def _bands(count: int, seed: int) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = torch.randint(0, 60, (count, 28, 28), generator=generator)
    rows = torch.arange(28)[None, :] // 2 - 2
    images[rows == labels[:, None]] += 150
    return Pictures(images.to(torch.uint8), labels)


def emoji_packages(folder: Path) -> tuple[Path, list[Path]]:
    """Texts and three styles of twenty emoji, in files as in the packages."""
    entries: dict[str, list[dict[str, object]]] = {"en": [], "zh": []}
    styles = [folder / name for name in ("noto", "twemoji", "fluent")]
    for place, (shape, colour) in enumerate((shape, colour) for shape in range(5) for colour in range(4)):
        code = f"{0x1F600 + place:X}"
        for language, kept in entries.items():
            between = " " if language == "en" else ""
            label = COLOURS[language][colour] + between + SHAPES[language][shape]
            tags = [COLOURS[language][colour], SHAPES[language][shape]]
            kept.append({"hexcode": code, "label": label, "tags": tags, "emoji": chr(int(code, 16)), "group": 0})
        for style, home in enumerate(styles):
            home.mkdir(parents=True, exist_ok=True)
            _drawn(shape, colour, style).save(home / f"{code.lower()}.{'webp' if style == 2 else 'png'}")
    for language, kept in entries.items():
        (folder / language).mkdir(parents=True)
        (folder / language / "data.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder, styles


def emoji() -> Emoji:
    """The same without files."""
    concepts, pictures = [], []
    for place, (shape, colour) in enumerate((shape, colour) for shape in range(5) for colour in range(4)):
        code = f"{0x1F600 + place:X}"
        concepts.append(
            Concept(
                code,
                chr(int(code, 16)),
                {
                    "en": f"{COLOURS['en'][colour]} {SHAPES['en'][shape]}",
                    "zh": COLOURS["zh"][colour] + SHAPES["zh"][shape],
                },
                {language: [COLOURS[language][colour], SHAPES[language][shape]] for language in ("en", "zh")},
                split_of(code),
            )
        )
        for style in range(3):
            drawn = _drawn(shape, colour, style).resize((48, 48))
            pictures.append(torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).view(48, 48, 4))
    return Emoji(concepts, torch.stack(pictures).permute(0, 3, 1, 2).reshape(20, 3, 4, 48, 48).contiguous())


def _drawn(shape: int, colour: int, style: int) -> Image.Image:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    hue = (0.0, 0.33, 0.66, 0.16)[colour]
    ink = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 1.0 - 0.15 * style, 1.0 - 0.1 * style))
    box = (8 + style, 8, 55, 55 - style)
    if shape == 0:
        pen.ellipse(box, fill=ink)
    elif shape == 1:
        pen.rectangle(box, fill=ink)
    elif shape == 2:
        pen.rectangle((8, 26, 55, 38), fill=ink)
    elif shape == 3:
        pen.polygon([(8, 8), (8, 55), (55, 55)], fill=ink)
    else:
        pen.ellipse(box, outline=ink, width=8)
    return picture
