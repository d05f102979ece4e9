"""Two towers that meet in one space: pictures of 48 x 48 pixels, and captions as byte-level BPE.

    picture   strided convolutions to a grid of 6 x 6 tokens, encoder blocks, pooled by attention with a learned query
    caption   embeddings and sinusoids, encoder blocks, pooled by attention, too
    both      a linear map to `width` numbers; similarity is the cosine

Under several processes each has a part of the batch. The contrastive loss asks every picture about every caption, so
embeddings are gathered, and gradients flow back through the gathering.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed
from torch import Tensor, nn

from regard.masks import Keys
from regard.nn import CLIPLoss, MultiHeadAttention, SigLIPLoss, TokenEmbedding, TransformerEncoder

LossName = Literal["clip", "siglip"]


class AttentionPooling(nn.Module):
    """Tokens (batch, length, embed_dim) to one vector, by a learned query (Zhai et al. 2022, arXiv:2106.04560)."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, embed_dim) * embed_dim**-0.5)
        self.attention = MultiHeadAttention(embed_dim, num_heads)

    def forward(self, tokens: Tensor, mask: Keys | None = None) -> Tensor:
        """(batch, embed_dim); `mask` says which tokens are real."""
        return self.attention(self.query.expand(len(tokens), -1, -1), tokens, mask=mask)[:, 0]


class PictureTower(nn.Module):
    """(batch, 3, 48, 48), from -1 to 1, to (batch, width)."""

    def __init__(self, embed_dim: int, num_heads: int, num_layers: int, width: int, *, dropout_p: float) -> None:
        super().__init__()
        quarter = embed_dim // 4
        self.stem = nn.Sequential(
            *_halving(3, quarter), *_halving(quarter, 2 * quarter), *_halving(2 * quarter, embed_dim)
        )
        self.places = nn.Parameter(torch.randn(1, 36, embed_dim) * 0.02)
        self.encoder = TransformerEncoder(
            embed_dim,
            num_heads,
            num_layers,
            activation="gelu",
            dim_feedforward=2 * embed_dim,
            dropout_p=dropout_p,
        )
        self.pooling = AttentionPooling(embed_dim, num_heads)
        self.head = nn.Linear(embed_dim, width)

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        tokens = self.stem(pictures).flatten(2).transpose(1, 2) + self.places
        return self.head(self.pooling(self.encoder(tokens)))


class CaptionTower(nn.Module):
    """Tokens (batch, length) and which of them are real to (batch, width)."""

    def __init__(
        self, vocabulary: int, embed_dim: int, num_heads: int, num_layers: int, width: int, *, dropout_p: float
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocabulary, embed_dim, dropout_p=dropout_p)
        self.encoder = TransformerEncoder(
            embed_dim,
            num_heads,
            num_layers,
            activation="gelu",
            dim_feedforward=2 * embed_dim,
            dropout_p=dropout_p,
        )
        self.pooling = AttentionPooling(embed_dim, num_heads)
        self.head = nn.Linear(embed_dim, width)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """See the class."""
        mask = Keys(real)
        return self.head(self.pooling(self.encoder(self.embedding(tokens), mask=mask), mask))


class TwoTowers(nn.Module):
    """Both towers and the loss with its learned temperature.

    Args:
        vocabulary: of the captions.
        embed_dim, num_heads: of both towers; embed_dim is a multiple of 32.
        picture_layers, caption_layers: encoder blocks.
        width: of the space in which they meet.
        loss: "clip" or "siglip".
        dropout_p: in both towers.
    """

    def __init__(
        self,
        vocabulary: int,
        embed_dim: int,
        num_heads: int,
        *,
        picture_layers: int,
        caption_layers: int,
        width: int,
        loss: LossName,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        self.picture = PictureTower(embed_dim, num_heads, picture_layers, width, dropout_p=dropout_p)
        self.caption = CaptionTower(vocabulary, embed_dim, num_heads, caption_layers, width, dropout_p=dropout_p)
        self.contrastive = CLIPLoss() if loss == "clip" else SigLIPLoss()
        for name, parameter in list(self.contrastive.named_parameters()):  # FSDP2 spreads no parameter of 0 dimensions
            setattr(self.contrastive, name, nn.Parameter(parameter.detach()[None]))

    def forward(self, pictures: Tensor, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of pictures and of captions, each (batch, width), float32."""
        return self.picture(pictures).float(), self.caption(tokens, real).float()

    def loss(self, pictures: Tensor, captions: Tensor, groups: Tensor) -> Tensor:
        """The mean loss of the whole batch, whichever processes its parts are on; those of a group belong together.

        Every process computes all of it from the gathered embeddings, so its value and gradient are one process's.
        """
        if self.training and _processes() > 1:
            pictures, captions, groups = gathered(pictures), gathered(captions), gathered(groups[:, None])[:, 0]
        return self.contrastive(pictures, captions, groups=groups)


def gathered(rows: Tensor) -> Tensor:
    """The rows (count, width) of every process, in the order of processes; counts may differ.

    The gradient of a process's rows is the sum of what all processes say about them.
    """
    return cast("Any", _Gathered).apply(rows)


def _processes() -> int:
    return _world.get_world_size() if _world.is_available() and _world.is_initialized() else 1


_world: Any = torch.distributed
"""Its functions have no types of their own."""


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(_world.get_world_size())]
        _world.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = [int(count) for count in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        _world.all_gather(parts, padded)
        ctx.own = slice(sum(sizes[: _world.get_rank()]), sum(sizes[: _world.get_rank() + 1]))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        _world.all_reduce(whole)
        return whole[ctx.own]


def _halving(channels: int, out_channels: int) -> list[nn.Module]:
    """Half as high and wide."""
    return [
        nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.GELU(),
    ]
