"""MaxViT's two halves: attention within blocks of neighbours, and within grids of evenly spread tokens.

Tu et al. 2022, "MaxViT: Multi-Axis Vision Transformer", arXiv:2204.01697. A grid of tokens is cut into equal parts, and
softmax(q k^T / sqrt(d_h) + b) v is computed within each:

* `MaxViTBlockAttention`: blocks of p tokens on each axis, what is near (on images the windows of Swin, unshifted);
* `MaxViTGridAttention`: g tokens on each axis, height / g apart: the whole image, thinly. It is called grid attention.

b is a learned bias for each difference of coordinates and each head (`relative_bias`), as in the paper.

Time O(n p^a d) for n tokens on a axes, linear in n, memory O(n d). No order of tokens, so not causal. A size that p or
g does not divide is filled up, inside, with tokens that nobody sees, and cut again: exact, and nothing is refused.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._attention import attention
from regard._errors import UnsupportedError
from regard.masks import GridBlocks, Keys, Mask
from regard.nn._card import Card
from regard.nn._grid_mixer import Grid, GridMixer, GridOptions, checked_counts, checked_grid, checked_real, product

_NOTE = "Sizes it does not divide are filled up inside, exactly. Without relative_bias it does not see where in a part."


class _Parts(GridMixer):
    """Attention within equal parts of a grid: what the two halves share.

    Seen as (outer, inner) on each axis, one of the two numbers the parts and the other the tokens in one.
    """

    tokens_are_inner: ClassVar[bool]

    def __init__(
        self,
        channels: int,
        num_heads: int,
        counts: tuple[int, ...],
        *,
        relative_bias: bool,
        **options: Unpack[GridOptions],
    ) -> None:
        super().__init__(channels, num_heads, **options)
        self.counts = counts
        if relative_bias and self.path == "mask":
            raise UnsupportedError(
                {type(self).__name__: "path='mask' has no parts, where differences are counted, so no relative_bias"},
                do="Take path='reshaped'.",
            )
        self.relative_bias: nn.Parameter | None = None
        if relative_bias:
            differences = product(tuple(2 * count - 1 for count in counts))
            table = torch.empty(num_heads, differences, device=options.get("device"), dtype=options.get("dtype"))
            self.relative_bias = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def _splits(self, padded: Grid) -> list[tuple[int, int]]:
        """(outer, inner) of each axis of a grid that the counts divide."""
        sizes = [(size // count, count) for size, count in zip(padded, self.counts, strict=True)]
        return sizes if self.tokens_are_inner else [(count, parts) for parts, count in sizes]

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend within each part. Arguments, layout and errors as in `GridMixer.forward`."""
        x = checked_grid(x, self.embed_dim, self.axes)
        real, shape = checked_real(mask, x), x.shape[2:]
        missing = [-size % count for size, count in zip(shape, self.counts, strict=True)]
        if not any(missing):
            return super().forward(x, mask=real)
        around = [side for size in reversed(missing) for side in (0, size)]
        real = torch.ones(x.shape[0], *shape, dtype=torch.bool, device=x.device) if real is None else real
        found = super().forward(functional.pad(x, around), mask=functional.pad(real, around))
        return found[(..., *(slice(size) for size in shape))]

    def _reshaped(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        batch, *grid, channels = tokens.shape
        splits = self._splits(tuple(grid))
        parts = self._cut(tokens.reshape(batch, *itertools.chain(*splits), channels))
        # A view of the same size, said in numbers: of lengths that torch.compile holds open it would be a formula.
        size = product(self.counts)
        query, key, value = self.to_heads(parts.reshape(-1, size, channels).narrow(1, 0, size))
        allowed = None
        if real is not None:
            cut = self._cut(real.reshape(batch, *itertools.chain(*splits), 1))
            allowed = Keys(cut.reshape(-1, size))
        heads = attention(
            query, key, value, mask=allowed, bias=self._bias(), dropout_p=self.dropout_now, backend=self.backend
        )
        return self._put_back(self.from_heads(heads).reshape(parts.shape)).reshape(tokens.shape)

    def _bias(self) -> Tensor | None:
        """(1, heads, tokens, tokens) of a part."""
        if self.relative_bias is None:
            return None
        # No buffer: it would be lost where a model is made on "meta" and its weights are loaded.
        return self.relative_bias[:, _differences(self.counts, self.relative_bias.device)][None]

    def _order(self) -> list[int]:
        """The dimensions of (batch, outer, inner, outer, inner, ..., channels) with those of a part last."""
        outer, inner = (list(range(first, 2 * self.axes + 1, 2)) for first in (1, 2))
        parts, within = (outer, inner) if self.tokens_are_inner else (inner, outer)
        return [0, *parts, *within, 2 * self.axes + 1]

    def _cut(self, split: Tensor) -> Tensor:
        return split.permute(self._order())

    def _put_back(self, parts: Tensor) -> Tensor:
        order = self._order()
        return parts.permute([order.index(place) for place in range(len(order))])


class MaxViTBlockAttention(_Parts):
    """Attention within blocks of `window` neighbours on each axis, called on (batch, channels, *grid).

    Args:
        channels, num_heads: width of a token, and heads that divide it.
        window: tokens of a block on each axis, one number or one for each.
        relative_bias: learn a bias for each difference of coordinates, `relative_bias` (num_heads, differences).
        axes, path, bias, dropout_p, backend, device, dtype: see `GridMixer`.

    Raises:
        ArgumentError: a size out of range, heads that do not divide channels, an unknown path.
        UnsupportedError: relative_bias with path="mask".
    """

    card: ClassVar[Card] = Card(
        guide="5",
        source="Tu et al. 2022, MaxViT: Multi-Axis Vision Transformer, arXiv:2204.01697 (block attention)",
        equation="softmax(q k^T / sqrt(d_h) + b) v within blocks of p tokens on each of a axes",
        time="O(n p^a d + n d^2)",
        memory="O(n d)",
        causal=None,
        padding=None,
        note=_NOTE,
    )
    tokens_are_inner = True

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        window: int | tuple[int, ...] = 7,
        relative_bias: bool = False,
        **options: Unpack[GridOptions],
    ) -> None:
        counts = checked_counts("window", window, options.get("axes", 2))
        super().__init__(channels, num_heads, counts, relative_bias=relative_bias, **options)

    def own_mask(self, shape: Grid) -> Mask:
        """Of a shape that the window divides. A block is a grid of its own in (blocks, within, blocks, within, ...)."""
        splits = self._splits(shape)
        return GridBlocks(tuple(itertools.chain(*splits)), tuple(itertools.chain(*((1, inner) for _, inner in splits))))


