"""Attention on grids of tokens: what `axial.py`, `maxvit.py` and `neighborhood.py` share.

Grids of one to three axes (sequences, images, videos) come as (batch, channels, *grid), as from a convolution. Each
mechanism is two things that are tested equal: a mask over the tokens flattened row by row (`own_mask`), which
`path="mask"` hands to attention, and the same pairs computed after laying the tokens out so that those that see each
other stand together (`path="reshaped"`, the default).

The guide's chapter 5 names an "XYformer" with grid attention. No paper, code or author of that name could be traced;
this family is what the words can mean: attention along x and y (axial, criss-cross), grids of evenly spread tokens
(MaxViT), and neighbourhoods.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, TypedDict

import torch
from torch import Tensor

from regard._errors import ArgumentError, MaskError, ShapeError
from regard._shapes import FLOATS, shape_of
from regard.masks import Keys, Mask
from regard.nn._projections import HeadProjections
from regard.nn._token_masks import both

Path = Literal["reshaped", "mask"]
Grid = tuple[int, ...]


class GridOptions(TypedDict, total=False):
    """The options of `GridMixer`, for mechanisms that pass them on."""

    axes: int
    path: Path
    bias: bool
    dropout_p: float
    backend: str
    device: torch.device | str | None
    dtype: torch.dtype | None


class GridMixer(HeadProjections):
    """Projections, and attention over a grid, called on (batch, channels, *grid).

    Args:
        channels, num_heads: width of a token, and heads that divide it.
        axes: of the grid: 1 for sequences, 2 for images, 3 for videos.
        path: "reshaped" computes only the pairs there are; "mask" hands the mask to attention on the flattened grid.
        bias, dropout_p, backend, device, dtype: see `HeadProjections`.

    Raises:
        ArgumentError: a size out of range, heads that do not divide channels, an unknown path.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        axes: int = 2,
        path: Path = "reshaped",
        bias: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels, num_heads, bias=bias, dropout_p=dropout_p, backend=backend, device=device, dtype=dtype
        )
        self.axes, self.path = checked_axes(axes), checked_path(path)

    @abstractmethod
    def own_mask(self, shape: Grid) -> Mask:
        """The mask over the tokens of a grid of this shape, flattened row by row."""

    @abstractmethod
    def _reshaped(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """The fast path: (batch, *grid, channels) to the same; real is bool (batch, *grid) or None."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend within each grid.

        Args:
            x: (batch, channels, *grid), with `axes` axes of any length. In torch's channels_last format no copy is
                needed.
            mask: bool (batch, *grid), True = real: where images of several sizes share a batch, what fills them up is
                seen by none. None where all is real.

        Returns:
            (batch, channels, *grid), laid out in memory with the channels last.

        Raises:
            ShapeError: x with other channels or another number of axes.
            MaskError: a mask of another kind or shape.
        """
        x = checked_grid(x, self.embed_dim, self.axes)
        real = checked_real(mask, x)
        tokens = x.permute(0, *range(2, x.dim()), 1)
        if self.path == "reshaped":
            return channels_second(self._reshaped(tokens, real))
        flat, shape = tokens.flatten(1, -2), tuple(tokens.shape[1:-1])
        allowed = both(self.own_mask(shape), None if real is None else Keys(real.flatten(1)))
        query, key, value = self.to_heads(flat)
        found = self.from_heads(self.attend(query, key, value, allowed))
        return channels_second(found.reshape(x.shape[0], *shape, self.embed_dim))


def channels_second(tokens: Tensor) -> Tensor:
    """(batch, *grid, channels) as (batch, channels, *grid), a view."""
    return tokens.permute(0, tokens.dim() - 1, *range(1, tokens.dim() - 1))


def checked_axes(axes: object) -> int:
    """1, 2 or 3, or ArgumentError."""
    if isinstance(axes, bool) or not isinstance(axes, int) or axes not in (1, 2, 3):
        raise ArgumentError(
            "axes", expected="1, 2 or 3", got=repr(axes), do="1 for sequences, 2 for images, 3 for videos."
        )
    return axes


def checked_path(path: str) -> Path:
    """The name of a path, or ArgumentError."""
    if path not in ("reshaped", "mask"):
        raise ArgumentError(
            "path", expected="'reshaped' or 'mask'", got=repr(path), do="Both compute the same; 'reshaped' is faster."
        )
    return path


def checked_counts(name: str, counts: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One number of at least 1 for each axis, or ArgumentError; a single one counts for all."""
    each = (counts,) * axes if isinstance(counts, int) else tuple(counts)
    if len(each) != axes or any(isinstance(count, bool) or count < 1 for count in each):
        raise ArgumentError(
            name,
            expected=f"a whole number of at least 1, or one for each of {axes} axes",
            got=repr(counts),
            do="It counts tokens on an axis.",
        )
    return each


def checked_grid(x: object, channels: int, axes: int) -> Tensor:
    """Floating-point (batch, channels, *grid), or ShapeError."""
    names = "batch, channels " + ", ".join(
        [str(channels), *("length", "height, width", "depth, height, width")[axes - 1 : axes]]
    )
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        raise ShapeError(
            "x",
            expected=f"a floating-point tensor ({names})",
            got=str(x.dtype) if isinstance(x, Tensor) else type(x).__name__,
            do="Convert it with torch.as_tensor and .float().",
        )
    if x.dim() != axes + 2 or x.shape[1] != channels or 0 in x.shape[2:]:
        raise ShapeError(
            "x",
            expected=f"({names}) with at least one token",
            got=shape_of(x),
            do="Add the batch with [None], put the channels second, or make the module for these.",
        )
    return x


def checked_real(mask: object, x: Tensor) -> Tensor | None:
    """Bool (batch, *grid) or None, or MaskError."""
    if mask is None:
        return None
    expected = (x.shape[0], *x.shape[2:])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise MaskError(
            "mask",
            expected=f"a bool tensor (batch, *grid) = {expected}, True = real",
            got=f"{mask.dtype} {shape_of(mask)}" if isinstance(mask, Tensor) else type(mask).__name__,
            do="Which tokens see each other is the mechanism's own; a mask says only which of them are real.",
        )
    return mask


def product(sizes: Grid) -> int:
    return math.prod(sizes)
