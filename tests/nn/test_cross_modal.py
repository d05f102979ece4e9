"""Cross-modal attention against plain loops in float64, and LXMERT's and Idefics' layers on the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import regard
from regard.masks import Causal, Dense, Keys, Padding
from regard.masks._lowering import lower
from regard.nn import CoAttention, CrossModalAttention, GatedCrossAttention, PerceiverResampler, preceding_image
from regard.nn._cross_attention import CrossAttention
from regard.nn.flamingo import TokensOfImage

TEXT, IMAGE, HEADS = 12, 20, 3


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def plain(module, x, context, may):
    """The formula, row by row, in the dtype that it is given; `may` says for each sample which pairs may attend."""
    weight_key, weight_value = module.key_value.weight.chunk(2)
    bias_key, bias_value = module.key_value.bias.chunk(2)
    width, samples = module.head_dim, []
    for sample, (asking, answering) in enumerate(zip(x, context, strict=True)):
        query = asking @ module.query.weight.T + module.query.bias
        key, value = answering @ weight_key.T + bias_key, answering @ weight_value.T + bias_value
        rows = []
        for row in range(len(asking)):
            keys = [place for place in range(len(answering)) if may[sample][row][place]]
            heads = []
            for head in range(module.num_heads):
                at = slice(head * width, (head + 1) * width)
                scores = key[keys, at] @ query[row, at] / math.sqrt(width)
                heads.append(scores.softmax(0) @ value[keys, at])
            seen = torch.cat(heads) @ module.output.weight.T + module.output.bias
            rows.append(seen if keys else torch.zeros_like(seen))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def open_gates(**options):
    """Flamingo's block as after some training."""
    made = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE, **options)
    with torch.no_grad():
        for gate in (made.attention_gate, made.feedforward_gate):
            gate.copy_(draw(*gate.shape))
    return made


def with_random_biases(module):
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name:
                weight.copy_(torch.randn(weight.shape))
    return module


@pytest.mark.parametrize("masked", [False, True])
def test_both_directions_are_the_formula_and_its_gradients(masked):
    torch.manual_seed(0)
    ours = with_random_biases(CrossModalAttention(TEXT, HEADS, image_dim=IMAGE))
    exact = CrossModalAttention(TEXT, HEADS, image_dim=IMAGE, dtype=torch.float64)
    exact.load_state_dict(ours.state_dict())
    lengths = ([4, 7], [5, 0]) if masked else ([7, 7], [5, 5])
    masks = {"text_mask": Padding(lengths[0]), "image_mask": Padding(lengths[1])} if masked else {}

    text, image = draw(2, 7, TEXT).requires_grad_(), draw(2, 5, IMAGE).requires_grad_()
    text64, image64 = (each.detach().double().requires_grad_() for each in (text, image))
    found = ours(text, image, **masks)
    may_image = [[[place < length for place in range(5)]] * 7 for length in lengths[1]]
    may_text = [[[place < length for place in range(7)]] * 5 for length in lengths[0]]
    expected = (
        plain(exact.text_to_image, text64, image64, may_image),
        plain(exact.image_to_text, image64, text64, may_text),
    )
    near(found.text, expected[0])
    near(found.image, expected[1])

    slopes = draw(2, 7, TEXT, seed=3), draw(2, 5, IMAGE, seed=4)
    torch.autograd.backward(found, slopes)
    torch.autograd.backward(expected, [slope.double() for slope in slopes])
    near(text.grad, text64.grad)
    near(image.grad, image64.grad)
    for weight, other in zip(ours.parameters(), exact.parameters(), strict=True):
        near(weight.grad, other.grad)


def test_words_without_an_image_get_exactly_nothing():
    module = with_random_biases(CrossModalAttention(TEXT, HEADS, image_dim=IMAGE))
    text, image = draw(2, 7, TEXT).requires_grad_(), draw(2, 5, IMAGE).requires_grad_()
    for found in (
        module(text, image, image_mask=Padding([0, 5])),
        module(text, image, image_mask=torch.tensor([[False] * 5, [True] * 5])),
    ):
        assert not found.text[0].any()
        assert found.text[1].all()
        found.text.sum().backward()
        assert text.grad.isfinite().all()
        assert not text.grad[0].any()
    nothing = module(text, image[:, :0])
    assert not nothing.text.any()
    assert nothing.image.shape == (2, 0, IMAGE)