class MaxViTGridAttention(_Parts):
    """Attention within grids of `grid` tokens on each axis, spread evenly, called on (batch, channels, *grid).

    Args:
        channels, num_heads: width of a token, and heads that divide it.
        grid: tokens that see each other on each axis, one number or one for each.
        relative_bias: learn a bias for each difference of coordinates, `relative_bias` (num_heads, differences).
        axes, path, bias, dropout_p, backend, device, dtype: see `GridMixer`.

    Raises:
        ArgumentError: a size out of range, heads that do not divide channels, an unknown path.
        UnsupportedError: relative_bias with path="mask".
    """

    card: ClassVar[Card] = Card(
        guide="5",
        source="Tu et al. 2022, MaxViT: Multi-Axis Vision Transformer, arXiv:2204.01697 (grid attention)",
        equation="softmax(q k^T / sqrt(d_h) + b) v within grids of g tokens on each of a axes, evenly spread",
        time="O(n g^a d + n d^2)",
        memory="O(n d)",
        causal=None,
        padding=None,
        note=_NOTE,
    )
    tokens_are_inner = False

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        grid: int | tuple[int, ...] = 7,
        relative_bias: bool = False,
        **options: Unpack[GridOptions],
    ) -> None:
        counts = checked_counts("grid", grid, options.get("axes", 2))
        super().__init__(channels, num_heads, counts, relative_bias=relative_bias, **options)

    def own_mask(self, shape: Grid) -> Mask:
        """Of a shape that the grid divides."""
        return GridBlocks(shape, self.counts)


def _differences(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 (tokens, tokens) of a part: which entry of the table a pair has, key - query on each axis, row by row."""
    places = torch.cartesian_prod(*(torch.arange(count, device=device) for count in counts)).reshape(-1, len(counts))
    apart = places[None] - places[:, None]
    entry = torch.zeros(apart.shape[:2], dtype=torch.int64, device=device)
    for axis, count in enumerate(counts):
        entry = entry * (2 * count - 1) + apart[..., axis] + count - 1
    return entry
