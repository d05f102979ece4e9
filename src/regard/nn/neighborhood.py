"""Neighbourhood attention: each token of a grid sees those at most `radius` away on every axis.

Hassani et al. 2023, "Neighborhood Attention Transformer", arXiv:2204.07143. For a token at place p

    output_p = softmax over {j : |j_a - p_a| <= radius on every axis a} of (q_p k_j / sqrt(d_h)), times v_j

At the border the neighbourhood is cut off. NATTEN instead moves it inwards, so that every token sees as many; away from
the border both are the same, with its kernel size 2 * radius + 1.

Time O(n (2 radius + tile)^a d) for n tokens on a axes: queries go by tiles, and a tile computes all pairs with what any
of its tokens sees. Memory O(n ((tile + 2 radius) / tile)^a d). On one axis it is a plain window, without either excess.
No order of tokens, so not causal.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from regard.masks import Keys, Mask, Neighborhood, SlidingWindow
from regard.nn._card import Card
from regard.nn._grid_mixer import Grid, GridMixer, GridOptions, checked_counts, product
from regard.nn._token_masks import both


class NeighborhoodAttention(GridMixer):
    """Attention to what is near on every axis, called on (batch, channels, *grid).

    Args:
        channels, num_heads: width of a token, and heads that divide it.
        radius: how far a token sees on each axis, one number or one for each.
        axes, path, bias, dropout_p, backend, device, dtype: see `GridMixer`.

    Raises:
        ArgumentError: a size out of range, heads that do not divide channels, an unknown path.
    """

    card: ClassVar[Card] = Card(
        guide="5",
        source="Hassani et al. 2023, Neighborhood Attention Transformer, arXiv:2204.07143",
        equation="softmax(q k^T / sqrt(d_h)) v over the tokens at most r away on each of a axes, in tiles of t",
        time="O(n (t + 2 r)^a d + n d^2)",
        memory="O(n ((t + 2 r) / t)^a d)",
        causal=None,
        padding=None,
        note="Neighbourhoods are cut off at the border, where NATTEN moves them inwards.",
    )

    def __init__(
        self, channels: int, num_heads: int, *, radius: int | tuple[int, ...] = 3, **options: Unpack[GridOptions]
    ) -> None:
        super().__init__(channels, num_heads, **options)
        self.radius = checked_counts("radius", radius, self.axes)

    def own_mask(self, shape: Grid) -> Mask:
        return Neighborhood(shape, self.radius)

    def _reshaped(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        if self.axes == 1:
            query, key, value = self.to_heads(tokens)
            window = both(SlidingWindow(self.radius[0]), None if real is None else Keys(real))
            return self.from_heads(self.attend(query, key, value, window))
        batch, *grid, channels = tokens.shape
        tile = tuple(min(size, _TILE[self.axes]) for size in grid)
        tiles = tuple(-(-size // side) for size, side in zip(grid, tile, strict=True))
        query, key, value = (
            part.transpose(1, 2).reshape(batch, *grid, channels) for part in self.to_heads(tokens.flatten(1, -2))
        )
        rows = _windows(query, tile, tile, tuple(0 for _ in tile))
        reach = tuple(side + 2 * radius for side, radius in zip(tile, self.radius, strict=True))
        keys, values = (_windows(part, tile, reach, self.radius) for part in (key, value))
        allowed = self._tile_mask(tuple(grid), tile, reach, real, tokens.device)
        heads = self.attend(self._by_tile(rows), self._by_tile(keys), self._by_tile(values), allowed)
        # (tiles, batch * heads, tile, head_dim) back to where the tokens stand.
        found = heads.reshape(*tiles, batch, self.num_heads, *tile, self.head_dim)
        order = [self.axes, *itertools.chain(*((axis, self.axes + 2 + axis) for axis in range(self.axes)))]
        placed = found.permute(*order, self.axes + 1, 2 * self.axes + 2)
        whole = placed.reshape(batch, *(count * side for count, side in zip(tiles, tile, strict=True)), channels)
        return self.out_proj(whole[(slice(None), *(slice(size) for size in grid))])

    def _by_tile(self, windows: Tensor) -> Tensor:
        """(batch, *tiles, *window, channels) as (tiles, batch * heads, window, head_dim): the mask is a tile's own."""
        batch, parts = windows.shape[0], product(tuple(windows.shape[1 : self.axes + 1]))
        window = product(tuple(windows.shape[self.axes + 1 : -1]))
        apart = windows.reshape(batch, parts, window, self.num_heads, self.head_dim)
        return apart.permute(1, 0, 3, 2, 4).reshape(parts, batch * self.num_heads, window, self.head_dim)

    def _tile_mask(self, grid: Grid, tile: Grid, reach: Grid, real: Tensor | None, device: torch.device) -> Tensor:
        """Bool (tiles, 1 or batch * heads, tokens of a tile, tokens around it)."""
        inside = torch.ones(1, *grid, dtype=torch.bool, device=device) if real is None else real
        around = _windows(inside.unsqueeze(-1), tile, reach, self.radius)
        parts = product(tuple(around.shape[1 : self.axes + 1]))
        keys = around.reshape(inside.shape[0], parts, 1, product(reach)).transpose(0, 1)  # (tiles, batch or 1, 1, keys)
        if real is not None:
            keys = keys.repeat_interleave(self.num_heads, 1)
        return keys & _near(tile, self.radius, device)


_TILE = {2: 8, 3: 4}
"""Tokens of a tile on each axis. Larger ones compute more pairs that are not seen, smaller ones copy more keys."""


def _windows(part: Tensor, tile: Grid, reach: Grid, before: Grid) -> Tensor:
    """(batch, *grid, channels) as (batch, *tiles, *reach, channels): what lies around each tile, zeros outside."""
    grid = tuple(part.shape[1:-1])
    around: list[int] = []
    for size, side, wide, first in zip(grid, tile, reach, before, strict=True):
        covered = -(-size // side) * side
        around = [first, covered - size + wide - side - first, *around]
    padded = functional.pad(part, (0, 0, *around))
    for axis, (side, wide) in enumerate(zip(tile, reach, strict=True), start=1):
        padded = padded.unfold(axis, wide, side)
    # unfold leaves (batch, *tiles, channels, *reach)
    axes = len(grid)
    return padded.permute(0, *range(1, axes + 1), *range(axes + 2, 2 * axes + 2), axes + 1)


def _near(tile: Grid, radius: Grid, device: torch.device) -> Tensor:
    """Bool (tokens of a tile, tokens around it): at most `radius` away on every axis."""
    near = torch.ones(1, 1, dtype=torch.bool, device=device)
    for side, reach in zip(tile, radius, strict=True):
        query, key = torch.arange(side, device=device)[:, None], torch.arange(side + 2 * reach, device=device)
        one = (key - reach - query).abs() <= reach
        near = (near[:, None, :, None] & one[None, :, None]).reshape(near.shape[0] * side, near.shape[1] * len(key))
    return near
