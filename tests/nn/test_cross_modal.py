"""Cross-modal attention against plain loops in float64, and co-attention beside LXMERT's layer on the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import regard
from regard.masks import Causal, Padding
from regard.nn import CoAttention, CrossModalAttention
from regard.nn._cross_attention import CrossAttention
from tests.nn.cross_modal_layers import HEADS, IMAGE, TEXT, draw, near, with_random_biases


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
