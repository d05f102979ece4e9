"""Performer: the sums over features written out in float64, what it errs by, and that nothing leaks."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard.masks import Padding, SlidingWindow
from regard.nn import PerformerAttention
from regard.nn._random_features import orthogonal_directions

WIDTH, HEADS = 16, 2
HEAD = WIDTH // HEADS


def made(**options):
    return PerformerAttention(WIDTH, HEADS, dtype=torch.float64, **options)


def drawn(length, spread=1.0, dtype=torch.float64, heads=HEADS, head_dim=HEAD):
    query, key = (spread * torch.randn(2, heads, length, head_dim, dtype=dtype) for _ in range(2))
    return query, key, torch.randn(2, heads, length, head_dim, dtype=dtype)


def by_features(module, query, key, value, real=None):
    """The paper's equations with an n x m matrix of features for each, and no stabiliser: float64 needs none."""
    directions = module.directions.double()
    if module.opposites:
        directions = torch.cat([directions, -directions])
    query, key = query * HEAD**-0.25, key * HEAD**-0.25
    if module.kernel == "relu":
        query, key = (torch.relu(each @ directions.T) + 0.001 for each in (query, key))
    else:
        query, key = ((each @ directions.T - each.square().sum(-1, keepdim=True) / 2).exp() for each in (query, key))
    weights = query @ key.mT
    weights = weights.tril() if module.causal else weights
    weights = weights if real is None else weights * real[:, None, None, :]
    return weights @ value / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"opposites": False, "num_features": 11}, {"kernel": "relu"}], ids=str)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_is_the_formula_and_so_are_its_gradients(causal, options, spread):
    module = made(causal=causal, **options)
    learned = [tensor.requires_grad_() for tensor in drawn(90, spread)]
    for real in (None, torch.arange(90) < torch.tensor([[90], [41]])):
        found, expected = module.mix(*learned, real=real), by_features(module, *learned, real=real)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        direction = torch.randn_like(expected)
        mine = torch.autograd.grad((found * direction).sum(), learned)
        theirs = torch.autograd.grad((expected * direction).sum(), learned)
        # The log of a normaliser is told in float32.
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_float32_is_the_formula_too(causal):
    module = PerformerAttention(WIDTH, HEADS, causal=causal)
    tensors = drawn(90, 2.0, torch.float32)
    expected = by_features(module, *(tensor.double() for tensor in tensors))
    torch.testing.assert_close(module.mix(*tensors).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_huge_queries_and_keys_give_numbers(causal):
    for spread in (30.0, 1000.0):
        for shrink in (False, True):
            module = PerformerAttention(WIDTH, HEADS, causal=causal, shrink=shrink)
            learned = [tensor.requires_grad_() for tensor in drawn(70, spread, torch.float32)]
            found = module.mix(*learned)
            assert found.isfinite().all()
            assert all(each.isfinite().all() for each in torch.autograd.grad(found.square().sum(), learned))


@pytest.mark.parametrize("options", [{}, {"shrink": True}, {"kernel": "relu"}], ids=str)
def test_the_numbers_of_a_token_do_not_depend_on_later_ones(options):
    """Bit for bit: a maximum over all keys, which others take to stabilise, would show here."""
    module = PerformerAttention(WIDTH, HEADS, causal=True, **options)
    query, key, value = drawn(90, 1.0, torch.float32)
    before = module.mix(query, key, value)
    for place in (0, 5, 70):
        changed = [tensor.clone() for tensor in (query, key, value)]
        for tensor in changed:
            tensor[:, :, place + 1 :] *= 50
        assert torch.equal(module.mix(*changed)[:, :, : place + 1], before[:, :, : place + 1]), place


# ------------------------------------------------------------------------------------------------- error


def error_of(spread, *, features, causal=False, **options):
    """Relative error for heads of width 64, over a few draws of the directions."""
    torch.manual_seed(3)
    tensors = drawn(128, spread, torch.float32, heads=1, head_dim=64)
    module = PerformerAttention(64, 1, num_features=features, causal=causal, **options)
    errors = []
    for _ in range(4):
        module.redraw()
        errors.append(module.approximation_error(*tensors, rows=32))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("causal", [False, True])
def test_f62_the_error_falls_with_the_number_of_features_where_norms_are_moderate(causal):
    for spread in (0.25, 0.5):
        few, some, many = (error_of(spread, features=count, causal=causal) for count in (32, 256, 2048))
        assert some < 0.6 * few
        assert many < 0.6 * some  # as the root of the number: 0.35 for eight times as many


def test_f62_where_norms_are_large_features_do_not_help_and_the_error_says_so():
    """Unit-normal heads of width 64: the variance of a weight is exp(16) / m. FAVOR+ is noise there, and is told so."""
    assert error_of(1.0, features=2048) > 1.0


@pytest.mark.parametrize("causal", [False, True])
def test_shrinking_never_does_worse_than_the_features_or_the_mean(causal):
    torch.manual_seed(3)
    for spread in (0.1, 0.25, 0.5, 1.0, 3.0):
        query, key, value = drawn(128, spread, torch.float32, heads=1, head_dim=64)
        exact = regard.attention(query, key, value, mask=regard.masks.Causal() if causal else None)
        mean = value.cumsum(2) / torch.arange(1, 129).view(-1, 1) if causal else value.mean(2, keepdim=True)
        of_mean = float((mean - exact).norm() / exact.norm())
        of_features = error_of(spread, features=256, causal=causal)
        of_shrunk = error_of(spread, features=256, causal=causal, shrink=True)
        assert of_shrunk < 1.03 * min(of_mean, of_features), spread


def test_shrinking_is_exact_to_first_order_in_the_scores():
    query, key, value = drawn(50, 1e-3)
    for causal in (False, True):
        module = made(causal=causal, shrink=True)
        exact = regard.attention(query, key, value, mask=regard.masks.Causal() if causal else None)
        torch.testing.assert_close(module.mix(query, key, value), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
def test_the_error_that_is_told_is_the_error(causal):
    module = made(causal=causal)
    query, key, value = drawn(20, 0.5)
    real = torch.arange(20) < torch.tensor([[20], [9]])
    scores = (query @ key.mT / math.sqrt(HEAD)).masked_fill(~real[:, None, None, :], -torch.inf)
    if causal:
        scores = scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    exact = scores.softmax(-1) @ value
    found = by_features(module, query, key, value, real)
    expected = float((found - exact).norm() / exact.norm())
    assert module.approximation_error(query, key, value, real=real) == pytest.approx(expected, rel=1e-4)
    assert module.approximation_error(query, key, value, rows=5) > 0


# -------------------------------------------------------------------------------------------- directions


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    directions = orthogonal_directions(4000, 8).double()
    block = directions[:8]
    products = block @ block.T
    torch.testing.assert_close(products, torch.diag(products.diagonal()), rtol=0, atol=1e-5)
    # |w|^2 is chi-squared with 8 degrees of freedom: mean 8, standard deviation 4.
    squares = directions.square().sum(1)
    assert abs(float(squares.mean()) - 8) < 4 * 4 / math.sqrt(4000)
    assert float(squares.std()) == pytest.approx(4, rel=0.1)
    assert float(directions.mean().abs()) < 0.03


def test_a_generator_gives_the_same_directions_again():
    module = made()
    module.redraw(torch.Generator().manual_seed(4))
    first = module.directions
    module.redraw()
    assert not torch.equal(module.directions, first)
    module.redraw(torch.Generator().manual_seed(4))
    assert torch.equal(module.directions, first)


def test_directions_travel_with_the_state_dict_and_stay_in_float32():
    module = PerformerAttention(WIDTH, HEADS)
    drawn_before = module.directions.clone()
    assert torch.equal(module.state_dict()["directions"], drawn_before)
    module.to(torch.bfloat16)
    assert module.in_proj_weight.dtype == torch.bfloat16
    assert torch.equal(module.directions, drawn_before)
    assert module.double().directions.dtype == torch.float64


def test_directions_are_drawn_again_when_told_so():
    module = PerformerAttention(WIDTH, HEADS, redraw_every=2)
    x, seen = torch.randn(1, 3, WIDTH), []
    for _ in range(5):
        module(x)
        seen.append(module.directions)
    assert [seen[i] is seen[i + 1] for i in range(4)] == [True, False, True, False]
    module.eval()
    for _ in range(3):
        module(x)
    assert module.directions is seen[-1]


def test_drawing_again_leaves_the_graph_of_an_earlier_call_alone():
    module, x = PerformerAttention(WIDTH, HEADS, causal=True), torch.randn(1, 5, WIDTH, requires_grad=True)
    loss = module(x).square().sum()
    (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
    module.redraw()
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


# ---------------------------------------------------------------------------------------- in pieces, refusals


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
def test_reading_piece_by_piece_is_reading_the_whole(kernel):
    module = made(causal=True, kernel=kernel)
    x = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    first, state = module(x[:, :5], return_state=True)
    token, state = module.step(x[:, 5], state)
    last = module(x[:, 6:], state=state)
    torch.testing.assert_close(torch.cat([first, token[:, None], last], 1), module(x))


def test_decoding_begins_with_an_empty_state():
    module = made(causal=True)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    state, found = module.make_state(2), []
    for place in range(3):
        token, state = module.step(x[:, place], state)
        found.append(token)
    torch.testing.assert_close(torch.stack(found, 1), module(x))


@pytest.mark.parametrize("causal", [False, True])
def test_a_text_without_a_real_token_gives_the_projection_of_nothing(causal):
    module = made(causal=causal)
    torch.nn.init.normal_(module.out_proj.bias)
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    found = module(x, mask=Padding([4, 0]))
    torch.testing.assert_close(found[1], module.out_proj.bias.expand(4, -1))
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_f61_what_it_cannot_do_is_refused_by_name():
    x = torch.randn(1, 3, WIDTH)
    with pytest.raises(regard.UnsupportedError, match="PerformerAttention: it honours padding, and no other mask"):
        PerformerAttention(WIDTH, HEADS)(x, mask=SlidingWindow(1))
    with pytest.raises(regard.UnsupportedError, match="a context has no place in their order"):
        PerformerAttention(WIDTH, HEADS, causal=True)(x, x)
    with pytest.raises(regard.UnsupportedError, match="shrink=True needs means over the text"):
        PerformerAttention(WIDTH, HEADS, causal=True, shrink=True).make_state(1)
    with pytest.raises(regard.UnsupportedError, match="shrink=True rests on"):
        PerformerAttention(WIDTH, HEADS, kernel="relu", shrink=True)
    with pytest.raises(regard.UnsupportedError, match="kernel='relu' approximates no softmax attention"):
        PerformerAttention(WIDTH, HEADS, kernel="relu").approximation_error(*drawn(3))
    with pytest.raises(regard.ArgumentError, match="kernel: expected 'softmax' or 'relu', got 'cosine'"):
        PerformerAttention(WIDTH, HEADS, kernel="cosine")
    with pytest.raises(regard.ArgumentError, match="num_features: expected an even number"):
        PerformerAttention(WIDTH, HEADS, num_features=7)
    with pytest.raises(regard.ArgumentError, match="redraw_every: expected a whole number of at least 1"):
        PerformerAttention(WIDTH, HEADS, redraw_every=0)
