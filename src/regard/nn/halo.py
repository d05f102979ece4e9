"""Halo attention (Vaswani et al. 2021): blocks of an image attend to themselves and a rim of their neighbours.

    For each block of b x b places, with the w x w window around it, w = b + 2 * halo:
    y_i = sum_j softmax_j(s q_i . k_j + q_i . (r^h[row_j - row_i] + r^w[col_j - col_i])) v_j,   j in the window

O(n w^2 c) time for n places instead of O(n^2 c). The relative part of the scores is a sum of one term for the row
and one for the column of the key, so it goes into the dot product as 2 w more features: no (n, w^2) tensor of biases
is made; memory is the windows' keys and values, O(n (w / b)^2 c). No order of tokens, no padding of tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._attention import attention
from regard._errors import ArgumentError
from regard.nn._arguments import require_heads, require_positive
from regard.nn._card import Card
from regard.nn._gating import Pointwise, checked_image

Border = Literal["zeros", "masked"]


class HaloAttention(nn.Module):
    """Attention in blocks with a halo (Vaswani, Ramachandran, Srinivas, Parmar, Hechtman, Shlens 2021).

    Weights have the names and shapes of timm's HaloAttn (with stride 1). Any image size works: what is missing to whole
    blocks is beyond the border. With a block as large as the image and halo_size=0 it is BoTNet's attention.

    Args:
        channels: of the image.
        num_heads: how many heads share the channels.
        block_size: side of a block, in pixels.
        halo_size: how far a block sees beyond its sides, in pixels.
        key_dim: width of a head's query and key; channels / num_heads unless given.
        border: places beyond the image are "zeros" that take part in the softmax, as in timm and the paper's code, or
            "masked": nobody attends to them.
        scale_position: the relative part is scaled as the dot product is (timm's `scale_pos_embed`).
        bias: of the projections.
        backend: of `regard.attention`.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, heads that do not divide the channels, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Vaswani et al. 2021, Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
        equation="y_i = sum_j softmax_j(s q_i k_j + q_i (r_row + r_col)) v_j, j in the window w^2 of i's block b^2",
        time="O(n w^2 c + n c^2), n places",
        memory="O(n (w / b)^2 c)",
        causal=None,
        padding=None,
        note="By default places beyond the border take part as zeros, as in timm; border='masked' leaves them out.",
    )

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        *,
        block_size: int = 8,
        halo_size: int = 3,
        key_dim: int | None = None,
        border: Border = "zeros",
        scale_position: bool = False,
        bias: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels, block_size=block_size)
        if halo_size:
            require_positive(halo_size=halo_size)
        self.value_dim = require_heads(channels, num_heads)
        self.key_dim = self.value_dim if key_dim is None else key_dim
        require_positive(key_dim=self.key_dim)
        if border not in {"zeros", "masked"}:
            raise ArgumentError("border", expected="zeros or masked", got=repr(border), do="Take one of these.")
        self.channels = channels
        self.num_heads = num_heads
        self.block_size = block_size
        self.halo_size = halo_size
        self.window = block_size + 2 * halo_size
        self.border = border
        self.scale_position = scale_position
        self.backend = backend
        keys, values = num_heads * self.key_dim, num_heads * self.value_dim
        self.q = Pointwise(channels, keys, bias=bias, device=device, dtype=dtype)
        self.kv = Pointwise(channels, keys + values, bias=bias, device=device, dtype=dtype)
        self.pos_embed = _Relative(block_size, self.window, self.key_dim, device, dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        height, width = image.shape[2:]
        down, right = -height % self.block_size, -width % self.block_size
        query = functional.pad(self.q(image), (0, right, 0, down))
        halo = self.halo_size
        both = functional.pad(self.kv(image), (halo, halo + right, halo, halo + down))
        query, both = self._blocks(query), self._windows(both)
        key, value = both[..., : self.key_dim], both[..., self.key_dim :]
        scale = self.key_dim**-0.5
        relative, place = self.pos_embed(query)  # (blocks, heads, b * b, 2 * window), (window^2, 2 * window)
        if self.scale_position:
            relative = relative * scale
        query = torch.cat((query * scale, relative), dim=-1)
        key = torch.cat((key, place.expand(*key.shape[:2], -1, -1)), dim=-1)
        mask = self._inside(image, down, right) if self.border == "masked" else None
        found = attention(query, key, value, mask=mask, scale=1.0, backend=self.backend)
        return self._image(found, height + down, width + right)[:, :, :height, :width]

    def _blocks(self, maps: Tensor) -> Tensor:
        """(batch, heads * dim, H, W) to (batch * blocks, heads, block^2, dim)."""
        side, (batch, _, height, width) = self.block_size, maps.shape
        maps = maps.reshape(batch, self.num_heads, self.key_dim, height // side, side, width // side, side)
        blocks = maps.permute(0, 3, 5, 1, 4, 6, 2)  # batch, rows, columns of blocks, heads, y, x, dim
        return blocks.flatten(4, 5).flatten(0, 2)

    def _windows(self, maps: Tensor) -> Tensor:
        """(batch, heads * dim, H + 2 halo, W + 2 halo) to (batch * blocks, heads, window^2, dim)."""
        # Channels last: what is copied below is then in runs of them. (vmap has no `contiguous` of that format.)
        maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)
        windows = maps.unfold(2, self.window, self.block_size).unfold(3, self.window, self.block_size)
        rows, columns = windows.shape[2:4]
        dim = self.key_dim + self.value_dim
        shape = (maps.shape[0], self.num_heads, dim, rows, columns, self.window, self.window)
        windows = windows.view(shape).permute(0, 3, 4, 1, 5, 6, 2)  # batch, rows, columns, heads, y, x, dim
        return windows.flatten(4, 5).flatten(0, 2)

    def _image(self, found: Tensor, height: int, width: int) -> Tensor:
        """(batch * blocks, heads, block^2, dim) to (batch, channels, height, width)."""
        side, dim = self.block_size, self.value_dim
        rows, columns = height // side, width // side
        batch = found.shape[0] // (rows * columns)
        found = found.view(batch, rows, columns, self.num_heads, side, side, dim)
        return found.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, self.channels, height, width)

    def _inside(self, image: Tensor, down: int, right: int) -> Tensor:
        """True for the keys that are in the image, (batch * blocks, 1, 1, window^2)."""
        halo, (height, width) = self.halo_size, image.shape[2:]
        inside = torch.ones(1, height, width, dtype=torch.bool, device=image.device)
        inside = functional.pad(inside, (halo, halo + right, halo, halo + down))
        windows = inside.unfold(1, self.window, self.block_size).unfold(2, self.window, self.block_size)
        return windows.flatten(3, 4).flatten(0, 2).repeat(image.shape[0], 1)[:, None, None]


class _Relative(nn.Module):
    """The relative part of the scores as features: what a query says of each row and column of its window."""

    def __init__(
        self, block: int, window: int, dim: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.block, self.window = block, window
        self.height_rel = nn.Parameter(torch.empty(2 * window - 1, dim, device=device, dtype=dtype))
        self.width_rel = nn.Parameter(torch.empty(2 * window - 1, dim, device=device, dtype=dtype))
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=dim**-0.5)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(blocks, heads, b * b, dim) to the features of the queries and, the same in each block, of the keys."""
        places = torch.arange(self.window, device=query.device)
        distance = places - places[: self.block, None] + self.window - 1  # (block, window), from 0
        query = query.view(*query.shape[:2], self.block, self.block, query.shape[3])
        of_row = torch.einsum("nhyxd,ywd->nhyxw", query, self.height_rel[distance])
        of_column = torch.einsum("nhyxd,xwd->nhyxw", query, self.width_rel[distance])
        features = torch.cat((of_row, of_column), dim=-1).flatten(2, 3)
        one_hot = torch.eye(self.window, device=query.device, dtype=query.dtype)
        of_key = torch.cat((one_hot.repeat_interleave(self.window, 0), one_hot.repeat(self.window, 1)), dim=-1)
        return features, of_key
