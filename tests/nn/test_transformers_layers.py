"""Hugging Face's layers of T5 and Llama with the same weights: outputs and gradients, attention alone and blocks."""

from __future__ import annotations

import pytest
import torch

from regard.masks import Padding
from regard.nn import DecoderBlock, EncoderBlock, MultiHeadAttention, TransformerEncoder
from regard.positions import RoPE, T5Bias

pytest.importorskip("transformers")
from transformers import LlamaConfig, T5Config
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Attention, T5Block

WIDTH, HEADS, HEAD_DIM, HIDDEN, LENGTH = 24, 4, 10, 40, 37
LENGTHS = [LENGTH, 5]


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_drawn_weights(module):
    """All weights unit-normal times 0.3, so that no score is small and no norm is 1."""
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight.copy_(0.3 * drawn(*weight.shape, seed=100 + number))
    return module.eval()


def additive(keep):
    """Hugging Face's form of a mask: 0 where a pair may attend, the lowest number where not."""
    return torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)


def later_and_padding(*, causal):
    real = torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None, None, None]
    return additive(real & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() if causal else real)


def same(ours, theirs, given, pairs):
    """Equal outputs, and equal gradients of what was given and of the weights.

    `pairs` are a weight of ours and those of theirs that lie in it, one on top of the other. Rows that are padded
    count for nothing.
    """
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    direction = drawn(*ours.shape, seed=7)
    wanted = [*given, *(weight for weight, _ in pairs)]
    found = torch.autograd.grad((ours * direction).sum(), wanted)
    parts = [each for _, own in pairs for each in own]
    of_theirs = list(torch.autograd.grad((theirs * direction).sum(), [*given, *parts]))
    expected = [of_theirs.pop(0) for _ in given]
    expected += [torch.cat([of_theirs.pop(0) for _ in own]) for _, own in pairs]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


def take(pairs):
    with torch.no_grad():
        for ours, theirs in pairs:
            ours.copy_(torch.cat(list(theirs)))
    return pairs


def real(states):
    """The rows of real tokens, end to end."""
    return torch.cat([sample[:length] for sample, length in zip(states, LENGTHS, strict=True)])


# ---------------------------------------------------------------------------------------------------- T5


