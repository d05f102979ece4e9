"""Attention between a text and an image: each side asks, the other answers (guide 2.3).

    text'  = softmax(text Wq (image Wk)^T / sqrt(d)) image Wv Wo      each word looks at the image
    image' = the same with the two exchanged and weights of its own    each patch looks at the words

`CrossModalAttention` is these two lines. `CoAttention` is the block that ViLBERT is built of (Lu et al. 2019,
arXiv:1908.02265): the two lines, then for each stream its residual, LayerNorm and feed-forward layers. Flamingo's
forms, in which only the text asks, are in `flamingo.py` and `perceiver.py`.

CLIP (Radford et al. 2021) has nothing of this. The guide's 2.3 says that contrastive learning aligns the "attention
spaces" of CLIP's two encoders; but its image encoder never sees a word, its text encoder never sees a patch, and no
attention weight connects the two. What the loss aligns is one embedding of the whole image with one of the whole
text. That loss is in `contrastive.py`; a map of cosine similarities (`alignment_map.py`) is not a map of attention.

Cost: n words and m patches, O(n m d) time and O((n + m) d) memory in each direction: no (n, m) tensor is made.
Causal: the text output of a word depends on that word and the image alone, but every patch looks at all words, so
`CrossModalAttention` and `CoAttention` are not for generation; `GatedCrossAttention` is. Padding: of both sides.

A word with no image to look at (a text without one, an image of padding only) gets exactly 0, not the bias of the
last projection, and its gradients are finite.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from regard.masks import Mask
from regard.nn._arguments import check_tokens, require_heads
from regard.nn._card import Card
from regard.nn._cross_attention import CrossAttention, check_batches
from regard.nn._dropout import Dropout
from regard.nn._token_masks import padding_mask
from regard.nn.feed_forward import Activation, FeedForward


class TextImage(NamedTuple):
    """What comes out of the two streams.

    Attributes:
        text: (batch, text_len, embed_dim).
        image: (batch, image_len, image_dim).
    """

    text: Tensor
    image: Tensor


class CrossModalAttention(nn.Module):
    """Words attend to patches and patches to words, at the same time and with weights of their own.

    `text_to_image` and `image_to_text` are the two directions, each a `CrossAttention` that may be called alone.

    Args:
        embed_dim: width of the words.
        num_heads: heads in each direction.
        image_dim: width of the patches; embed_dim unless given.
        head_dim: width of a head in both directions; embed_dim / num_heads unless given.
        bias, dropout_p, backend: as in `CrossAttention`.

    Raises:
        ArgumentError: a size below 1; heads that do not divide embed_dim; a chance outside 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="2.3",
        source="Lu et al. 2019, ViLBERT, arXiv:1908.02265, section 3.1; Tan and Bansal 2019, LXMERT, arXiv:1908.07490",
        equation="text' = softmax(text Wq (image Wk)^T / sqrt(d)) image Wv Wo, image' with both exchanged; n words, "
        "m patches",
        time="O(n m d + (n + m) d^2)",
        memory="O((n + m) d)",
        causal=False,
        padding=True,
        note="This is not what CLIP does: CLIP has no attention between image and text.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        image_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        image_dim = embed_dim if image_dim is None else image_dim
        options: dict[str, Any] = {
            "head_dim": require_heads(embed_dim, num_heads) if head_dim is None else head_dim,
            "bias": bias,
            "dropout_p": dropout_p,
            "backend": backend,
            "device": device,
            "dtype": dtype,
        }
        self.text_to_image = CrossAttention(embed_dim, num_heads, context_dim=image_dim, **options)
        self.image_to_text = CrossAttention(image_dim, num_heads, context_dim=embed_dim, **options)

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        *,
        text_mask: Mask | Tensor | None = None,
        image_mask: Mask | Tensor | None = None,
    ) -> TextImage:
        """What each side makes of the other; no residual is added.

        Args:
            text: (batch, text_len, embed_dim).
            image: (batch, image_len, image_dim).
            text_mask: which words are real: Padding, Keys, or bool (batch, text_len), True = real.
            image_mask: the same for patches. A sample without an image has none: its words come out as 0.

        Raises:
            ShapeError: a width, a number of dimensions or a batch that does not fit.
            MaskError: a padding mask for another batch or length.
            UnsupportedError: a mask that is no padding.
        """
        check_tokens("text", text, self.text_to_image.embed_dim)
        check_tokens("image", image, self.image_to_text.embed_dim)
        check_batches("image", image, text)
        return TextImage(
            self.text_to_image(text, image, mask=_real("image_mask", image_mask, image)),
            self.image_to_text(image, text, mask=_real("text_mask", text_mask, text)),
        )


