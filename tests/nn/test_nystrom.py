"""Nystrom attention: its formula with the true pseudo-inverse, the layer of transformers, and its refusals."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard.masks import Causal, Padding
from regard.nn import NystromAttention

WIDTH, HEADS = 16, 2
HEAD = WIDTH // HEADS


def made(**options):
    return NystromAttention(WIDTH, HEADS, dtype=torch.float64, **options)


def drawn(length, spread=1.0):
    query, key = (spread * torch.randn(2, HEADS, length, HEAD, dtype=torch.float64) for _ in range(2))
    return query, key, torch.randn(2, HEADS, length, HEAD, dtype=torch.float64)


def segments(length, count):
    """Token r of R belongs to segment floor(r count / R); fewer tokens than segments are one each."""
    count = min(count, length)
    return [[r for r in range(length) if r * count // length == s] for s in range(count)]


def formula(query, key, value, landmarks, inverse=torch.linalg.pinv):
    def means(tensor):
        return torch.stack([tensor[:, :, each].mean(2) for each in segments(tensor.shape[2], landmarks)], 2)

    def weights(a, b):
        return (a @ b.mT / math.sqrt(HEAD)).softmax(-1)

    q, k = means(query), means(key)
    return weights(query, k) @ inverse(weights(q, k)) @ (weights(q, key) @ value)


@pytest.mark.parametrize(("length", "landmarks"), [(12, 4), (13, 4), (3, 4), (7, 1)])
def test_is_the_formula_with_the_pseudo_inverse(length, landmarks):
    query, key, value = drawn(length, 2.0)
    found = made(num_landmarks=landmarks, inverse_steps=40).mix(query, key, value)
    torch.testing.assert_close(found, formula(query, key, value, landmarks), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_formula():
    learned = [tensor.requires_grad_() for tensor in drawn(10, 2.0)]
    found, expected = made(num_landmarks=3, inverse_steps=30).mix(*learned), formula(*learned, 3)
    direction = torch.randn_like(found)
    mine = torch.autograd.grad((found * direction).sum(), learned)
    theirs = torch.autograd.grad((expected * direction).sum(), learned)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_equals_the_layer_of_transformers():
    nystromformer = pytest.importorskip("transformers.models.nystromformer.modeling_nystromformer")
    configuration = nystromformer.NystromformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_landmarks=4, segment_means_seq_len=24, conv_kernel_size=5,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = nystromformer.NystromformerSelfAttention(configuration)
    theirs.init_option = "exact"  # each matrix's own norm, and not the largest of the batch
    mine = NystromAttention(WIDTH, HEADS, num_landmarks=4, conv_size=5)
    mine.copy_maps([theirs.query, theirs.key, theirs.value], None)
    with torch.no_grad():
        mine.conv.weight.copy_(theirs.conv.weight)
        mine.out_proj.weight.copy_(torch.eye(WIDTH))
    x = torch.randn(2, 24, WIDTH, requires_grad=True)
    found, expected = mine(x), theirs(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(found)
    of_mine = torch.autograd.grad((found * direction).sum(), [x, mine.conv.weight])
    of_theirs = torch.autograd.grad((expected * direction).sum(), [x, theirs.conv.weight])
    torch.testing.assert_close(of_mine, of_theirs, rtol=1e-5, atol=1e-5)


def test_is_near_softmax_attention_where_that_is_smooth():
    """What the paper promises, and no more: the error grows with the sharpness of attention."""
    errors = []
    for spread in (0.3, 0.6, 1.2):
        query, key, value = drawn(64, spread)
        exact = (query @ key.mT / math.sqrt(HEAD)).softmax(-1) @ value
        found = made(num_landmarks=16).mix(query, key, value)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] < 0.1
    assert errors == sorted(errors)


@pytest.mark.parametrize("conv_size", [0, 3])
@pytest.mark.parametrize(
    "real", [[1, 1, 0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]]
)
def test_padding_anywhere_is_as_if_it_were_not_there(real, conv_size):
    module = made(num_landmarks=3, conv_size=conv_size)
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    real = torch.tensor([real], dtype=torch.bool)
    padded = module(x, mask=real)[real]
    alone = module(x[:, real[0]])[0]
    if conv_size and real[0].nonzero().diff(dim=0).gt(1).any():
        pytest.skip("a convolution sees gaps as zeros, which tokens moved together do not have")
    torch.testing.assert_close(padded, alone)


def test_a_text_without_a_real_token_gives_the_projection_of_nothing():
    module = made(num_landmarks=3, conv_size=3)
    torch.nn.init.normal_(module.out_proj.bias)
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    found = module(x, mask=Padding([4, 0]))
    torch.testing.assert_close(found[1], module.out_proj.bias.expand(4, -1))
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_attends_to_a_context_of_another_length():
    module = made(num_landmarks=4, inverse_steps=40)
    x, context = torch.randn(2, 9, WIDTH, dtype=torch.float64), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    expected = module.from_heads(formula(*module.to_heads(x, context), 4))
    torch.testing.assert_close(module(x, context), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_the_others_of_its_batch():
    """As it would with an iteration that begins with the largest norm of the batch."""
    query, key, value = drawn(12)
    key[1] *= 30
    module = made(num_landmarks=4, inverse_steps=2)
    together = module.mix(query, key, value)[:1]
    torch.testing.assert_close(together, module.mix(query[:1], key[:1], value[:1]))


def test_a_causal_nystrom_is_refused_with_the_reason():
    with pytest.raises(regard.UnsupportedError, match="NystromAttention: it cannot be causal: a landmark is a mean"):
        made(causal=True)
    with pytest.raises(regard.UnsupportedError, match="it cannot be causal"):
        made()(torch.randn(1, 3, WIDTH, dtype=torch.float64), mask=Causal())


def test_other_mistakes_are_named():
    with pytest.raises(regard.ArgumentError, match="conv_size: expected an odd number, or 0"):
        made(conv_size=4)
    with pytest.raises(regard.ArgumentError, match="num_landmarks: expected a whole number of at least 1"):
        made(num_landmarks=0)
    x = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    with pytest.raises(regard.ArgumentError, match="context length: expected 3"):
        made(conv_size=3)(x, torch.randn(1, 4, WIDTH, dtype=torch.float64))
