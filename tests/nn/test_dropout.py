"""Dropout of activations: torch's contract, from fewer draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from regard.nn import FeedForward
from regard.nn._dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4), (), (1000, 3)])
def test_each_number_is_dropped_or_scaled(shape, dtype):
    x = torch.randn(shape, dtype=dtype) + 3
    output = dropout(x, 0.25, training=True)
    assert output.shape == x.shape
    assert output.dtype == dtype
    kept = output != 0
    scale = torch.tensor(1 / 0.75, dtype=torch.float64).to(dtype)
    assert torch.equal(output[kept], x[kept] * scale)


@pytest.mark.parametrize("dropout_p", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_honoured(dropout_p):
    torch.manual_seed(3)
    count = 1 << 20
    dropped = (dropout(torch.ones(count), dropout_p, training=True) == 0).sum().item()
    deviation = math.sqrt(count * dropout_p * (1 - dropout_p))
    assert abs(dropped - count * dropout_p) < 4 * deviation


def test_each_of_the_four_parts_of_a_draw_is_random():
    torch.manual_seed(4)
    kept = (dropout(torch.ones(1 << 16, 4), 0.5, training=True) != 0).to(torch.float64)
    together = torch.corrcoef(kept.T)
    assert (kept.mean(0) - 0.5).abs().max() < 0.01
    assert (together - torch.eye(4)).abs().max() < 0.02
    assert (torch.corrcoef(torch.stack([kept[:-1, 0], kept[1:, 0]]))[0, 1]).abs() < 0.02


@pytest.mark.parametrize("dropout_p", [1e-9, 1 - 1e-9])
def test_a_rate_between_two_levels_is_neither_none_nor_all(dropout_p):
    torch.manual_seed(5)
    kept = (dropout(torch.ones(1 << 20), dropout_p, training=True) != 0).sum()
    assert 0 < kept < 1 << 20


def test_no_training_no_rate_and_all_are_torchs():
    x = torch.randn(4, 4)
    assert dropout(x, 0.3, training=False) is x or torch.equal(dropout(x, 0.3, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert torch.equal(dropout(x, 1.0, training=True), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="probability"):
        dropout(x, 1.5, training=True)


def test_the_gradient_goes_where_the_numbers_went():
    x = torch.randn(50, 8, requires_grad=True)
    output = dropout(x, 0.4, training=True)
    output.sum().backward()
    assert torch.equal(x.grad != 0, output != 0)
    assert torch.allclose(x.grad[x.grad != 0], torch.tensor(1 / 0.6))


def test_a_seed_repeats_it_and_another_does_not():
    x = torch.ones(64, 64)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_checkpoint_recomputes_the_same():
    torch.manual_seed(2)
    layer = FeedForward(16, 64, dropout_p=0.5)
    x = torch.randn(4, 16, requires_grad=True)
    torch.manual_seed(3)
    (plain,) = torch.autograd.grad(layer(x).sum(), x)
    torch.manual_seed(3)
    (again,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    assert torch.equal(plain, again)


def test_it_is_a_dropout_of_torch_to_whoever_looks():
    layer = Dropout(0.5)
    assert isinstance(layer, nn.Dropout)
    assert torch.equal(layer.eval()(torch.ones(3)), torch.ones(3))
    x = torch.ones(10, 10)
    assert Dropout(0.5, inplace=True)(x) is x


def test_compile_and_vmap_take_torchs():
    x = torch.randn(6, 4)
    compiled = torch.compile(lambda x: dropout(x, 0.5, training=True), backend="eager", fullgraph=True)
    assert compiled(x).shape == x.shape
    drawn = torch.vmap(lambda x: dropout(x, 0.5, training=True), randomness="different")(x)
    assert drawn.shape == x.shape
