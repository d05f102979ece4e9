from __future__ import annotations

import torch

from regard.nn import (
    AxialAttention,
    CrissCrossAttention,
    MaxViTBlockAttention,
    MaxViTGridAttention,
    NeighborhoodAttention,
)
from tests.nn.cases import Case, images


def videos(channels):
    """Unit-normal (batch, channels, 3, side, 2)."""

    def draw(batch, side):
        return (torch.randn(batch, channels, 3, side, 2, generator=torch.Generator().manual_seed(1)),)

    return draw


IMAGES = images(6)


def _case(name, make, inputs=IMAGES, lengths=(1, 2, 7, 12)):
    return Case(name, make, inputs, empty=False, lengths=lengths)


CASES = [
    _case("axial", lambda: AxialAttention(6, 2)),
    _case("axial-in-turn", lambda: AxialAttention(6, 2, combine="in_turn")),
    _case("axial-x", lambda: AxialAttention(6, 2, along=1)),
    _case("axial-video", lambda: AxialAttention(6, 2, axes=3), videos(6)),
    _case("axial-mask", lambda: AxialAttention(6, 2, path="mask")),
    _case("criss-cross", lambda: CrissCrossAttention(6, 2)),
    _case("criss-cross-video", lambda: CrissCrossAttention(6, 2, axes=3), videos(6)),
    _case("maxvit-block", lambda: MaxViTBlockAttention(6, 2, window=3, relative_bias=True)),
    _case("maxvit-block-video", lambda: MaxViTBlockAttention(6, 2, axes=3, window=(2, 3, 2)), videos(6)),
    _case("maxvit-grid", lambda: MaxViTGridAttention(6, 2, grid=(3, 2), relative_bias=True)),
    _case("neighborhood", lambda: NeighborhoodAttention(6, 2, radius=(1, 2))),
    _case("neighborhood-video", lambda: NeighborhoodAttention(6, 2, axes=3, radius=1), videos(6), (1, 2, 7)),
]
