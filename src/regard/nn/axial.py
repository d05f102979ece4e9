"""Attention along the axes of a grid: one axis after another (axial), or all at once (criss-cross).

* `AxialAttention`: Ho et al. 2019, "Axial Attention in Multidimensional Transformers", arXiv:1912.12180. Along one axis
  a token sees its line: those with which it shares all other coordinates,

      output = sum over axes a of softmax(q_a k_a^T / sqrt(d_h) along axis a) v_a,   each axis with weights of its own

  or one axis after the other (`combine="in_turn"`), which lets every token reach every other.
* `CrissCrossAttention`: Huang et al. 2019, "CCNet", arXiv:1811.11721. One softmax over all lines of a token, the token
  itself once.

For n tokens with lines of length l on each of a axes: time O(n a l d), memory O(n d). No order of tokens, so not
causal.
See `_grid_mixer.py` for the layout, and for what the guide's "XYformer" has to do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Unpack

from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.masks import Axial, CrissCross, Mask, SlidingWindow
from regard.nn._card import Card
from regard.nn._grid_mixer import Grid, GridMixer, GridOptions, checked_axes, checked_grid, checked_real, product
from regard.nn._linear_map import linear
from regard.nn._merge import merged

Combination = Literal["sum", "in_turn"]


class LineAttention(GridMixer):
    """Attention along one axis. `AxialAttention` has one of these for each axis."""

    def __init__(self, channels: int, num_heads: int, *, axis: int, **options: Unpack[GridOptions]) -> None:
        super().__init__(channels, num_heads, **options)
        self.axis = axis

    def own_mask(self, shape: Grid) -> Mask:
        return Axial(shape, self.axis)

    def _reshaped(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        query, key, value = (_lines(part, self.axis, self.head_dim) for part in _separate(self, tokens))
        heads = self.attend(
            query, key, value, None if real is None else _real_on_lines(real, self.axis, self.num_heads)
        )
        return self.out_proj(heads.transpose(1, 2).reshape(tokens.shape))


class AxialAttention(nn.Module):
    """Attention along each axis of a grid, with weights for each, called on (batch, channels, *grid).

    Args:
        channels, num_heads: width of a token, and heads that divide it.
        axes: of the grid: 1, 2 for images (0 is the column, y; 1 is the row, x) or 3 for videos.
        along: the axes along which it attends, in this order; None for all of them. `along=1` attends along x alone.
        combine: "sum" adds what the axes give; "in_turn" feeds each one what the axis before it gave.
        path, bias, dropout_p, backend, device, dtype: see `GridMixer`.

    Raises:
        ArgumentError: an axis the grid does not have, an unknown name, heads that do not divide channels.
    """

    card: ClassVar[Card] = Card(
        guide="5",
        source="Ho et al. 2019, Axial Attention in Multidimensional Transformers, arXiv:1912.12180",
        equation="sum over axes of softmax(q k^T / sqrt(d_h)) v along the axis, lines of length l on each of a axes",
        time="O(n a l d + n a d^2)",
        memory="O(n d)",
        causal=None,
        padding=None,
        note="What the guide calls XYformer could not be traced; attention along x and y is one thing it can mean.",
    )

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        along: int | Sequence[int] | None = None,
        combine: Combination = "sum",
        **options: Unpack[GridOptions],
    ) -> None:
        super().__init__()
        self.channels = channels
        self.axes = checked_axes(options.get("axes", 2))
        self.along = _checked_along(along, self.axes)
        if combine not in ("sum", "in_turn"):
            raise ArgumentError(
                "combine", expected="'sum' or 'in_turn'", got=repr(combine), do="Ho et al. attend in turn."
            )
        self.combine: Combination = combine
        self.lines = nn.ModuleList(LineAttention(channels, num_heads, axis=axis, **options) for axis in self.along)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend along the axes. Arguments, layout and errors as in `GridMixer.forward`."""
        x = checked_grid(x, self.channels, self.axes)
        mask = checked_real(mask, x)
        if self.combine == "in_turn":
            for line in self.lines:
                x = line(x, mask=mask)
            return x
        first, *others = (line(x, mask=mask) for line in self.lines)
        for other in others:
            first = first + other
        return first