class CoAttention(nn.Module):
    """ViLBERT's co-attention layer: two streams that keep their widths and read one another.

    For each stream, with y what `CrossModalAttention` gives it: `x = LN(x + y)`, `x = LN(x + FFN(x))`; with
    `norm_first` instead LayerNorm stands before the attention (on both sides) and before the feed-forward layers.

    ViLBERT alternates this layer with an ordinary transformer layer inside each stream; LXMERT has one pair of
    projections for both directions, this one has two, as ViLBERT.

    Args:
        embed_dim: width of the words.
        num_heads: heads in each direction.
        image_dim: width of the patches; embed_dim unless given.
        head_dim: width of a head in both directions; embed_dim / num_heads unless given.
        dim_feedforward: inner width of the words' feed-forward layers; 4 x embed_dim unless given.
        image_dim_feedforward: of the patches'; 4 x image_dim unless given.
        activation: of `FeedForward`; "gelu" as ViLBERT.
        norm_first: LayerNorm before instead of after.
        norm_eps: epsilon of every LayerNorm.
        bias, backend: as in `CrossAttention`.
        dropout_p: of attention weights, and of what is added to each stream.

    Raises:
        ArgumentError: a size below 1; heads that do not divide embed_dim; an unknown activation.
    """

    card: ClassVar[Card] = Card(
        guide="2.3",
        source="Lu et al. 2019, ViLBERT, arXiv:1908.02265, figure 2b",
        equation="x = LN(x + cross(x, other)), x = LN(x + FFN(x)) for text and image at once; n words, m patches",
        time="O(n m d + (n + m) d^2)",
        memory="O((n + m) d)",
        causal=False,
        padding=True,
        note="Every word's patches have seen all words: not for generation.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        image_dim: int | None = None,
        head_dim: int | None = None,
        dim_feedforward: int | None = None,
        image_dim_feedforward: int | None = None,
        activation: Activation = "gelu",
        norm_first: bool = False,
        norm_eps: float = 1e-5,
        bias: bool = True,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        image_dim = embed_dim if image_dim is None else image_dim
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = CrossModalAttention(
            embed_dim,
            num_heads,
            image_dim=image_dim,
            head_dim=head_dim,
            bias=bias,
            dropout_p=dropout_p,
            backend=backend,
            **place,
        )
        options: dict[str, Any] = {
            "activation": activation,
            "norm_eps": norm_eps,
            "bias": bias,
            "dropout_p": dropout_p,
            **place,
        }
        self.text = Stream(embed_dim, dim_feedforward, **options)
        self.image = Stream(image_dim, image_dim_feedforward, **options)
        self.norm_first = norm_first

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        *,
        text_mask: Mask | Tensor | None = None,
        image_mask: Mask | Tensor | None = None,
    ) -> TextImage:
        """Both streams, one layer further. Arguments, shapes and errors as in `CrossModalAttention`."""
        masks: dict[str, Any] = {"text_mask": text_mask, "image_mask": image_mask}
        if not self.norm_first:
            seen = self.attention(text, image, **masks)
            return TextImage(self.text.after(text, seen.text), self.image.after(image, seen.image))
        check_tokens("text", text, self.attention.text_to_image.embed_dim)
        check_tokens("image", image, self.attention.image_to_text.embed_dim)
        seen = self.attention(self.text.attention_norm(text), self.image.attention_norm(image), **masks)
        return TextImage(self.text.before(text, seen.text), self.image.before(image, seen.image))


class Stream(nn.Module):
    """What one stream of `CoAttention` does with the answer: residuals, norms and feed-forward layers."""

    def __init__(
        self,
        width: int,
        dim_feedforward: int | None,
        *,
        activation: Activation,
        norm_eps: float,
        bias: bool,
        dropout_p: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps, bias=bias, **place)
        self.feedforward = FeedForward(width, dim_feedforward, activation=activation, bias=bias, **place)
        self.feedforward_norm = nn.LayerNorm(width, eps=norm_eps, bias=bias, **place)
        self.dropout = Dropout(dropout_p)

    def after(self, x: Tensor, answer: Tensor) -> Tensor:
        """The rest of the layer where the norms stand after the residuals."""
        x = self.attention_norm(x + self.dropout(answer))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))

    def before(self, x: Tensor, answer: Tensor) -> Tensor:
        """The rest of the layer where the norms stand before."""
        x = x + self.dropout(answer)
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


def _real(name: str, mask: Mask | Tensor | None, tokens: Tensor) -> Mask | None:
    return padding_mask(name, mask, batch=tokens.shape[0], length=tokens.shape[1])
