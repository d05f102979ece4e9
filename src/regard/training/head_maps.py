"""The maps of all heads of a layer as one grey image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAP_SIDE = 32
"""Queries and keys are pooled into so many bins at most."""
_LINE = 96
"""The grey between heads."""


def tiled(maps: Tensor) -> Tensor:
    """Heads side by side, about as many rows as columns, a line between them: uint8 (height, width), on the CPU.

    Args:
        maps: (heads, side, side), at least 0. Each head is brightest (255) at its own largest weight, so that a flat
            head is bright all over; NaN is black, as are the places after the last head.
    """
    heads, side, _ = maps.shape
    values = maps.detach().double().cpu().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    bright = values / values.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    columns = math.ceil(math.sqrt(heads))
    rows = math.ceil(heads / columns)
    image = torch.full((rows * (side + 1) - 1, columns * (side + 1) - 1), _LINE, dtype=torch.uint8)
    for place in range(rows * columns):
        top, left = place // columns * (side + 1), place % columns * (side + 1)
        pixels = (bright[place] * 255.0).round() if place < heads else torch.zeros(side, side)
        image[top : top + side, left : left + side] = pixels.to(torch.uint8)
    return image