class CrissCrossAttention(GridMixer):
    """One softmax over all the lines through a token, called on (batch, channels, *grid).

    Args:
        channels, num_heads, axes, path, bias, dropout_p, backend, device, dtype: see `GridMixer`.

    Twice in a row it reaches every token, as CCNet applies it. CCNet itself narrows query and key to channels / 8 and
    adds the input, scaled by a learned number; both are left to the caller.

    In float64 the result is right to about 1e-7: the lines are joined by float32 normalisers. `path="mask"` has all
    digits.

    Raises:
        ArgumentError: a size out of range, heads that do not divide channels, an unknown path.
    """

    card: ClassVar[Card] = Card(
        guide="2.2, 5",
        source="Huang et al. 2019, CCNet: Criss-Cross Attention for Semantic Segmentation, arXiv:1811.11721",
        equation="softmax(q k^T / sqrt(d_h)) v over the tokens that differ in at most one of a coordinates, lines of l",
        time="O(n a l d + n d^2)",
        memory="O(n d)",
        causal=None,
        padding=None,
        note="The lines are joined by their normalisers, which are float32: in float64 it is right to about 1e-7.",
    )

    def own_mask(self, shape: Grid) -> Mask:
        return CrissCross(shape)

    def _reshaped(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        batch, *grid, _ = tokens.shape
        parts = _separate(self, tokens)
        found: list[tuple[Tensor, Tensor]] = []
        for axis in range(self.axes):
            query, key, value = (_lines(part, axis, self.head_dim) for part in parts)
            output, lse = self.attend_with_lse(query, key, value, self._line_mask(axis, real))
            shape = (batch, *grid, self.num_heads)
            found.append((output.transpose(1, 2).reshape(*shape, self.head_dim), lse.transpose(1, 2).reshape(shape)))
        return self.out_proj(merged(found).flatten(-2))

    def _line_mask(self, axis: int, real: Tensor | None) -> Mask | Tensor | None:
        """All of the line for the first axis; the others leave out the token itself, which counts once."""
        others = _OTHERS if axis else None
        if real is None:
            return others
        on_lines = _real_on_lines(real, axis, self.num_heads)
        if others is None:
            return on_lines
        length = real.shape[axis + 1]
        return on_lines & others.dense(length, length, device=real.device)


_OTHERS = ~SlidingWindow(0)  # made here, since torch.compile cannot trace `~`


def _separate(module: GridMixer, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (batch, *grid, channels), each contiguous: then all lines are views of it."""
    weight, bias, width = module.in_proj_weight, module.in_proj_bias, module.embed_dim
    query, key, value = (
        linear(tokens, weight[first : first + width], None if bias is None else bias[first : first + width])
        for first in (0, width, 2 * width)
    )
    return query, key, value


def _lines(part: Tensor, axis: int, head_dim: int) -> Tensor:
    """(batch, *grid, channels) as (batch * axes before, axes after * heads, length, head_dim), without a copy.

    What lies before the axis joins the batch and what lies after it the heads; both are contiguous there.
    """
    batch, *grid, channels = part.shape
    before, after = product(tuple(grid[:axis])), product(tuple(grid[axis + 1 :]))
    return part.reshape(batch * before, grid[axis], after * (channels // head_dim), head_dim).transpose(1, 2)


def _real_on_lines(real: Tensor, axis: int, num_heads: int) -> Tensor:
    """Bool (batch, *grid) as (batch * axes before, axes after * heads, 1, length): which keys of a line are real."""
    batch, *grid = real.shape
    before, after = product(tuple(grid[:axis])), product(tuple(grid[axis + 1 :]))
    lines = real.reshape(batch * before, grid[axis], after).transpose(1, 2)
    return lines.repeat_interleave(num_heads, 1)[:, :, None]


def _checked_along(along: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    given = range(axes) if along is None else (along,) if isinstance(along, int) else along
    chosen = tuple(given)
    if not chosen or any(axis not in range(-axes, axes) for axis in chosen):
        raise ArgumentError(
            "along",
            expected=f"axes from 0 to {axes - 1}",
            got=repr(along),
            do="For images 0 attends within columns and 1 within rows; None takes all axes.",
        )
    return tuple(axis % axes for axis in chosen)
