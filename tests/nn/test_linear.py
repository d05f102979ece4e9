"""Linear attention and efficient attention against their formulas written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import regard
from regard.masks import Causal, Padding, SlidingWindow
from regard.nn import EfficientAttention, LinearAttention

WIDTH, HEADS = 12, 3
FEATURES = {
    "elu": lambda x: functional.elu(x) + 1,
    "relu": torch.relu,
    "square": torch.square,
    "softmax": lambda x: x.softmax(-1),
}


def heads_of(module, x, context=None):
    """Query, key and value, by the names that the paper gives them: (batch, heads, length, head_dim)."""
    maps, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    sources = (x, x if context is None else context, x if context is None else context)
    return [
        (source @ weight.T + bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for source, weight, bias in zip(sources, maps, biases, strict=True)
    ]


def joined(module, heads):
    return heads.transpose(1, 2).flatten(2) @ module.out_proj.weight.T + module.out_proj.bias


def by_pairs(module, x, phi, *, real=None, context=None):
    query, key, value = heads_of(module, x, context)
    weights = phi(query) @ phi(key).mT
    if module.causal:
        weights = weights.tril()
    if real is not None:
        weights = weights * real[:, None, None, :]
    return joined(module, weights / weights.sum(-1, keepdim=True).clamp_min(1e-300) @ value)


def compare(module, found, expected, x):
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    learned = [x, *module.parameters()]
    mine = torch.autograd.grad((found * direction).sum(), learned)
    theirs = torch.autograd.grad((expected * direction).sum(), learned)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", FEATURES)
def test_is_the_formula_over_pairs(name, causal):
    module = LinearAttention(WIDTH, HEADS, feature_map=name, causal=causal, dtype=torch.float64)
    x = torch.randn(2, 150, WIDTH, dtype=torch.float64, requires_grad=True)  # more than a chunk
    compare(module, module(x), by_pairs(module, x, FEATURES[name]), x)


def test_a_function_may_make_the_features_and_as_many_as_it_likes():
    def both_sides(x):
        return torch.cat([torch.relu(x), torch.relu(-x)], -1)

    module = LinearAttention(WIDTH, HEADS, feature_map=both_sides, causal=True, dtype=torch.float64)
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_pairs(module, x, both_sides))
    assert module.make_state(2).tensors["keys"].shape == (2, HEADS, 2 * WIDTH // HEADS)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_on_either_side_is_left_out(causal):
    module = LinearAttention(WIDTH, HEADS, causal=causal, dtype=torch.float64)
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    real = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    expected = by_pairs(module, x, FEATURES["elu"], real=real)
    torch.testing.assert_close(module(x, mask=Padding([4, 6], side="left")), expected)
    torch.testing.assert_close(module(x, mask=real), expected)


def test_a_text_without_a_real_token_gives_the_projection_of_nothing():
    x = torch.randn(2, 4, WIDTH, requires_grad=True)
    for module in (LinearAttention(WIDTH, HEADS), EfficientAttention(WIDTH, HEADS)):
        torch.nn.init.normal_(module.out_proj.bias)
        found = module(x, mask=Padding([4, 0]))
        assert torch.equal(found[1], module.out_proj.bias.expand(4, -1))
        assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_reading_piece_by_piece_is_reading_the_whole():
    module = LinearAttention(WIDTH, HEADS, causal=True, dtype=torch.float64)
    x = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    whole = module(x)
    first, state = module(x[:, :5], return_state=True)
    middle = []
    for place in range(5, 8):
        token, state = module.step(x[:, place], state)
        middle.append(token)
    last = module(x[:, 8:], state=state)
    torch.testing.assert_close(torch.cat([first, torch.stack(middle, 1), last], 1), whole)


def test_a_state_is_reordered_and_reset_like_any_other():
    module = LinearAttention(WIDTH, HEADS, causal=True, dtype=torch.float64)
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    _, state = module(x, return_state=True)
    state.reorder([1, 1, 0])
    state.reset([2])
    found, _ = module.step(x[[0, 0, 0], 0], state)
    torch.testing.assert_close(found[0], module(torch.cat([x[1], x[:1, 0]])[None])[0, -1])
    torch.testing.assert_close(found[2], module(x[:1, :1])[0, 0])


def test_attends_to_a_context():
    module = LinearAttention(WIDTH, HEADS, dtype=torch.float64)
    x, context = torch.randn(2, 4, WIDTH, dtype=torch.float64), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(module(x, context), by_pairs(module, x, FEATURES["elu"], context=context))


def test_long_texts_take_memory_in_proportion():
    """No tensor of forward or backward is larger than a few times the input."""
    from tests.nn.test_causal_scan import peak_of

    assert peak_of(1024) < 1024 * 1024


def efficient(module, x, real=None):
    query, key, value = heads_of(module, x)
    if real is not None:
        key = key.masked_fill(~real[:, None, :, None], -torch.inf)
    return joined(module, query.softmax(-1) @ (key.softmax(2).mT @ value))


def test_efficient_attention_is_its_formula():
    module = EfficientAttention(WIDTH, HEADS, dtype=torch.float64)
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    compare(module, module(x), efficient(module, x), x)
    real = torch.arange(9) < torch.tensor([[9], [4]])
    compare(module, module(x, mask=Padding([9, 4])), efficient(module, x, real), x)


def test_weights_of_efficient_attention_sum_to_one():
    module = EfficientAttention(WIDTH, HEADS, bias=False)
    with torch.no_grad():
        module.in_proj_weight[2 * WIDTH :] = torch.eye(WIDTH)
        module.out_proj.weight.copy_(torch.eye(WIDTH))
    x = torch.randn(1, 5, WIDTH)
    x[..., 0] = 3.0  # the same in every token, so whatever the weights it is the same in every mean
    torch.testing.assert_close(module(x)[..., 0], torch.full((1, 5), 3.0))


# ----------------------------------------------------------------------------------------------- refusals


def test_a_causal_efficient_attention_is_refused_with_the_reason():
    with pytest.raises(
        regard.UnsupportedError, match="EfficientAttention: it cannot be causal: its softmax over tokens"
    ):
        EfficientAttention(WIDTH, HEADS, causal=True)
    with pytest.raises(regard.UnsupportedError, match="it cannot be causal"):
        EfficientAttention(WIDTH, HEADS)(torch.randn(1, 3, WIDTH), mask=Causal())


@pytest.mark.parametrize("kind", [LinearAttention, EfficientAttention])
def test_masks_of_pairs_are_refused(kind):
    module, x = kind(WIDTH, HEADS), torch.randn(1, 3, WIDTH)
    with pytest.raises(regard.UnsupportedError, match=kind.__name__):
        module(x, mask=SlidingWindow(1))
    with pytest.raises(regard.MaskError, match="mask"):
        module(x, mask=torch.ones(3, 3, dtype=torch.bool))


def test_what_needs_an_order_is_refused_without_one():
    module, x = LinearAttention(WIDTH, HEADS), torch.randn(1, 3, WIDTH)
    for call in (lambda: module.make_state(1), lambda: module(x, return_state=True)):
        with pytest.raises(regard.UnsupportedError, match="causal=True"):
            call()
    with pytest.raises(regard.UnsupportedError, match="a context has no place in their order"):
        LinearAttention(WIDTH, HEADS, causal=True)(x, x)


def test_other_mistakes_are_named():
    with pytest.raises(regard.ArgumentError, match="feature_map: expected one of elu, relu, square, softmax"):
        LinearAttention(WIDTH, HEADS, feature_map="cosine")
    with pytest.raises(regard.ShapeError, match="context batch"):
        LinearAttention(WIDTH, HEADS)(torch.randn(2, 3, WIDTH), torch.randn(1, 3, WIDTH))
    causal = LinearAttention(WIDTH, HEADS, causal=True)
    with pytest.raises(regard.ShapeError, match="state of 2 samples"):
        causal.step(torch.randn(2, WIDTH), causal.make_state(3))


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_projects_in_half_precision_and_sums_in_float32(causal):
    module = LinearAttention(WIDTH, HEADS, causal=causal)
    x = torch.randn(2, 200, WIDTH, requires_grad=True)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
        (gradient,) = torch.autograd.grad(found.sum(), x)
    assert found.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_features_that_have_nothing_in_common_give_0_and_finite_gradients(causal):
    """At large inputs the softmax of a token's features is one of them, and a query may share none with any key."""
    torch.manual_seed(0)
    module = LinearAttention(8, 2, feature_map="softmax", causal=causal)
    x = (1e4 * torch.randn(2, 7, 8)).requires_grad_()
    output = module(x)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *module.parameters()))
