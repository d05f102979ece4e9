"""Transformer encoder and decoder: blocks, and stacks of them. The guide's 2.1.

Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, section 3.1. Each block has
attention and a feed-forward network, each with a residual connection and a LayerNorm, as the guide advises, either
before what it wraps or after the sum (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture",
https://arxiv.org/abs/2002.04745: before, training is stable without warm-up):

    norm_first=True     x + f(norm(x)), and one more norm at the end of the stack
    norm_first=False    norm(x + f(x)), as in the paper

Positions of `regard.positions` go to the self-attention of every block: one for all (as in T5), or one for each.
Cost of a block: time n^2 d + 12 n d^2 with a feed-forward width of 4 d; a decoder block adds n m d + 2 (n + m) d^2 for
m tokens of context. Memory n d. Encoders are causal-valid with `causal=True`, decoders are causal; both padding-valid.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.masks import Mask
from regard.nn._arguments import check_tokens, require_positive
from regard.nn._block_parts import (
    BlockOptions,
    Positions,
    Residual,
    feed_forward,
    final_norm,
    of_attention,
    positions_of,
)
from regard.nn._cache import CacheStack, KeyValueCache
from regard.nn._card import Card
from regard.nn._torch_transformer import copy_decoder_block, copy_encoder_block, copy_stack, options_of_block
from regard.nn.multihead import MultiHeadAttention
from regard.positions import Position


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a norm.

    T5's layers are made with norm="rms", bias=False, scale=1.0 and a `T5Bias`; Llama's with norm="rms", bias=False,
    activation="swiglu", causal=True, kv_heads and a `RoPE`.

    Args:
        embed_dim, num_heads: as in `MultiHeadAttention`.
        position: of the self-attention.
        causal: no token sees a later one; a language model's block.
        options: see `BlockOptions`.

    Raises:
        ArgumentError, ShapeError: what `MultiHeadAttention` and `FeedForward` refuse.
    """

    card: ClassVar[Card] = Card(
        guide="2.1",
        source="Vaswani et al. 2017, Attention Is All You Need, 3.1; Xiong et al. 2020 for norm_first",
        equation="y = x + MHA(norm(x)), output = y + W2 f(W1 norm(y)), n tokens of width d",
        time="n^2 d + 12 n d^2",
        memory="n d",
        causal=True,
        padding=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        position: Position | None = None,
        causal: bool = False,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        attending = of_attention(options)
        self.self_attention = MultiHeadAttention(embed_dim, num_heads, causal=causal, position=position, **attending)
        self.feed_forward = feed_forward(embed_dim, options)
        self.around_attention = Residual(embed_dim, options)
        self.around_feed_forward = Residual(embed_dim, options)

    def forward(self, x: Tensor, *, mask: Mask | Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, length, embed_dim) to the same; `mask` and `cache` as in `MultiHeadAttention`."""
        check_tokens("x", x, self.embed_dim)

        def attend(states: Tensor) -> Tensor:
            return self.self_attention(states, mask=mask, cache=cache)

        x = self.around_attention(x, attend)
        return self.around_feed_forward(x, self.feed_forward)

    def make_cache(self, batch: int, most_tokens: int) -> KeyValueCache:
        """An empty cache for decoding step by step. Raises ArgumentError unless the block is causal."""
        _require_causal(self.self_attention)
        return self.self_attention.make_cache(batch, most_tokens)

    @classmethod
    def from_torch(cls, layer: nn.TransformerEncoderLayer, **options: Any) -> EncoderBlock:
        """The same block with copies of torch's weights; `options` are keywords that torch's layer does not have.

        Raises:
            UnsupportedError: an activation other than relu or gelu.
        """
        own = options_of_block(layer)
        return copy_encoder_block(layer, cls(own.pop("embed_dim"), own.pop("num_heads"), **{**own, **options}))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to a context, and feed-forward, each with a residual and a LayerNorm.

    Args:
        embed_dim, num_heads: as in `MultiHeadAttention`.
        position: of the self-attention.
        options: see `BlockOptions`.

    Raises:
        ArgumentError, ShapeError: what `MultiHeadAttention` and `FeedForward` refuse.
    """

    card: ClassVar[Card] = Card(
        guide="2.1",
        source="Vaswani et al. 2017, Attention Is All You Need, 3.1; Xiong et al. 2020 for norm_first",
        equation="y = x + MHA(norm(x)), z = y + MHA(norm(y), context), output = z + W2 f(W1 norm(z)), m context tokens",
        time="n^2 d + n m d + (14 n + 2 m) d^2",
        memory="(n + m) d",
        causal=True,
        padding=True,
    )

    def __init__(
        self, embed_dim: int, num_heads: int, *, position: Position | None = None, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        attending = of_attention(options)
        self.self_attention = MultiHeadAttention(embed_dim, num_heads, causal=True, position=position, **attending)
        self.cross_attention = MultiHeadAttention(embed_dim, num_heads, **attending)
        self.feed_forward = feed_forward(embed_dim, options)
        self.around_attention = Residual(embed_dim, options)
        self.around_context = Residual(embed_dim, options)
        self.around_feed_forward = Residual(embed_dim, options)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        context_mask: Mask | Tensor | None = None,
        cache: CacheStack | None = None,
        beams: int = 1,
    ) -> Tensor:
        """Decode.

        Args:
            x: (batch * beams, length, embed_dim).
            context: (batch, context length, embed_dim); left out with a cache, which holds it projected.
            mask: which tokens of x may see which.
            context_mask: which may see which tokens of the context; with beams one that all queries share.
            cache: of `make_cache`.
            beams: how many rows of x in a row belong to one sample of the context.

        Returns:
            (batch * beams, length, embed_dim).

        Raises:
            ArgumentError: neither a context nor a cache, or both.
            ShapeError, MaskError: what does not fit.
        """
        check_tokens("x", x, self.embed_dim)
        own, projected = (None, None) if cache is None else _two_caches(cache)
        _require_one(context, projected)

        def attend(states: Tensor) -> Tensor:
            return self.self_attention(states, mask=mask, cache=own)

        def look(states: Tensor) -> Tensor:
            together = _beams_as_queries(states, beams)
            found: Tensor = self.cross_attention(together, context, mask=context_mask, cache=projected)
            return found.reshape(states.shape)

        x = self.around_attention(x, attend)
        x = self.around_context(x, look)
        return self.around_feed_forward(x, self.feed_forward)

    def make_cache(self, context: Tensor, most_tokens: int, *, beams: int = 1) -> CacheStack:
        """The context, projected once for all steps, and room for most_tokens tokens of each of its beams."""
        return CacheStack(
            [
                self.self_attention.make_cache(context.shape[0] * beams, most_tokens),
                self.cross_attention.cache_context(context),
            ]
        )

    @classmethod
    def from_torch(cls, layer: nn.TransformerDecoderLayer, **options: Any) -> DecoderBlock:
        """The same block with copies of torch's weights, its self-attention causal.

        Raises:
            UnsupportedError: an activation other than relu or gelu.
        """
        own = options_of_block(layer)
        return copy_decoder_block(layer, cls(own.pop("embed_dim"), own.pop("num_heads"), **{**own, **options}))


class TransformerEncoder(nn.Module):
    """A stack of `EncoderBlock`s; with norm_first one more LayerNorm at its end.

    Args:
        embed_dim, num_heads: as in `MultiHeadAttention`.
        num_layers: blocks.
        position: one that all layers share, or what makes one for each: `lambda: T5Bias(num_heads)`.
        causal: no token sees a later one.
        options: see `BlockOptions`.
    """

    card: ClassVar[Card] = Card(
        guide="2.1",
        source="Vaswani et al. 2017, Attention Is All You Need",
        equation="L encoder blocks one after the other, n tokens of width d",
        time="L (n^2 d + 12 n d^2)",
        memory="L n d",
        causal=True,
        padding=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        *,
        position: Positions = None,
        causal: bool = False,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        require_positive(num_layers=num_layers)
        self.layers = nn.ModuleList(
            EncoderBlock(embed_dim, num_heads, position=each, causal=causal, **options)
            for each in positions_of(position, num_layers)
        )
        self.norm = final_norm(embed_dim, options)

    def forward(self, x: Tensor, *, mask: Mask | Tensor | None = None, cache: CacheStack | None = None) -> Tensor:
        """(batch, length, embed_dim) to the same; `mask` holds in every layer, `cache` is of `make_cache`."""
        for layer, part in zip(self.layers, _parts(cache, len(self.layers)), strict=True):
            x = layer(x, mask=mask, cache=part)
        return self.norm(x)

    def make_cache(self, batch: int, most_tokens: int) -> CacheStack:
        """Empty caches of all layers, as one. Raises ArgumentError unless the encoder is causal."""
        return CacheStack([layer.make_cache(batch, most_tokens) for layer in self._blocks()])

    def _blocks(self) -> list[EncoderBlock]:
        return [layer for layer in self.layers if isinstance(layer, EncoderBlock)]

    @classmethod
    def from_torch(cls, encoder: nn.TransformerEncoder, **options: Any) -> TransformerEncoder:
        """The same stack with copies of torch's weights. Raises UnsupportedError as the blocks do."""
        own = options_of_block(encoder.layers[0])
        made = cls(own.pop("embed_dim"), own.pop("num_heads"), encoder.num_layers, **{**own, **options})
        copy_stack(encoder, made, copy_encoder_block)
        return made


class TransformerDecoder(nn.Module):
    """A stack of `DecoderBlock`s; with norm_first one more LayerNorm at its end. Arguments as `TransformerEncoder`."""

    card: ClassVar[Card] = Card(
        guide="2.1",
        source="Vaswani et al. 2017, Attention Is All You Need",
        equation="L decoder blocks one after the other, n tokens and m context tokens of width d",
        time="L (n^2 d + n m d + (14 n + 2 m) d^2)",
        memory="L (n + m) d",
        causal=True,
        padding=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        *,
        position: Positions = None,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        require_positive(num_layers=num_layers)
        self.layers = nn.ModuleList(
            DecoderBlock(embed_dim, num_heads, position=each, **options) for each in positions_of(position, num_layers)
        )
        self.norm = final_norm(embed_dim, options)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        context_mask: Mask | Tensor | None = None,
        cache: CacheStack | None = None,
        beams: int = 1,
    ) -> Tensor:
        """Arguments and result as in `DecoderBlock`; the masks hold in every layer."""
        for layer, part in zip(self.layers, _parts(cache, len(self.layers)), strict=True):
            x = layer(x, context, mask=mask, context_mask=context_mask, cache=part, beams=beams)
        return self.norm(x)

    def make_cache(self, context: Tensor, most_tokens: int, *, beams: int = 1) -> CacheStack:
        """The caches of all layers, as one; see `DecoderBlock.make_cache`."""
        return CacheStack([layer.make_cache(context, most_tokens, beams=beams) for layer in self._blocks()])

    def _blocks(self) -> list[DecoderBlock]:
        return [layer for layer in self.layers if isinstance(layer, DecoderBlock)]

    @classmethod
    def from_torch(cls, decoder: nn.TransformerDecoder, **options: Any) -> TransformerDecoder:
        """The same stack with copies of torch's weights. Raises UnsupportedError as the blocks do."""
        own = options_of_block(decoder.layers[0])
        made = cls(own.pop("embed_dim"), own.pop("num_heads"), decoder.num_layers, **{**own, **options})
        copy_stack(decoder, made, copy_decoder_block)
        return made


def _parts(cache: CacheStack | None, count: int) -> tuple[KeyValueCache | CacheStack | None, ...]:
    if cache is None:
        return (None,) * count
    if len(cache.parts) != count:
        raise ArgumentError(
            "cache",
            expected=f"the caches of {count} layers",
            got=str(len(cache.parts)),
            do="Call make_cache of this very stack.",
        )
    return cache.parts


def _two_caches(cache: CacheStack) -> tuple[KeyValueCache, KeyValueCache]:
    match cache.parts:
        case (KeyValueCache() as own, KeyValueCache() as projected):
            return own, projected
        case _:
            raise ArgumentError(
                "cache",
                expected="one that a decoder block made",
                got=f"a stack of {len(cache.parts)}",
                do="Call make_cache of this very block.",
            )


def _require_one(context: Tensor | None, projected: KeyValueCache | None) -> None:
    if (context is None) == (projected is None):
        raise ArgumentError(
            "context",
            expected="a context, or a cache that holds it",
            got="neither" if context is None else "both",
            do="Give the context alone, or cache=make_cache(context, most_tokens) alone.",
        )


def _require_causal(attention: MultiHeadAttention) -> None:
    if not attention.causal:
        raise ArgumentError(
            "cache",
            expected="a causal encoder",
            got="causal=False, where earlier tokens would have to see the new ones",
            do="Make it with causal=True to decode step by step.",
        )


def _beams_as_queries(states: Tensor, beams: int) -> Tensor:
    """(batch * beams, length, width) as (batch, beams * length, width): the beams of a sample ask the same context."""
    if beams == 1:
        return states
    rows, length, width = states.shape
    if rows % beams:
        raise ShapeError(
            "x",
            expected=f"a batch that is a multiple of beams {beams}",
            got=shape_of(states),
            do="Each sample of the context has the same number of beams.",
        )
    return states.reshape(rows // beams, beams * length, width)
