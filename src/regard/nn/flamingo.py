"""Gated cross-attention: a frozen language model learns to look (Alayrac et al. 2022, Flamingo, arXiv:2204.14198, 3.1).

    x = x + tanh(a) CrossAttention(LN(x), image tokens)
    x = x + tanh(b) FFN(LN(x))

a and b begin at 0, so that the block begins as the identity and the language model as it was trained.

In a text with several images each token looks at the image that stands last before it, and at no other;
`preceding_image` finds it. Tokens before the first image look at nothing: their attention is exactly 0. What they
learn of earlier images comes through the language model's own layers.

Cost of n text tokens that each see r of the m image tokens: O(n r d) time where the kernel skips blocks that nobody
sees, O((n + m) d) memory; the mask is one run of keys for each token, never an (n, m) tensor. Causal: yes, a token's
output depends on that token and its image alone. Padding: yes, of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard._errors import MaskError, ShapeError
from regard._shapes import shape_of
from regard.masks import Indices, Mask
from regard.nn._arguments import check_tokens
from regard.nn._card import Card
from regard.nn._cross_attention import CrossAttention, check_batches
from regard.nn._token_masks import both, token_mask
from regard.nn.feed_forward import Activation, FeedForward


def preceding_image(starts: Tensor) -> Tensor:
    """The image that stands last before or at each token, counted from 0; -1 before the first one.

    Args:
        starts: bool (batch, length), True at the tokens that stand for an image, one for each image.

    Returns:
        int64 (batch, length), what `GatedCrossAttention` takes as `image_of_token`.

    Raises:
        ShapeError: no bool tensor of two dimensions.
    """
    if starts.dtype != torch.bool or starts.dim() != 2:
        raise ShapeError(
            "starts",
            expected="bool (batch, length), True at each image's token",
            got=f"{starts.dtype} of shape {shape_of(starts)}",
            do="Compare the token numbers with that of the image token.",
        )
    return starts.cumsum(1) - 1


@dataclass(frozen=True, eq=False, repr=False)
class TokensOfImage(Mask):
    """Keeps for each query the keys of one image: keys [i r, (i + 1) r) for the image i, with r keys each.

    Args:
        image_of_token: int (batch, q_len), the image of each query; -1 for none.
        tokens_per_image: r.
    """

    image_of_token: Tensor
    tokens_per_image: int

    @property
    def batch_size(self) -> int:
        """See `Mask.batch_size`."""
        return self.image_of_token.shape[0]

    def check(self, q_len: int, kv_len: int) -> None:
        """See `Mask.check`."""
        if self.image_of_token.shape[1] != q_len:
            raise MaskError(
                "image_of_token",
                expected=f"one for each of {q_len} tokens",
                got=str(self.image_of_token.shape[1]),
                do="Give -1 for tokens without an image.",
            )

    def keep(self, at: Indices) -> Tensor:
        """See `Mask.keep`."""
        image = self.image_of_token.to(at.key.device)[at.batch, at.query]
        first = image * self.tokens_per_image
        return (image >= 0) & (at.key >= first) & (at.key < first + self.tokens_per_image)

    def intervals(self, q_len: int, kv_len: int) -> Tensor:
        """See `Mask.intervals`."""
        image = self.image_of_token.cpu()
        first = (image * self.tokens_per_image).where(image >= 0, 0)
        end = first + torch.where(image >= 0, self.tokens_per_image, 0)
        some = end > first
        both = torch.stack([first.where(some, 0), end.where(some, 0)], 1)  # (batch, 2, q_len)
        return both[:, None, None].to(torch.int32).contiguous()

    def __repr__(self) -> str:
        """The sizes alone."""
        batch, q_len = self.image_of_token.shape
        return f"TokensOfImage(int {batch}x{q_len}, {self.tokens_per_image} tokens an image)"


class GatedCrossAttention(nn.Module):
    """Flamingo's block between two layers of a language model. It begins as the identity.

    Args:
        embed_dim: width of the language model.
        num_heads: heads of attention.
        context_dim: width of the image tokens; embed_dim unless given.
        head_dim: width of a head; embed_dim / num_heads unless given.
        dim_feedforward: inner width of the feed-forward layers; 4 x embed_dim unless given.
        activation: of `FeedForward`; "squared_relu" as in Flamingo.
        gate_per_channel: one gate for each of embed_dim channels instead of one for all.
        norm_eps: epsilon of both LayerNorms.
        bias: do projections and feed-forward layers have one? Flamingo's do not.
        dropout_p: chance of dropping an attention weight in training.
        backend: as in `regard.attention`.

    Raises:
        ArgumentError: a size below 1; heads that do not divide embed_dim; an unknown activation.
    """

    card: ClassVar[Card] = Card(
        guide="2.3",
        source="Alayrac et al. 2022, Flamingo, arXiv:2204.14198, section 3.1 and figure 4",
        equation="x = x + tanh(a) cross(LN(x), context), x = x + tanh(b) FFN(LN(x)), a = b = 0 at first; "
        "r image tokens seen by each of n tokens, m in all",
        time="O(n r d + (n + m) d^2)",
        memory="O((n + m) d)",
        causal=True,
        padding=True,
        note="With its gates at 0 the block is the identity, and of its weights only the gates have a gradient.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        head_dim: int | None = None,
        dim_feedforward: int | None = None,
        activation: Activation = "squared_relu",
        gate_per_channel: bool = False,
        norm_eps: float = 1e-5,
        bias: bool = False,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = CrossAttention(
            embed_dim,
            num_heads,
            context_dim=context_dim,
            head_dim=head_dim,
            bias=bias,
            dropout_p=dropout_p,
            backend=backend,
            **place,
        )
        self.attention_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **place)
        self.feedforward_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **place)
        self.feedforward = FeedForward(embed_dim, dim_feedforward, activation=activation, bias=bias, **place)
        gates = embed_dim if gate_per_channel else 1
        self.attention_gate = nn.Parameter(torch.zeros(gates, **place))
        self.feedforward_gate = nn.Parameter(torch.zeros(gates, **place))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        mask: Mask | Tensor | None = None,
        image_of_token: Tensor | None = None,
    ) -> Tensor:
        """The text, having looked at the images.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, kv_len, context_dim), or (batch, images, tokens, context_dim).
            mask: which token of x may attend to which image token, the images one after another: a `regard.masks`
                value, or bool (batch, kv_len) for the real image tokens, or (length, kv_len) for pairs.
            image_of_token: int (batch, length), the image that each token sees, -1 for none; the context then has
                four dimensions. A `mask` narrows it further. While torch.compile traces, its numbers are not checked.

        Returns:
            (batch, length, embed_dim).

        Raises:
            ShapeError: a shape that does not fit.
            MaskError: a number of an image that there is not.
        """
        check_tokens("x", x, self.attention.embed_dim)
        tokens = self._flat(context)
        check_batches("context", tokens, x)
        kept = token_mask(mask, batch=x.shape[0], q_len=x.shape[1], kv_len=tokens.shape[1])
        if image_of_token is not None:
            kept = both(_of_images(image_of_token, x, context), kept)
        looked = self.attention(self.attention_norm(x), tokens, mask=kept)
        x = x + self.attention_gate.tanh() * looked
        return x + self.feedforward_gate.tanh() * self.feedforward(self.feedforward_norm(x))

    def _flat(self, context: Tensor) -> Tensor:
        return check_tokens(
            "context", context.flatten(1, 2) if context.dim() == 4 else context, self.attention.context_dim
        )


def _of_images(image_of_token: Tensor, x: Tensor, context: Tensor) -> TokensOfImage:
    if context.dim() != 4:
        raise ShapeError(
            "context",
            expected="(batch, images, tokens, context_dim), since image_of_token is given",
            got=shape_of(context),
            do="Unflatten the images, or say what is seen with mask=.",
        )
    whole = not (image_of_token.is_floating_point() or image_of_token.is_complex())
    if image_of_token.shape != x.shape[:2] or not whole or image_of_token.dtype == torch.bool:
        raise ShapeError(
            "image_of_token",
            expected=f"integers of shape (batch, length) = {tuple(x.shape[:2])}",
            got=f"{image_of_token.dtype} of shape {shape_of(image_of_token)}",
            do="Take preceding_image(starts), or number the images from 0 and give -1 for none.",
        )
    if not torch.compiler.is_compiling() and image_of_token.numel():
        _check_numbers(image_of_token, context.shape[1])
    return TokensOfImage(image_of_token.long(), context.shape[2])


def _check_numbers(image_of_token: Tensor, images: int) -> None:
    least, most = (int(number) for number in image_of_token.aminmax())
    if least < -1 or most >= images:
        raise MaskError(
            "image_of_token",
            expected=f"numbers from -1 (none) to {images - 1}, the last image",
            got=f"{least} to {most}",
            do="Count images from 0; preceding_image(starts) does.",
        )
