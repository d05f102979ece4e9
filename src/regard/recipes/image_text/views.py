"""What a training example looks like this time: a picture moved and coloured, a caption shortened.

All of it is drawn for each example by itself (`regard.recipes.draws`), so that a batch is the same on one process and
on many. Pictures are never mirrored: arrows and letters would change their meaning.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from regard.recipes.draws import uniform
from regard.recipes.image_text.data import LANGUAGES, Concept, Language, caption_of

TURN, SCALE, SHIFT, TINT = math.radians(12), 0.2, 0.1, 0.25
"""How far a picture is turned, scaled, moved (parts of its side) and tinted, at most."""
_WHOLE_CAPTION, _WITHOUT_LABEL, _TAG = 0.3, 0.2, 0.5
"""Chances: of label and all tags, of no label, and of each tag."""


def plain_pictures(rgba: Tensor) -> Tensor:
    """uint8 (batch, 4, side, side) on white, float32 (batch, 3, side, side) from -1 to 1."""
    values = rgba.to(torch.float32) / 255.0
    return (values[:, :3] * values[:, 3:] + 1.0 - values[:, 3:]) * 2.0 - 1.0


def drawn_pictures(rgba: Tensor, numbers: Tensor, *, seed: int) -> Tensor:
    """As `plain_pictures`, each moved, tinted, sometimes grey and half of the time on a colour of its own.

    Args:
        rgba: uint8 (batch, 4, side, side).
        numbers: int64 (batch,), by which each draws.
        seed: of the run.
    """

    def draw(stream: int, low: float, high: float) -> Tensor:
        return low + (high - low) * uniform(numbers, seed=seed, stream=stream)

    values = rgba.to(torch.float32) / 255.0
    premultiplied = torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], 1)
    turn, scale = draw(1, -TURN, TURN), draw(2, 1.0 - SCALE, 1.0 + SCALE)
    across, down = draw(3, -2 * SHIFT, 2 * SHIFT), draw(4, -2 * SHIFT, 2 * SHIFT)
    rows = torch.stack(
        [
            torch.stack([turn.cos() * scale, -turn.sin() * scale, across], 1),
            torch.stack([turn.sin() * scale, turn.cos() * scale, down], 1),
        ],
        1,
    )
    grid = functional.affine_grid(rows, list(premultiplied.shape), align_corners=False)
    moved = functional.grid_sample(premultiplied, grid, align_corners=False)
    colours, cover = moved[:, :3], moved[:, 3:]
    grey = (draw(5, 0.0, 1.0) < 0.1)[:, None, None, None]
    colours = torch.where(grey, colours.mean(1, keepdim=True).expand_as(colours), colours)
    tint = torch.stack([draw(6 + channel, 1.0 - TINT, 1.0 + TINT) for channel in range(3)], 1)[:, :, None, None]
    coloured = (draw(9, 0.0, 1.0) < 0.5)[:, None]
    below = torch.stack([draw(10 + channel, 0.0, 1.0) for channel in range(3)], 1)
    below = torch.where(coloured, below, torch.ones(()))[:, :, None, None]
    return (torch.minimum(colours * tint, cover) + below * (1.0 - cover)) * 2.0 - 1.0


def drawn_captions(concepts: list[Concept], numbers: Tensor, *, seed: int) -> list[str]:
    """A caption for each concept: in one of the languages, whole, or with some of its tags, or tags alone."""
    most = max((len(tags) for concept in concepts for tags in concept.tags.values()), default=0)
    streams = range(100, 103 + most)
    draws = torch.stack([uniform(numbers, seed=seed, stream=stream) for stream in streams], 1)
    return [
        _caption(concept, [float(draw) for draw in chances]) for concept, chances in zip(concepts, draws, strict=True)
    ]


def _caption(concept: Concept, chances: list[float]) -> str:
    language: Language = LANGUAGES[int(chances[0] * len(LANGUAGES))]
    label, tags = concept.label[language], concept.tags[language]
    if chances[1] < _WHOLE_CAPTION:
        return concept.caption(language)
    kept = [tag for tag, chance in zip(tags, chances[3:], strict=False) if chance < _TAG]
    if kept and chances[2] < _WITHOUT_LABEL:
        return caption_of(kept[0], kept[1:], language)
    return caption_of(label, kept, language)