def test_padding_holds_whatever_it_holds():
    module = CrossModalAttention(TEXT, HEADS, image_dim=IMAGE)
    text, image = draw(2, 7, TEXT), draw(2, 5, IMAGE)
    before = module(text, image, image_mask=Padding([3, 5]), text_mask=Padding([7, 2])).text
    image[0, 3:] = math.nan
    assert torch.equal(module(text, image, image_mask=Padding([3, 5]), text_mask=Padding([7, 2])).text, before)


def test_weights_are_those_that_the_kernel_used():
    module = CrossAttention(TEXT, HEADS, context_dim=IMAGE)
    x, context = draw(2, 7, TEXT), draw(2, 5, IMAGE)
    per_head = torch.rand(1, HEADS, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    per_head[0, 0, 2] = False
    for mask in (None, Padding([2, 5]), per_head, per_head[0, 0]):
        weights = module.weights(x, context, mask=mask)
        value = module.heads(x, context)[2]
        near(module.output((weights @ value).transpose(1, 2).flatten(2)), module(x, context, mask=mask))
        assert torch.equal(module.weights(x, context, mask=mask, heads=[2, 0]), weights[:, [2, 0]])
    assert not module.weights(x, context, mask=per_head)[:, 0, 2].any()
    with pytest.raises(regard.ArgumentError, match=r"heads: expected numbers from 0 to 2, got \[3\]"):
        module.weights(x, context, heads=[3])


def test_dropout_is_for_training_alone():
    module = CrossModalAttention(TEXT, HEADS, image_dim=IMAGE, dropout_p=0.5)
    text, image = draw(2, 7, TEXT), draw(2, 5, IMAGE)
    assert not torch.equal(module(text, image).text, module(text, image).text)
    module.eval()
    assert torch.equal(module(text, image).text, module(text, image).text)


def test_refusals_of_cross_modal_attention():
    module = CrossModalAttention(TEXT, HEADS, image_dim=IMAGE)
    text, image = draw(2, 7, TEXT), draw(2, 5, IMAGE)
    with pytest.raises(regard.UnsupportedError, match="text_mask: it honours padding, and no other mask; got Causal"):
        module(text, image, text_mask=Causal())
    with pytest.raises(regard.MaskError, match=r"expected a bool tensor \(batch, length\) = \(2, 5\)"):
        module(text, image, image_mask=torch.ones(2, 7, dtype=torch.bool))
    with pytest.raises(regard.ShapeError, match=r"image: expected \(batch, length, embed_dim 20\), got \(2, 7, 12\)"):
        module(text, text)
    with pytest.raises(regard.ShapeError, match="image batch: expected 2, as the other side has, got 1"):
        module(text, image[:1])
    with pytest.raises(regard.ArgumentError, match="num_heads: expected a divisor of embed_dim 12, got 5"):
        CrossModalAttention(TEXT, 5)
    with pytest.raises(
        regard.ArgumentError, match="activation: expected one of relu, gelu, squared_relu, swiglu, got 'tanh'"
    ):
        CoAttention(TEXT, HEADS, activation="tanh")


# ------------------------------------------------------------------------------------------------- co-attention


def lxmert_stream(config):
    """LXMERT's cross-attention layer and the feed-forward layers of one stream."""
    lxmert = pytest.importorskip("transformers.models.lxmert.modeling_lxmert")
    return nn.ModuleList(
        [lxmert.LxmertCrossAttentionLayer(config), lxmert.LxmertIntermediate(config), lxmert.LxmertOutput(config)]
    ).eval()


def take_lxmert(stream, direction, cross, inner, outer):
    with torch.no_grad():
        for ours, theirs in (
            (direction.query, [cross.att.query]),
            (direction.key_value, [cross.att.key, cross.att.value]),
            (direction.output, [cross.output.dense]),
            (stream.attention_norm, [cross.output.LayerNorm]),
            (stream.feedforward.inner, [inner.dense]),
            (stream.feedforward.outer, [outer.dense]),
            (stream.feedforward_norm, [outer.LayerNorm]),
        ):
            ours.weight.copy_(torch.cat([each.weight for each in theirs]))
            ours.bias.copy_(torch.cat([each.bias for each in theirs]))


def test_co_attention_is_lxmerts_with_weights_for_each_direction():
    """LXMERT has one layer for both directions and self-attention in between; its parts are what ViLBERT's are."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LxmertConfig(
        hidden_size=TEXT, num_attention_heads=HEADS, intermediate_size=30, hidden_act="gelu", vocab_size=10
    )
    torch.manual_seed(0)
    text_layers, image_layers = lxmert_stream(config), lxmert_stream(config)
    ours = CoAttention(TEXT, HEADS, dim_feedforward=30, image_dim_feedforward=30, norm_eps=1e-12)
    take_lxmert(ours.text, ours.attention.text_to_image, *text_layers)
    take_lxmert(ours.image, ours.attention.image_to_text, *image_layers)

    text, image = draw(2, 7, TEXT).requires_grad_(), draw(2, 5, TEXT, seed=2).requires_grad_()
    additive = torch.zeros(2, 1, 1, 5)
    additive[0, ..., 3:] = -torch.inf

    def theirs(layers, x, context, mask):
        cross, inner, outer = layers
        x = cross(x, context, mask)[0]
        return outer(inner(x), x)

    found = ours(text, image, image_mask=Padding([3, 5]))
    expected = theirs(text_layers, text, image, additive), theirs(image_layers, image, text, None)
    near(found.text, expected[0])
    near(found.image, expected[1])
    slopes = draw(2, 7, TEXT, seed=3), draw(2, 5, TEXT, seed=4)
    mine = torch.autograd.grad(found, (text, image), slopes)
    for gradient, other in zip(mine, torch.autograd.grad(expected, (text, image), slopes), strict=True):
        near(gradient, other)


# ------------------------------------------------------------------------------------------------- Perceiver resampler


def idefics_config(width):
    transformers = pytest.importorskip("transformers")
    config = transformers.IdeficsConfig(
        vocab_size=10,
        hidden_size=TEXT,
        intermediate_size=30,
        num_attention_heads=HEADS,
        vision_config={"embed_dim": width},
        alpha_initializer="ones",
    )
    config._attn_implementation = "eager"
    return config


def test_resampler_is_idefics():
    """On the same weights; Idefics took relu where Flamingo has its square."""
    module = pytest.importorskip("transformers.models.idefics.perceiver")
    torch.manual_seed(0)
    theirs = module.IdeficsPerceiverResampler(idefics_config(TEXT), TEXT, 2, HEADS, 8, 4)
    ours = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=2, head_dim=8, activation="relu")
    with torch.no_grad():
        ours.latents.copy_(theirs.latents)
        for layer, (attend, mlp) in zip(ours.layers, theirs.blocks, strict=True):
            layer.query.weight.copy_(attend.q_proj.weight)
            layer.key_value.weight.copy_(torch.cat([attend.k_proj.weight, attend.v_proj.weight]))
            layer.output.weight.copy_(attend.output_proj.weight)
            layer.feedforward.inner.weight.copy_(mlp.fc.weight)
            layer.feedforward.outer.weight.copy_(mlp.c_proj.weight)
    x = draw(2, 9, TEXT).requires_grad_()
    found, expected = ours(x), theirs(x)
    near(found, expected)
    slope = draw(*found.shape, seed=2)
    near(*(torch.autograd.grad(output, x, slope)[0] for output in (found, expected)))


@pytest.mark.parametrize(
    "mask",
    [
        Padding([3, 5], side="left"),
        Keys(torch.tensor([[False, False, True, True, True], [True] * 5])),
        torch.tensor([[False, False, True, True, True], [True] * 5]),
    ],
    ids=["left", "keys", "bool"],
)
def test_resampler_reads_real_tokens_alone(mask):
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=2)
    x = draw(2, 5, TEXT)
    found = module(x, mask=mask)
    near(found[:1], module(x[:1, 2:]))
    near(found[1:], module(x[1:]))
    x[0, :2] = math.nan
    assert torch.equal(module(x, mask=mask), found)


def test_resampler_without_an_image_gives_latents_that_see_one_another():
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=2)
    x = draw(2, 5, TEXT)
    none = module(x[:, :0])
    assert none.shape == (2, 4, TEXT)
    assert none.isfinite().all()
    near(module(x, mask=Padding([0, 5]))[:1], none[:1])
    assert module(x[:0]).shape == (0, 4, TEXT)


def test_resampler_of_a_video_adds_a_vector_for_each_frame():
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=1, max_frames=3)
    video = draw(2, 2, 5, TEXT)
    by_hand = torch.cat([video[:, 0] + module.frames[0], video[:, 1] + module.frames[1]], 1)
    near(module(video), module(by_hand))
    near(module(video, mask=Padding([5, 10])), module(by_hand, mask=Padding([5, 10])))
    with pytest.raises(regard.ShapeError, match="or with at most 3 frames before length, got"):
        module(draw(2, 4, 5, TEXT))
    with pytest.raises(regard.ShapeError, match="Make the module with max_frames for video"):
        PerceiverResampler(TEXT, HEADS, depth=1)(video)


def test_resampler_refuses_masks_of_pairs():
    module = PerceiverResampler(TEXT, HEADS, num_latents=4, depth=1)
    with pytest.raises(regard.UnsupportedError, match="PerceiverResampler: it honours padding, and no other mask"):
        module(draw(2, 5, TEXT), mask=Causal("bottom_right"))
    with pytest.raises(regard.MaskError, match="mask batch: expected 2, got 3"):
        module(draw(2, 5, TEXT), mask=Padding([5, 5, 5]))
    with pytest.raises(regard.ArgumentError, match="depth: expected a whole number of at least 1, got 0"):
        PerceiverResampler(TEXT, HEADS, depth=0)


# ------------------------------------------------------------------------------------------------- Flamingo's block


def test_gated_block_begins_as_the_identity():
    module = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE)
    x = draw(2, 7, TEXT)
    found = module(x, draw(2, 5, IMAGE))
    assert torch.equal(found, x)
    found.sum().backward()
    moved = {name for name, weight in module.named_parameters() if weight.grad.any()}
    assert moved == {"attention_gate", "feedforward_gate"}


@pytest.mark.parametrize("kind", ["float", "vector"])
def test_gated_block_is_idefics(kind):
    """Idefics norms by root mean square and has gated feed-forward layers: both are put in place of ours."""
    module = pytest.importorskip("transformers.models.idefics.modeling_idefics")
    config = idefics_config(IMAGE)
    config.alpha_type = kind
    torch.manual_seed(0)
    theirs = module.IdeficsGatedCrossAttentionLayer(config, layer_idx=0)
    ours = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE, gate_per_channel=kind == "vector")
    ours.attention_norm, ours.feedforward_norm = (nn.RMSNorm(TEXT, eps=config.rms_norm_eps) for _ in range(2))
    ours.feedforward = theirs.mlp
    with torch.no_grad():
        theirs.alpha_cross_attn.copy_(draw(*theirs.alpha_cross_attn.shape))
        theirs.alpha_dense.copy_(draw(*theirs.alpha_dense.shape, seed=2))
        ours.attention_gate.copy_(theirs.alpha_cross_attn.flatten())
        ours.feedforward_gate.copy_(theirs.alpha_dense.flatten())
        ours.attention.query.weight.copy_(theirs.cross_attn.q_proj.weight)
        ours.attention.key_value.weight.copy_(
            torch.cat([theirs.cross_attn.k_proj.weight, theirs.cross_attn.v_proj.weight])
        )
        ours.attention.output.weight.copy_(theirs.cross_attn.o_proj.weight)

    x, images = draw(2, 7, TEXT).requires_grad_(), draw(2, 3, 5, IMAGE).requires_grad_()
    of_token = torch.tensor([[-1, 0, 0, 1, 1, 2, 2], [-1, -1, -1, 0, 0, 0, 0]])
    kept = torch.arange(15) // 5 == of_token[..., None]
    additive = torch.zeros(2, 1, 7, 15).masked_fill(~kept[:, None], torch.finfo(torch.float32).min)
    found = ours(x, images, image_of_token=of_token)
    expected = theirs(
        x,
        image_hidden_states=images.flatten(1, 2),
        image_attention_mask=additive,
        cross_attention_gate=(of_token >= 0).float(),
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    near(found, expected)
    slope = draw(2, 7, TEXT, seed=3)
    gradients = [torch.autograd.grad(output, (x, images), slope) for output in (found, expected)]
    for gradient, other in zip(*gradients, strict=True):
        near(gradient, other)


@pytest.mark.parametrize("bias", [False, True])
def test_a_token_sees_its_image_and_no_other(bias):
    torch.manual_seed(0)
    module = with_random_biases(open_gates(bias=bias))
    x, images = draw(2, 6, TEXT).requires_grad_(), draw(2, 3, 5, IMAGE).requires_grad_()
    of_token = torch.tensor([[-1, 0, 0, 2, 2, 2], [1, 1, -1, -1, 0, 0]])
    found = module(x, images, image_of_token=of_token)
    for sample in range(2):
        for token in range(6):
            image = int(of_token[sample, token])
            alone = images[sample : sample + 1, image] if image >= 0 else images[:1, 0, :0]
            near(found[sample, token], module(x[sample : sample + 1, token : token + 1], alone)[0, 0])
            (gradient,) = torch.autograd.grad(found[sample, token].square().sum(), images, retain_graph=True)
            assert gradient.isfinite().all()
            reached = {int(place) for place in gradient[sample].any(-1).any(-1).nonzero()}
            assert reached == ({image} if image >= 0 else set())
            assert not gradient[1 - sample].any()


def test_mask_of_images_joins_other_masks():
    module = open_gates()
    x, images = draw(2, 6, TEXT), draw(2, 3, 5, IMAGE)
    of_token = torch.tensor([[-1, 0, 0, 2, 2, 2], [1, 1, -1, -1, 0, 0]])
    of_image = torch.arange(15) // 5 == of_token[..., None]
    real = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) > 0.3
    expected = module(x, images, mask=Dense((of_image & real[:, None])[:, None]))
    for mask in (Keys(real), real, real[:, None, None]):
        near(module(x, images, image_of_token=of_token, mask=mask), expected)
    flat = module(x, images.flatten(1, 2), mask=Dense((of_image & real[:, None])[:, None]))
    assert torch.equal(flat, expected)


def test_mask_of_images_is_runs_of_keys_and_no_table():
    of_token = torch.tensor([[-1, 0, 0, 2, 2, 2], [1, 1, -1, -1, 0, 0]])
    mask = TokensOfImage(of_token, 5)
    lowered = lower(mask, 6, 15)
    assert lowered.tiles is None
    assert lowered.dense is None
    assert lowered.intervals.shape == (2, 1, 1, 2, 6)
    from_runs = torch.arange(15)[:, None]
    start, end = lowered.intervals[:, 0, 0, 0], lowered.intervals[:, 0, 0, 1]
    kept = (from_runs >= start[:, None]) & (from_runs < end[:, None])
    assert torch.equal(kept.transpose(1, 2)[:, None], mask.dense(6, 15))
    assert lower(mask & Padding([5, 15]), 6, 15).tiles is None
    assert mask.blocks(6, 15, 4).kinds.shape == (2, 1, 2, 4)
    assert repr(mask) == "TokensOfImage(int 2x6, 5 tokens an image)"
    assert TokensOfImage(of_token, 0).intervals(6, 0).eq(0).all()


def test_preceding_image_counts():
    starts = torch.tensor([[False, True, False, True, False], [True, False, False, False, True]])
    assert preceding_image(starts).tolist() == [[-1, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    with pytest.raises(regard.ShapeError, match=r"starts: expected bool \(batch, length\)"):
        preceding_image(starts.long())


def test_compiled_block_with_images():
    torch._dynamo.reset()
    module = open_gates()
    x, images = draw(2, 6, TEXT), draw(2, 3, 5, IMAGE)
    starts = torch.tensor([[False, True, False, True, False, False]]).expand(2, -1)

    def whole(x, images, starts):
        return module(x, images, image_of_token=preceding_image(starts))

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    near(compiled(x, images, starts), whole(x, images, starts))


def test_refusals_of_the_gated_block():
    module = GatedCrossAttention(TEXT, HEADS, context_dim=IMAGE)
    x, images = draw(2, 6, TEXT), draw(2, 3, 5, IMAGE)
    numbers = torch.zeros(2, 6, dtype=torch.long)
    with pytest.raises(
        regard.MaskError, match=r"image_of_token: expected numbers from -1 \(none\) to 2, .* got 0 to 3"
    ):
        module(x, images, image_of_token=numbers.index_fill(1, torch.tensor([2]), 3))
    with pytest.raises(regard.MaskError, match="got -2 to 0"):
        module(x, images, image_of_token=numbers.index_fill(1, torch.tensor([2]), -2))
    with pytest.raises(regard.ShapeError, match="since image_of_token is given, got"):
        module(x, images.flatten(1, 2), image_of_token=numbers)
    for wrong in (numbers[:, 1:], numbers.float(), numbers.bool()):
        with pytest.raises(regard.ShapeError, match=r"image_of_token: expected integers of shape"):
            module(x, images, image_of_token=wrong)
    with pytest.raises(regard.ShapeError, match="context batch: expected 2, as the other side has, got 1"):
        module(x, images[:1])
