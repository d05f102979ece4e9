"""Maps from words to patches: cosines by hand, weights of the formula, the grid, padding, and enlarging."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard.masks import Causal, Keys, Padding
from regard.nn import AlignmentMap, CrossModalAttention, GatedCrossAttention, attention_map, similarity_map

GRID = (3, 4)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_similarity_is_the_cosine_of_each_word_and_patch():
    words, patches = draw(2, 5, 6), draw(2, 14, 6, seed=2)
    found = similarity_map(words, patches, GRID, skip=2)
    assert found.values.shape == (2, 5, *GRID)
    assert found.valid.all()
    for sample, word, row, col in ((0, 0, 0, 0), (1, 4, 2, 3), (0, 3, 1, 2), (1, 1, 2, 0)):
        one, other = words[sample, word].double(), patches[sample, 2 + 4 * row + col].double()
        expected = (one @ other / one.norm() / other.norm()).item()
        assert found.values[sample, word, row, col].item() == pytest.approx(expected, abs=1e-6)


def test_similarity_has_the_gradients_of_the_cosine():
    words, patches = draw(1, 3, 6).requires_grad_(), draw(1, 12, 6, seed=2).requires_grad_()
    exact = words.detach().double().requires_grad_(), patches.detach().double().requires_grad_()
    slope = draw(1, 3, 12, seed=3)
    found = torch.autograd.grad(similarity_map(words, patches, GRID).values.flatten(2), (words, patches), slope)
    cosines = torch.nn.functional.cosine_similarity(exact[0][:, :, None], exact[1][:, None], dim=-1)
    expected = torch.autograd.grad(cosines, exact, slope.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_a_vector_of_length_0_is_like_nothing():
    words, patches = draw(1, 3, 6), draw(1, 12, 6, seed=2)
    words[0, 1] = 0.0
    words.requires_grad_()
    found = similarity_map(words, patches, GRID).values
    assert not found[0, 1].any()
    found.sum().backward()
    assert words.grad.abs().max() < 100


def test_similarity_of_half_precision_is_float32():
    words, patches = draw(1, 3, 6).bfloat16(), draw(1, 12, 6, seed=2).bfloat16()
    expected = similarity_map(words.float(), patches.float(), GRID).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(similarity_map(words, patches, GRID).values, expected)


def test_padding_is_0_and_says_so():
    words, patches = draw(2, 5, 6), draw(2, 12, 6, seed=2)
    words[0, 3:], patches[1, 7:] = math.nan, math.nan
    words.requires_grad_()
    patches.requires_grad_()
    found = similarity_map(words, patches, GRID, word_mask=Padding([3, 5]), patch_mask=Padding([12, 7]))
    assert found.values.isfinite().all()
    assert found.valid[0, :3].all()
    assert not found.valid[0, 3:].any()
    assert torch.equal(found.valid[1, 2].flatten(), torch.arange(12) < 7)
    assert not found.values[~found.valid].any()
    assert found.values[found.valid].all()
    found.values.square().sum().backward()
    assert words.grad.isfinite().all()
    assert patches.grad.isfinite().all()


def test_padding_of_an_attention_map_has_no_influence():
    module = CrossModalAttention(12, 3, image_dim=20)
    text, image = draw(2, 5, 12), draw(2, 12, 20, seed=2)
    masks = {"text_mask": Padding([3, 5]), "image_mask": Padding([12, 7])}
    before = attention_map(module, text, image, GRID, **masks)
    text[0, 3:], image[1, 7:] = math.nan, math.nan
    text.requires_grad_()
    image.requires_grad_()
    after = attention_map(module, text, image, GRID, **masks)
    assert torch.equal(after.values, before.values)
    after.values.square().sum().backward()
    assert text.grad.isfinite().all()
    assert image.grad.isfinite().all()


def plain_weights(direction, text, image, head, real):
    """softmax of the scaled scores, in float64."""
    width = direction.head_dim
    at = slice(head * width, (head + 1) * width)
    query = text.double() @ direction.query.weight[at].double().T + direction.query.bias[at].double()
    key = image.double() @ direction.key_value.weight[at].double().T + direction.key_value.bias[at].double()
    scores = query @ key.transpose(1, 2) / math.sqrt(width)
    return scores.masked_fill(~real[:, None], -math.inf).softmax(-1)


def test_attention_is_that_of_the_module_head_by_head():
    torch.manual_seed(0)
    module = CrossModalAttention(12, 3, image_dim=20)
    text, image = draw(2, 5, 12), draw(2, 13, 20, seed=2)
    real = torch.arange(13) < torch.tensor([[13], [9]])
    found = attention_map(module, text, image, GRID, heads=[2, 0], skip=1, image_mask=real, text_mask=Padding([4, 5]))
    assert found.values.shape == (2, 2, 5, *GRID)
    for place, head in enumerate((2, 0)):
        expected = plain_weights(module.text_to_image, text, image, head, real)[..., 1:].unflatten(-1, GRID)
        expected[0, 4] = 0.0  # not a word
        torch.testing.assert_close(found.values[:, place].double(), expected, rtol=1e-5, atol=1e-6)
    assert not found.valid[0, 4].any()
    assert torch.equal(found.valid[1, 0].flatten(), real[1, 1:])


def test_weights_of_a_map_sum_to_1_less_what_was_skipped():
    module = CrossModalAttention(12, 3, image_dim=20)
    text, image = draw(2, 5, 12), draw(2, 12, 20, seed=2)
    whole = attention_map(module, text, image, GRID).values
    torch.testing.assert_close(whole.sum((-1, -2)), torch.ones(2, 3, 5))
    without = attention_map(module, text, image, (3, 3), skip=3).values
    torch.testing.assert_close(without, whole.flatten(-2)[..., 3:].unflatten(-1, (3, 3)))
    nothing = attention_map(module, text, image, GRID, image_mask=Padding([0, 12]))
    assert not nothing.values[0].any()
    assert not nothing.valid[0].any()


def test_attention_of_flamingos_block():
    block = GatedCrossAttention(12, 3, context_dim=20)
    text, image = block.attention_norm(draw(2, 5, 12)), draw(2, 12, 20, seed=2)
    found = attention_map(block.attention, text, image, GRID, heads=[1])
    torch.testing.assert_close(found.values.flatten(-2), block.attention.weights(text, image, heads=[1]))


# ------------------------------------------------------------------------------------------------- pixels


def test_nearest_repeats_each_patch_over_its_pixels():
    found = similarity_map(draw(1, 2, 6), draw(1, 12, 6, seed=2), GRID)
    large = found.resized((6, 12), mode="nearest")
    assert torch.equal(large.values, found.values.repeat_interleave(2, 2).repeat_interleave(3, 3))
    assert large.valid.all()


def test_bilinear_goes_through_the_centres_of_patches():
    found = similarity_map(draw(1, 2, 6), draw(1, 12, 6, seed=2), GRID)
    large = found.resized((15, 20)).values
    torch.testing.assert_close(large[..., 2::5, 2::5], found.values)
    between = (found.values[..., 0, 0] * 3 + found.values[..., 0, 1] * 2) / 5
    torch.testing.assert_close(large[..., 2, 4], between)


@pytest.mark.parametrize("heads", [False, True])
def test_padding_does_not_leak_into_its_neighbours(heads):
    valid = torch.ones(1, 2, *GRID, dtype=torch.bool)
    valid[..., 2:] = False
    valid[0, 1] = False
    values = torch.where(valid, 3.0, 0.0)
    values = values[:, None].expand(-1, 2, -1, -1, -1) if heads else values
    for mode in ("bilinear", "nearest"):
        large = AlignmentMap(values, valid).resized((9, 16), mode=mode)
        assert large.valid.shape == (1, 2, 9, 16)
        assert large.valid[0, 0, :, :8].all()
        assert not large.valid[0, 0, :, 8:].any()
        assert not large.valid[0, 1].any()
        here = large.valid[:, None].expand(large.values.shape) if heads else large.valid
        torch.testing.assert_close(large.values[here], torch.full((int(here.sum()),), 3.0))
        assert not large.values[~here].any()


# ------------------------------------------------------------------------------------------------- refusals


def test_refusals_say_what_to_do():
    words, patches = draw(2, 5, 6), draw(2, 12, 6, seed=2)
    with pytest.raises(regard.ShapeError, match=r"patches: expected skip 0 \+ rows 3 x cols 5 = 15 tokens, got 12 in"):
        similarity_map(words, patches, (3, 5))
    with pytest.raises(regard.ShapeError, match="count class token and registers with skip"):
        similarity_map(words, patches, GRID, skip=1)
    with pytest.raises(regard.ShapeError, match=r"words: expected \(batch, length, embed_dim 6\)"):
        similarity_map(words[..., :5], patches, GRID)
    with pytest.raises(regard.ShapeError, match="words batch: expected 2, as the other side has, got 1"):
        similarity_map(words[:1], patches, GRID)
    with pytest.raises(regard.UnsupportedError, match="word_mask: it honours padding, and no other mask"):
        similarity_map(words, patches, GRID, word_mask=Causal())
    with pytest.raises(regard.MaskError, match="mask batch: expected 2, got 3"):
        similarity_map(words, patches, GRID, patch_mask=Keys(torch.ones(3, 12, dtype=torch.bool)))
    with pytest.raises(regard.ArgumentError, match="mode: expected 'bilinear' or 'nearest', got 'cubic'"):
        similarity_map(words, patches, GRID).resized((6, 8), mode="cubic")
    with pytest.raises(regard.ArgumentError, match="height: expected a whole number of at least 1, got 0"):
        similarity_map(words, patches, GRID).resized((0, 8))
    with pytest.raises(regard.ArgumentError, match=r"heads: expected numbers from 0 to 2, got \[-1\]"):
        attention_map(CrossModalAttention(6, 3), words, patches, GRID, heads=[-1])