def t5(*, decoder):
    config = T5Config(
        d_model=WIDTH, d_kv=HEAD_DIM, num_heads=HEADS, d_ff=HIDDEN, relative_attention_num_buckets=8,
        relative_attention_max_distance=20, dropout_rate=0.0, feed_forward_proj="relu", is_decoder=decoder,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


def t5_position(*, decoder):
    return T5Bias(HEADS, buckets=8, max_distance=20, bidirectional=not decoder)


def pairs_of_t5(ours, theirs):
    pairs = [(ours.in_proj_weight, [theirs.q.weight, theirs.k.weight, theirs.v.weight])]
    pairs.append((ours.out_proj.weight, [theirs.o.weight]))
    if ours.position is not None:
        pairs.append((ours.position.table, [theirs.relative_attention_bias.weight]))
    return pairs


@pytest.mark.parametrize("decoder", [False, True])
def test_attention_with_a_relative_position_bias_is_t5s(decoder):
    theirs = with_drawn_weights(T5Attention(t5(decoder=decoder), has_relative_attention_bias=True, layer_idx=0))
    ours = MultiHeadAttention(
        WIDTH, HEADS, head_dim=HEAD_DIM, bias=False, scale=1.0, causal=decoder, position=t5_position(decoder=decoder)
    )
    pairs = take(pairs_of_t5(ours, theirs))
    x = drawn(2, LENGTH, WIDTH).requires_grad_()
    expected = theirs(x, mask=later_and_padding(causal=decoder))[0]
    same(real(ours(x, mask=Padding(LENGTHS))), real(expected), [x], pairs)


def block_of(kind, *, decoder):
    return kind(
        WIDTH, HEADS, head_dim=HEAD_DIM, bias=False, scale=1.0, norm="rms", layer_norm_eps=1e-6,
        dim_feedforward=HIDDEN, position=t5_position(decoder=decoder),
    )  # fmt: skip


def test_an_encoder_block_is_t5s():
    theirs = with_drawn_weights(T5Block(t5(decoder=False), has_relative_attention_bias=True, layer_idx=0))
    ours = block_of(EncoderBlock, decoder=False)
    attend, feed = theirs.layer
    pairs = take(
        [
            *pairs_of_t5(ours.self_attention, attend.SelfAttention),
            (ours.around_attention.norm.weight, [attend.layer_norm.weight]),
            (ours.around_feed_forward.norm.weight, [feed.layer_norm.weight]),
            (ours.feed_forward.inner.weight, [feed.DenseReluDense.wi.weight]),
            (ours.feed_forward.outer.weight, [feed.DenseReluDense.wo.weight]),
        ]
    )
    x = drawn(2, LENGTH, WIDTH).requires_grad_()
    expected = theirs(x, attention_mask=later_and_padding(causal=False))[0]
    same(real(ours(x, mask=Padding(LENGTHS))), real(expected), [x], pairs)


def test_a_decoder_block_is_t5s():
    theirs = with_drawn_weights(T5Block(t5(decoder=True), has_relative_attention_bias=True, layer_idx=0))
    ours = block_of(DecoderBlock, decoder=True)
    attend, look, feed = theirs.layer
    pairs = take(
        [
            *pairs_of_t5(ours.self_attention, attend.SelfAttention),
            *pairs_of_t5(ours.cross_attention, look.EncDecAttention),
            (ours.around_attention.norm.weight, [attend.layer_norm.weight]),
            (ours.around_context.norm.weight, [look.layer_norm.weight]),
            (ours.around_feed_forward.norm.weight, [feed.layer_norm.weight]),
            (ours.feed_forward.inner.weight, [feed.DenseReluDense.wi.weight]),
            (ours.feed_forward.outer.weight, [feed.DenseReluDense.wo.weight]),
        ]
    )
    x, context = drawn(2, 9, WIDTH).requires_grad_(), drawn(2, LENGTH, WIDTH, seed=2).requires_grad_()
    expected = theirs(
        x,
        attention_mask=additive(torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()),
        encoder_hidden_states=context,
        encoder_attention_mask=later_and_padding(causal=False),
    )[0]
    same(ours(x, context, context_mask=Padding(LENGTHS)), expected, [x, context], pairs)
    with torch.no_grad():
        cache = ours.make_cache(context, 9)
        steps = [ours(x[:, i : i + 1], context_mask=Padding(LENGTHS), cache=cache) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- Llama


def llama(**more):
    config = LlamaConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2, head_dim=HEAD_DIM,
        intermediate_size=HIDDEN, rms_norm_eps=1e-6, max_position_embeddings=64, **more,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


def turned_in(config, x):
    """What Llama's layers take: cosines and sines of each place, and the mask."""
    place = torch.arange(LENGTH).expand(2, -1)
    return {
        "position_embeddings": LlamaRotaryEmbedding(config)(x, place),
        "attention_mask": later_and_padding(causal=True),
    }


def pairs_of_llama(ours, theirs):
    maps = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    pairs = [(ours.in_proj_weight, [each.weight for each in maps]), (ours.out_proj.weight, [theirs.o_proj.weight])]
    if ours.in_proj_bias is not None:
        pairs += [(ours.in_proj_bias, [each.bias for each in maps]), (ours.out_proj.bias, [theirs.o_proj.bias])]
    return pairs


@pytest.mark.parametrize("bias", [False, True])
def test_grouped_attention_with_rotary_positions_is_llamas(bias):
    config = llama(attention_bias=bias)
    theirs = with_drawn_weights(LlamaAttention(config, layer_idx=0))
    ours = MultiHeadAttention(
        WIDTH, HEADS, kv_heads=2, head_dim=HEAD_DIM, bias=bias, causal=True, position=RoPE(HEAD_DIM)
    )
    pairs = take(pairs_of_llama(ours, theirs))
    x = drawn(2, LENGTH, WIDTH).requires_grad_()
    expected = theirs(x, **turned_in(config, x))[0]
    same(real(ours(x, mask=Padding(LENGTHS))), real(expected), [x], pairs)


def test_blocks_are_llamas():
    """Two layers in a stack, as they stand in the model; and token by token with a cache."""
    config = llama()
    theirs = [with_drawn_weights(LlamaDecoderLayer(config, layer_idx=place)) for place in range(2)]
    ours = TransformerEncoder(
        WIDTH, HEADS, 2, kv_heads=2, head_dim=HEAD_DIM, bias=False, causal=True, norm="rms", layer_norm_eps=1e-6,
        activation="swiglu", dim_feedforward=HIDDEN, position=RoPE(HEAD_DIM),
    )  # fmt: skip
    ours.norm = torch.nn.Identity()
    pairs = []
    for own, other in zip(ours.layers, theirs, strict=True):
        pairs += [
            *pairs_of_llama(own.self_attention, other.self_attn),
            (own.around_attention.norm.weight, [other.input_layernorm.weight]),
            (own.around_feed_forward.norm.weight, [other.post_attention_layernorm.weight]),
            (own.feed_forward.inner.weight, [other.mlp.gate_proj.weight, other.mlp.up_proj.weight]),
            (own.feed_forward.outer.weight, [other.mlp.down_proj.weight]),
        ]
    take(pairs)
    x = drawn(2, LENGTH, WIDTH).requires_grad_()
    expected = x
    for layer in theirs:
        expected = layer(expected, **turned_in(config, x))
    same(real(ours(x, mask=Padding(LENGTHS))), real(expected), [x], pairs)
    with torch.no_grad():
        cache = ours.make_cache(1, LENGTH)
        steps = [ours(x[:1, i : i + 1], cache=cache) for i in range(LENGTH)]
    torch.testing.assert_close(torch.cat(steps, 1), expected[:1], rtol=1e-5, atol=1e-5)


def test_a_norm_that_there_is_not_is_refused():
    from regard import ArgumentError

    with pytest.raises(ArgumentError, match="norm: expected 'layer' or 'rms', got 'batch'"):
        EncoderBlock(8, 2, norm="batch")
