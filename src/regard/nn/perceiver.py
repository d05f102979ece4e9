"""Perceiver resampler: any number of image tokens become a few (Alayrac et al. 2022, Flamingo, arXiv:2204.14198, 3.1).

Learned latents z ask; the tokens x of the image, and the latents themselves, answer. In each of `depth` layers

    z = z + Attention(query LN(z), keys and values [LN(z); LN(x)])
    z = z + FFN(LN(z))

and at the end LN(z). The image is read again in every layer and never changed. The Perceiver (Jaegle et al. 2021,
arXiv:2103.03206) lets its latents look at the input alone; that they also look at one another is Flamingo's.

Cost of a layer for m image tokens, r latents, width d: O((m + r) (r + d) d) time, O((m + r) d) memory. Causal: no, the
latents are a set that has read everything. Padding: yes, of the image tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard._errors import ShapeError
from regard._shapes import shape_of
from regard.masks import Keys, Mask, Padding
from regard.nn._arguments import check_tokens, require_heads, require_positive, require_probability
from regard.nn._card import Card
from regard.nn._cross_attention import linear
from regard.nn._real_tokens import real_tokens
from regard.nn._token_masks import padding_mask
from regard.nn.feed_forward import Activation, FeedForward


class PerceiverResampler(nn.Module):
    """Flamingo's resampler: (batch, any length, embed_dim) to (batch, num_latents, embed_dim).

    Several images in one sample are resampled one by one:
    `resampler(images.flatten(0, 1)).unflatten(0, images.shape[:2])`.

    Args:
        embed_dim: width of the image tokens and of the latents.
        num_heads: heads of attention.
        num_latents: tokens that come out; 64 in Flamingo.
        depth: layers; 6 in Flamingo.
        head_dim: width of a head; embed_dim / num_heads unless given.
        dim_feedforward: inner width of the feed-forward layers; 4 x embed_dim unless given.
        max_frames: of a video. Given, forward also takes (batch, frames, length, embed_dim) and adds a learned vector
            for each frame; such vectors exist for this many.
        activation: of `FeedForward`; "squared_relu" as in Flamingo.
        norm_eps: epsilon of every LayerNorm.
        bias: do projections and feed-forward layers have one? Flamingo's do not.
        dropout_p: chance of dropping an attention weight in training.
        backend: as in `regard.attention`.

    Raises:
        ArgumentError: a size below 1; heads that do not divide embed_dim; an unknown activation.
    """

    card: ClassVar[Card] = Card(
        guide="2.3",
        source="Alayrac et al. 2022, Flamingo, arXiv:2204.14198, section 3.1",
        equation="z = z + attention(LN(z), [LN(z); LN(x)]), z = z + FFN(LN(z)); r latents z, m image tokens x",
        time="O(m (r + d) d) a layer",
        memory="O((m + r) d) a layer",
        causal=False,
        padding=True,
        note="The number of tokens that come out is fixed, whatever went in.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_latents: int = 64,
        depth: int = 6,
        head_dim: int | None = None,
        dim_feedforward: int | None = None,
        max_frames: int | None = None,
        activation: Activation = "squared_relu",
        norm_eps: float = 1e-5,
        bias: bool = False,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_dim = require_heads(embed_dim, num_heads) if head_dim is None else head_dim
        require_positive(num_latents=num_latents, depth=depth)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_latents = embed_dim, num_latents
        self.latents = nn.Parameter(torch.empty(num_latents, embed_dim, **place))
        nn.init.normal_(self.latents)
        self.frames = None
        if max_frames is not None:
            require_positive(max_frames=max_frames)
            self.frames = nn.Parameter(torch.empty(max_frames, embed_dim, **place))
            nn.init.normal_(self.frames)
        self.layers = nn.ModuleList(
            ResamplerLayer(
                embed_dim,
                num_heads,
                head_dim=head_dim,
                dim_feedforward=dim_feedforward,
                activation=activation,
                norm_eps=norm_eps,
                bias=bias,
                dropout_p=dropout_p,
                backend=backend,
                **place,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps, **place)

    def forward(self, x: Tensor, *, mask: Mask | Tensor | None = None) -> Tensor:
        """A fixed number of tokens that say what the image tokens say.

        Args:
            x: (batch, length, embed_dim); where `max_frames` was given also (batch, frames, length, embed_dim).
                A length of 0 is allowed: the latents then see one another alone.
            mask: which tokens are real: Padding, Keys, or bool (batch, length), True = real, with the frames of a
                video one after another.

        Returns:
            (batch, num_latents, embed_dim).

        Raises:
            ShapeError: another shape; more frames than `max_frames`.
            MaskError: a padding mask for another batch or length.
            UnsupportedError: a mask that is no padding.
        """
        tokens = self._with_frames(x) if x.dim() == 4 else check_tokens("x", x, self.embed_dim)
        real = padding_mask("PerceiverResampler", mask, batch=tokens.shape[0], length=tokens.shape[1])
        keys = _behind_latents(real, tokens, self.num_latents)
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, tokens, mask=keys)
        return self.norm(latents)

    def _with_frames(self, video: Tensor) -> Tensor:
        frames = self.frames
        if frames is None or video.shape[1] > frames.shape[0] or video.shape[3] != self.embed_dim:
            raise ShapeError(
                "x",
                expected=f"(batch, length, embed_dim {self.embed_dim})"
                + ("" if frames is None else f", or with at most {frames.shape[0]} frames before length"),
                got=shape_of(video),
                do="Make the module with max_frames for video; resample several images one by one.",
            )
        check_tokens("x", video[:, 0] if video.shape[1] else video.flatten(1, 2), self.embed_dim)
        return (video + frames[: video.shape[1], None]).flatten(1, 2)


class ResamplerLayer(nn.Module):
    """One layer: the latents read the image and one another, then their feed-forward layers."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int,
        dim_feedforward: int | None,
        activation: Activation,
        norm_eps: float,
        bias: bool,
        dropout_p: float,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        require_positive(embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim)
        require_probability(dropout_p=dropout_p)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = num_heads * head_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.dropout_p, self.backend = dropout_p, backend
        self.latents_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **place)
        self.context_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **place)
        self.query = linear(embed_dim, inner, bias=bias, **place)
        self.key_value = linear(embed_dim, 2 * inner, bias=bias, parts=2, **place)
        self.output = linear(inner, embed_dim, bias=bias, **place)
        self.feedforward_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **place)
        self.feedforward = FeedForward(embed_dim, dim_feedforward, activation=activation, bias=bias, **place)

    def forward(self, latents: Tensor, tokens: Tensor, *, mask: Mask | None) -> Tensor:
        """(batch, num_latents, embed_dim), one layer further; `mask` is over [latents; tokens]."""
        latents = latents + self._read(latents, tokens, mask)
        return latents + self.feedforward(self.feedforward_norm(latents))

    def _read(self, latents: Tensor, tokens: Tensor, mask: Mask | None) -> Tensor:
        asking = self.latents_norm(latents)
        answering = torch.cat([asking, self.context_norm(tokens)], 1)
        query = self.query(asking).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        pair = self.key_value(answering).unflatten(-1, (2, self.num_heads, self.head_dim))
        key, value = pair.permute(2, 0, 3, 1, 4).unbind(0)
        dropout_p = self.dropout_p if self.training else 0.0
        mixed = attention(query, key, value, mask=mask, dropout_p=dropout_p, backend=self.backend)
        return self.output(mixed.transpose(1, 2).flatten(2))


def _behind_latents(real: Mask | None, tokens: Tensor, num_latents: int) -> Mask | None:
    """Which of [latents; tokens] may be attended to: every latent, and the real tokens.

    The latents stand first, so that padding on the right of the tokens stays padding on the right of all keys, which
    kernels know in closed form. The order of keys has no meaning to attention.
    """
    if real is None:
        return None
    if isinstance(real, Padding) and real.side == "right":
        return Padding([num_latents + length for length in real.lengths])
    flags = real_tokens("PerceiverResampler", real, tokens)
    return None if flags is None else Keys(torch.cat([flags.new_ones(tokens.shape[0], num_latents), flags], 1))
