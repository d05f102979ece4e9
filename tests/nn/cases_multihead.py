"""Multi-head attention with every option that changes what it computes, and the Transformer's blocks and stacks."""

from __future__ import annotations

import torch

from regard.masks import Padding
from regard.nn import DecoderBlock, EncoderBlock, MultiHeadAttention, TransformerDecoder, TransformerEncoder
from regard.positions import ALiBi, ContinuousBias, RoPE, Shaw, T5Bias, TransformerXL
from tests.nn.cases import Case, tokens


def padding(lengths):
    return {"mask": Padding(lengths)}


def no_keys_are_padded(_lengths):
    """Keys and values are the context's: what is padded in x is nobody's key."""
    return {}


def context(width, length=5):
    """A second input: (batch, 5, width) tokens that are attended to."""

    def draw(batch, _length):
        return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(7))

    return draw


def with_context(width=24, other=24):
    first, second = tokens(width), context(other)
    return lambda batch, length: (*first(batch, length), second(batch, length))


def with_key_and_value(batch, length):
    return (*with_context(24, 12)(batch, length), context(10)(batch, length))


def attending(name, *, causal=False, **options):
    def make():
        given = {key: value() if key == "position" else value for key, value in options.items()}
        return MultiHeadAttention(24, 4, causal=causal, **given)

    return Case(f"multihead {name}", make, tokens(24), with_padding=padding, causal=causal)


CASES = [
    attending("plain"),
    attending("causal", causal=True),
    attending("without bias", bias=False),
    attending("grouped", kv_heads=2, causal=True),
    attending("one key head, other widths", kv_heads=1, head_dim=5, value_dim=3),
    attending("rope", position=lambda: RoPE(6), kv_heads=2, causal=True, qk_norm="rms", sink=True),
    attending("alibi", position=lambda: ALiBi(4, form="symmetric")),
    attending("t5", position=lambda: T5Bias(4, buckets=8, max_distance=16), scale=1.0),
    attending("shaw", position=lambda: Shaw(6, 4), causal=True),
    attending("transformer-xl", position=lambda: TransformerXL(4, 6), causal=True),
    attending("continuous", position=lambda: ContinuousBias(4, hidden=8)),
    attending("softcap, layer norm", softcap=2.0, qk_norm="layer"),
    attending("gated by element", gate="element", kv_heads=2, causal=True, position=lambda: RoPE(6)),
    attending("gated by head", gate="head", kv_heads=1, value_dim=5),
    attending("padded inside", pad_to=16, position=lambda: RoPE(6), causal=True),
    Case("multihead cross", lambda: MultiHeadAttention(24, 4), with_context(), with_padding=no_keys_are_padded),
    Case(
        "multihead cross, three widths",
        lambda: MultiHeadAttention(24, 4, kdim=12, vdim=10, kv_heads=2),
        with_key_and_value,
        with_padding=no_keys_are_padded,
    ),
    Case("encoder block, norm first", lambda: EncoderBlock(24, 4), tokens(24), with_padding=padding),
    Case(
        "encoder block, norm after",
        lambda: EncoderBlock(24, 4, norm_first=False, activation="gelu", bias=False, dim_feedforward=20),
        tokens(24),
        with_padding=padding,
    ),
    Case(
        "encoder block, causal swiglu",
        lambda: EncoderBlock(24, 4, causal=True, position=RoPE(6), activation="swiglu", kv_heads=2),
        tokens(24),
        with_padding=padding,
        causal=True,
    ),
    Case("decoder block", lambda: DecoderBlock(24, 4), with_context(), with_padding=padding, causal=True),
    Case(
        "decoder block, norm after",
        lambda: DecoderBlock(24, 4, norm_first=False, position=T5Bias(4, buckets=4, bidirectional=False)),
        with_context(),
        with_padding=padding,
        causal=True,
    ),
    Case(
        "encoder, one position for all",
        lambda: TransformerEncoder(24, 4, 2, position=T5Bias(4, buckets=8, max_distance=16)),
        tokens(24),
        with_padding=padding,
    ),
    Case(
        "encoder, causal, a position for each",
        lambda: TransformerEncoder(24, 4, 2, position=lambda: TransformerXL(4, 6), causal=True, norm_first=False),
        tokens(24),
        with_padding=padding,
        causal=True,
    ),
    Case(
        "decoder",
        lambda: TransformerDecoder(24, 4, 2, position=RoPE(6)),
        with_context(),
        with_padding=padding,
        causal=True,
    ),
]
