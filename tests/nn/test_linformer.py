"""Linformer against its formula in float64, and against the package `linformer` where that is installed."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard.masks import Causal, Padding
from regard.nn import LinformerAttention

WIDTH, HEADS, LONGEST, SLOTS = 12, 3, 20, 5


def made(share="heads", **options):
    module = LinformerAttention(
        WIDTH, HEADS, max_length=LONGEST, projected_length=SLOTS, share=share, dtype=torch.float64, **options
    )
    if module.in_proj_bias is not None:
        torch.nn.init.normal_(module.in_proj_bias)
    return module


def formula(module, x, context=None, real=None):
    """Equation 7 of the paper, as it stands there: keys and values of all tokens first, then projected."""
    context = x if context is None else context
    query, key, value = (
        (source @ weight.T + bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for source, weight, bias in zip(
            (x, context, context), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True
        )
    )
    if real is not None:
        key, value = key * real[:, None, :, None], value * real[:, None, :, None]
    e = module.key_projection
    f = e if module.value_projection is None else module.value_projection
    length = context.shape[1]
    slots, held = e[..., :length, :].mT @ key, f[..., :length, :].mT @ value
    heads = (query @ slots.mT / math.sqrt(WIDTH // HEADS)).softmax(-1) @ held
    return heads.transpose(1, 2).flatten(2) @ module.out_proj.weight.T + module.out_proj.bias


@pytest.mark.parametrize("length", [LONGEST, 7])
@pytest.mark.parametrize("share", ["none", "heads", "kv"])
def test_is_the_formula_and_so_are_its_gradients(share, length):
    module = made(share)
    x = torch.randn(2, length, WIDTH, dtype=torch.float64, requires_grad=True)
    learned = [x, *module.parameters()]
    direction = torch.randn_like(x)
    for real, mask in ((None, None), (torch.arange(length) < torch.tensor([[length], [3]]), Padding([length, 3]))):
        found, expected = module(x, mask=mask), formula(module, x, real=real)
        torch.testing.assert_close(found, expected)
        mine = torch.autograd.grad((found * direction).sum(), learned)
        theirs = torch.autograd.grad((expected * direction).sum(), learned)
        torch.testing.assert_close(mine, theirs)


def test_attends_to_a_context():
    module = made()
    x, context = torch.randn(2, 30, WIDTH, dtype=torch.float64), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(module(x, context), formula(module, x, context))


def test_a_text_without_a_real_token_gives_the_projection_of_nothing():
    for share in ("none", "heads"):
        module = made(share)
        found = module(torch.randn(2, 4, WIDTH, dtype=torch.float64), mask=Padding([4, 0]))
        torch.testing.assert_close(found[1], module.out_proj.bias.expand(4, -1))


def test_shared_matrices_are_one_parameter():
    sizes = {
        share: {name: tuple(w.shape) for name, w in made(share).named_parameters()} for share in ("none", "heads", "kv")
    }
    assert sizes["none"]["key_projection"] == sizes["none"]["value_projection"] == (HEADS, LONGEST, SLOTS)
    assert sizes["heads"]["key_projection"] == sizes["heads"]["value_projection"] == (LONGEST, SLOTS)
    assert "value_projection" not in sizes["kv"]


def test_layers_may_share_one_matrix():
    layers = torch.nn.ModuleList([made("kv"), made("kv")])
    layers[1].key_projection = layers[0].key_projection
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64)
    layers[1](layers[0](x)).sum().backward()
    assert sum(weight is layers[0].key_projection for weight in layers.parameters()) == 1
    torch.testing.assert_close(layers[1](x), formula(layers[1], x))


def test_keeps_the_size_of_what_it_projects_when_it_begins():
    """Xavier: slots of unit-normal tokens are about as large as tokens, whatever the length."""
    module = LinformerAttention(8, 1, max_length=2000, projected_length=50)
    mixed = module.key_projection.detach().mT @ torch.randn(2000, 8)
    assert 1.0 < float(mixed.std()) < 2.0


def test_equals_the_package():
    package = pytest.importorskip("linformer.linformer", reason="a peer that the library does not need")
    theirs = package.LinformerSelfAttention(WIDTH, LONGEST, k=SLOTS, heads=HEADS)
    mine = LinformerAttention(WIDTH, HEADS, max_length=LONGEST, projected_length=SLOTS)
    with torch.no_grad():
        mine.in_proj_weight.copy_(torch.cat([theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight]))
        mine.key_projection.copy_(theirs.proj_k)
        mine.value_projection.copy_(theirs.proj_v)
        mine.out_proj.load_state_dict(theirs.to_out.state_dict())
    for length in (LONGEST, 11):
        x = torch.randn(2, length, WIDTH, requires_grad=True)
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
        of_mine, of_theirs = (torch.autograd.grad(each(x).square().sum(), x)[0] for each in (mine, theirs))
        torch.testing.assert_close(of_mine, of_theirs, rtol=1e-5, atol=1e-5)


def test_f61_a_text_longer_than_the_limit_is_refused_by_the_limit():
    module = made()
    with pytest.raises(regard.ShapeError, match="length: expected at most max_length 20, got 21"):
        module(torch.randn(1, 21, WIDTH, dtype=torch.float64))
    x = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    with pytest.raises(regard.ShapeError, match="max_length 20"):
        module(x, torch.randn(1, 21, WIDTH, dtype=torch.float64))


def test_f61_a_causal_linformer_is_refused_with_the_reason():
    with pytest.raises(regard.UnsupportedError, match="cannot be causal: each of its slots is a sum over all tokens"):
        made(causal=True)
    for mask in (Causal(), Causal() & Padding([3])):
        with pytest.raises(regard.UnsupportedError, match="cannot be causal"):
            made()(torch.randn(1, 3, WIDTH, dtype=torch.float64), mask=mask)


def test_an_unknown_share_is_refused():
    with pytest.raises(regard.ArgumentError, match="share: expected 'none', 'heads' or 'kv', got 'layers'"):
        made("layers")
