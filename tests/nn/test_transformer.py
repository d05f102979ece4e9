"""Blocks and stacks against torch's on the same weights, step by step against the full pass, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import regard
from regard.masks import Padding
from regard.nn import (
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    TokenEmbedding,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)
from regard.positions import ALiBi, ContinuousBias, RoPE, Shaw, T5Bias, TransformerXL
from tests.nn.cases import told

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FORMS = [
    {"norm_first": norm_first, "activation": activation, "bias": bias, "dim_feedforward": 20, "layer_norm_eps": 1e-3}
    for norm_first, activation, bias in ((False, "relu", True), (True, "gelu", True), (True, "relu", False))
]
PADDED = torch.arange(7)[None] >= torch.tensor([7, 4])[:, None]


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module):
    """With weights that are not 0 or 1, so that each has its own part in the result."""
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module


def same_with_gradients(pairs, found, expected, inputs):
    """Outputs, the gradients of paired weights, and those of inputs (ours, theirs)."""
    torch.testing.assert_close(found, expected, **CLOSE)
    direction = drawn(*found.shape, seed=3)
    ours, theirs = zip(*pairs, *inputs, strict=True)
    mine = torch.autograd.grad(found, ours, direction)
    others = torch.autograd.grad(expected, theirs, direction)
    for place, (mine_each, other_each) in enumerate(zip(mine, others, strict=True)):
        torch.testing.assert_close(mine_each, other_each, **CLOSE, msg=lambda text, n=place: f"{n}: {text}")


def paired(ours, theirs, *more):
    """The weights of both, in pairs, module by module."""
    modules = [
        (ours.self_attention, theirs.self_attn),
        (ours.feed_forward.inner, theirs.linear1),
        (ours.feed_forward.outer, theirs.linear2),
        (ours.around_attention.norm, theirs.norm1),
        *more,
    ]
    return [
        (weight, dict(theirs.named_parameters())[name])
        for ours, theirs in modules
        for name, weight in ours.named_parameters()
    ]


@pytest.mark.parametrize("form", FORMS, ids=told)
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_block_is_torchs(form, padded):
    theirs = shaken(nn.TransformerEncoderLayer(24, 4, dropout=0.0, batch_first=True, **form))
    ours = EncoderBlock.from_torch(theirs)
    x, y = (drawn(2, 7, 24).requires_grad_() for _ in range(2))
    found = ours(x, mask=Padding([7, 4]) if padded else None)
    expected = theirs(y, src_key_padding_mask=PADDED if padded else None)
    pairs = paired(ours, theirs, (ours.around_feed_forward.norm, theirs.norm2))
    assert len(pairs) == len(list(ours.parameters())) == len(list(theirs.parameters()))
    same_with_gradients(pairs, found, expected, [(x, y)])


@pytest.mark.parametrize("form", FORMS, ids=told)
def test_decoder_block_is_torchs(form):
    theirs = shaken(nn.TransformerDecoderLayer(24, 4, dropout=0.0, batch_first=True, **form))
    ours = DecoderBlock.from_torch(theirs)
    x, y = (drawn(2, 5, 24).requires_grad_() for _ in range(2))
    context, memory = (drawn(2, 7, 24, seed=2).requires_grad_() for _ in range(2))
    found = ours(x, context, context_mask=Padding([7, 4]))
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    expected = theirs(y, memory, tgt_mask=causal, memory_key_padding_mask=PADDED)
    pairs = paired(
        ours,
        theirs,
        (ours.cross_attention, theirs.multihead_attn),
        (ours.around_context.norm, theirs.norm2),
        (ours.around_feed_forward.norm, theirs.norm3),
    )
    assert len(pairs) == len(list(ours.parameters())) == len(list(theirs.parameters()))
    same_with_gradients(pairs, found, expected, [(x, y), (context, memory)])


@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_stacks_are_torchs(norm_first, with_norm):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first, "dim_feedforward": 20}
    norms = [nn.LayerNorm(24) if with_norm else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(24, 4, **options), 3, norms[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, **options), 2, norms[1])
    shaken(encoder), shaken(decoder)
    context = TransformerEncoder.from_torch(encoder)(drawn(2, 7, 24))
    memory = encoder(drawn(2, 7, 24))
    torch.testing.assert_close(context, memory, **CLOSE)
    x = drawn(2, 5, 24, seed=2)
    expected = decoder(x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5))
    torch.testing.assert_close(TransformerDecoder.from_torch(decoder)(x, context), expected, **CLOSE)


def test_an_activation_that_blocks_have_not_is_refused():
    theirs = nn.TransformerEncoderLayer(24, 4, activation=functional.silu)
    with pytest.raises(
        regard.UnsupportedError, match="activation silu: blocks have relu, gelu, squared_relu or swiglu"
    ):
        EncoderBlock.from_torch(theirs)


def test_swiglu_is_the_paper():
    network, x = shaken(FeedForward(6, 5, activation="swiglu")).double(), drawn(2, 3, 6).double()
    gate, linear = (
        x @ rows.T + bias for rows, bias in zip(network.inner.weight.split(5), network.inner.bias.split(5), strict=True)
    )
    expected = (gate / (1 + torch.exp(-gate)) * linear) @ network.outer.weight.T + network.outer.bias
    torch.testing.assert_close(network(x), expected)


def test_dropout_is_where_it_is_said_to_be():
    """On what a residual connection adds: with all of it dropped, the block is the identity."""
    block, x = EncoderBlock(24, 4, dropout_p=0.0), drawn(2, 7, 24)
    block.around_attention.dropout.p = block.around_feed_forward.dropout.p = 1.0
    assert torch.equal(block(x), x)
    made = EncoderBlock(24, 4, dropout_p=0.3)
    assert made.self_attention.dropout_p == made.feed_forward.dropout.p == made.around_attention.dropout.p == 0.3
    assert torch.equal(made.eval()(x), made(x))
    assert not torch.equal(made.train()(x), made(x))


POSITIONS = {
    "rope": lambda: RoPE(6),
    "alibi": lambda: ALiBi(4),
    "t5": lambda: T5Bias(4, bidirectional=False),
    "shaw": lambda: Shaw(6, 3),
    "transformer-xl": lambda: TransformerXL(4, 6),
    "continuous": lambda: ContinuousBias(4, hidden=8),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", POSITIONS)
def test_every_position_shared_or_one_each(name, shared):
    maker = POSITIONS[name]
    encoder = TransformerEncoder(24, 4, 2, causal=True, position=maker() if shared else maker, dim_feedforward=20)
    first, second = (layer.self_attention.position for layer in encoder.layers)
    assert (first is second) == shared
    x = drawn(2, 7, 24)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)).flip(1), atol=1e-3)  # the order of tokens counts
    with torch.no_grad():
        cache = encoder.make_cache(2, 7)
        steps = torch.cat([encoder(part, cache=cache) for part in x.split([3, 1, 2, 1], 1)], 1)
    torch.testing.assert_close(steps, encoder(x), **CLOSE)


@pytest.mark.parametrize("norm_first", [True, False])
@torch.no_grad()
def test_F56_decoder_step_by_step_is_the_full_pass(norm_first):
    torch.manual_seed(0)
    decoder = TransformerDecoder(24, 4, 2, position=RoPE(6), kv_heads=2, norm_first=norm_first)
    x, context, mask = drawn(2, 7, 24), drawn(2, 5, 24, seed=2), Padding([5, 3])
    expected = decoder(x, context, context_mask=mask)
    cache = decoder.make_cache(context, 7)
    steps = torch.cat([decoder(part, context_mask=mask, cache=cache) for part in x.split([3, 1, 2, 1], 1)], 1)
    torch.testing.assert_close(steps, expected, **CLOSE)
    saved = cache.state_dict()
    cache.crop(4)
    torch.testing.assert_close(decoder(x[:, 4:], context_mask=mask, cache=cache), expected[:, 4:], **CLOSE)
    other = decoder.make_cache(torch.zeros_like(context), 9)
    other.load_state_dict(saved)
    other.crop(3)
    torch.testing.assert_close(decoder(x[:, 3:], context_mask=mask, cache=other), expected[:, 3:], **CLOSE)
    other.crop(2)
    other.reorder([1, 1])
    torch.testing.assert_close(
        decoder(x[:, 2:], context_mask=Padding([3, 3]), cache=other)[1], expected[1, 2:], **CLOSE
    )


@torch.no_grad()
def test_beams_share_a_context():
    torch.manual_seed(0)
    decoder = TransformerDecoder(24, 4, 2, position=RoPE(6))
    x, context, mask = drawn(6, 4, 24), drawn(2, 5, 24, seed=2), Padding([5, 3])
    expected = decoder(x, context.repeat_interleave(3, 0), context_mask=Padding([5, 5, 5, 3, 3, 3]))
    torch.testing.assert_close(decoder(x, context, context_mask=mask, beams=3), expected, **CLOSE)
    cache = decoder.make_cache(context, 4, beams=3)
    decoder(x[:, :2], context_mask=mask, cache=cache, beams=3)
    rows = [2, 0, 0, 3, 5, 3]
    cache.reorder(rows)
    found = decoder(x[rows, 2:], context_mask=mask, cache=cache, beams=3)
    torch.testing.assert_close(found, expected[rows, 2:], **CLOSE)
    with pytest.raises(regard.ArgumentError, match="each of the 2 samples' 3 beams from the same sample"):
        cache.reorder([3, 0, 0, 3, 5, 3])
    with pytest.raises(regard.ShapeError, match="a batch that is a multiple of beams 4"):
        decoder(x, context, beams=4)


def test_a_reset_sample_keeps_nothing_of_its_dialogue():
    torch.manual_seed(0)
    block, x = DecoderBlock(24, 4), drawn(2, 3, 24)
    with torch.no_grad():
        cache = block.make_cache(drawn(2, 5, 24, seed=2), 9)
        other = block.make_cache(drawn(2, 5, 24, seed=3), 9)
        block(x, cache=cache)
        block(drawn(2, 3, 24, seed=4), cache=other)
        cache.reset([0])
        other.reset([0])
        found, expected = block(x, cache=cache), block(x, cache=other)
    assert torch.equal(found[0], expected[0])
    assert not torch.allclose(found[1], expected[1], atol=1e-3)


def small(**options):
    torch.manual_seed(0)
    return Transformer(11, 13, 24, 4, **{"encoder_layers": 2, "decoder_layers": 2, "dropout_p": 0.0, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"absolute": "learned", "most_tokens": 9},
        {"absolute": None, "position": lambda: T5Bias(4), "decoder_position": RoPE(6)},
        {"tie": False},
    ],
    ids=told,
)
def test_transformer_learns_to_copy_in_reverse(options):
    """Some steps on one task: the parts are put together so that it can be learned at all."""
    model = small(encoder_layers=1, decoder_layers=1, **options)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        source = torch.randint(2, 11, (16, 3), generator=generator)
        target = torch.cat([torch.zeros(16, 1, dtype=torch.int64), source.flip(1)], 1)
        logits = model(source, target[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]


def test_transformer_masks_its_source():
    model = small().eval()
    source, target = torch.randint(11, (2, 6)), torch.randint(13, (2, 4))
    changed = source.clone()
    changed[1, 3:] = (changed[1, 3:] + 1) % 11
    real = torch.arange(6) < torch.tensor([6, 3])[:, None]
    for mask in (Padding([6, 3]), real):
        before, after = (model(each, target, source_mask=mask) for each in (source, changed))
        torch.testing.assert_close(before, after, **CLOSE)
    assert not torch.allclose(model(source, target), model(changed, target), atol=1e-3)


def test_ties_and_shares():
    tied = small()
    assert tied.head.weight is tied.target_embedding.weight
    assert small(tie=False).head.weight is not tied.target_embedding.weight
    torch.manual_seed(0)
    shared = Transformer(13, 13, 24, 4, encoder_layers=1, decoder_layers=1, share=True)
    assert shared.source_embedding is shared.target_embedding
    assert shared.encoder.layers[0].self_attention.dropout_p == 0.1
    with pytest.raises(regard.ArgumentError, match="share: expected vocabularies of one size, got 11 and 13"):
        small(share=True)


def test_embedding_is_the_papers():
    embedding = TokenEmbedding(7, 8)
    tokens = torch.tensor([[3, 1, 4]])
    place = 2 + torch.arange(3.0)[:, None]
    angles = place / 10000 ** (torch.arange(0, 8, 2) / 8)
    expected = embedding.weight[tokens] * 8**0.5 + torch.cat([angles.sin(), angles.cos()], -1)
    torch.testing.assert_close(embedding(tokens, first=2), expected, **CLOSE)
    learned = TokenEmbedding(7, 8, absolute="learned", most_tokens=5)
    torch.testing.assert_close(
        learned(tokens, first=2) - learned.weight[tokens] * 8**0.5, learned.places[None, 2:], **CLOSE
    )
    with pytest.raises(regard.ShapeError, match="tokens: expected at most 5, the learned places, got 6"):
        learned(tokens, first=3)


def test_refusals():
    x = drawn(2, 3, 24)
    with pytest.raises(regard.ArgumentError, match="a causal encoder, got causal=False"):
        EncoderBlock(24, 4).make_cache(2, 5)
    with pytest.raises(
        regard.ArgumentError, match="context: expected a context, or a cache that holds it, got neither"
    ):
        DecoderBlock(24, 4)(x)
    decoder = TransformerDecoder(24, 4, 2)
    cache = decoder.make_cache(x, 5)
    with pytest.raises(regard.ArgumentError, match="got both"):
        decoder(x, x, cache=cache)
    with pytest.raises(regard.ArgumentError, match="the caches of 1 layers, got 2"):
        TransformerDecoder(24, 4, 1)(x, cache=cache)
    with pytest.raises(regard.ArgumentError, match="one that this layer made"):
        TransformerDecoder(24, 4, 2)(x, cache=cache)
    with pytest.raises(regard.ArgumentError, match="one that a decoder block made"):
        DecoderBlock(24, 4)(x, cache=cache.parts[0].__class__([cache]))
    with pytest.raises(
        regard.ArgumentError, match="activation: expected one of relu, gelu, squared_relu, swiglu, got 'tanh'"
    ):
        EncoderBlock(24, 4, activation="tanh")
    with pytest.raises(TypeError, match="drop_out"):
        EncoderBlock(24, 4, drop_out=0.1)
    with pytest.raises(regard.ArgumentError, match="num_layers: expected a whole number of at least 1"):
        TransformerEncoder(24, 4, 0)
    with pytest.raises(regard.ShapeError, match=r"tokens: expected int64 or int32 \(batch, length\)"):
        small()(x, x)
    with pytest.raises(regard.ArgumentError, match="most_tokens: expected the number of learned places"):
        small(absolute="learned")
    with pytest.raises(regard.ArgumentError, match="embed_dim: expected an even width for sinusoids"):
        TokenEmbedding(7, 9)
    with pytest.raises(regard.ArgumentError, match="absolute: expected 'sinusoid', 'learned' or None"):
        TokenEmbedding(7, 8, absolute="rope")
