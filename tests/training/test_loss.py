"""The fused cross entropy against torch's own, which lays all logits out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from regard import ShapeError
from regard.training import loss as fused
from regard.training.loss import vocabulary_cross_entropy


def problem(tokens: int = 33, width: int = 8, words: int = 19, dtype: torch.dtype = torch.float64):
    torch.manual_seed(tokens)
    states = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, width, dtype=dtype, requires_grad=True)
    return states, weight, torch.randint(0, words, (tokens,))


def plain(states, weight, targets, smoothing):
    targets = torch.where(targets < 0, -100, targets)
    return functional.cross_entropy(states @ weight.T, targets, label_smoothing=smoothing, reduction="sum")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 7, 33, 512])
@pytest.mark.parametrize("left_out", [(), (4, 30), (0, 1, 2, 3, 4, 5, 6)])
def test_value_and_gradients(monkeypatch, smoothing, chunk, left_out):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    states, weight, targets = problem()
    targets[list(left_out)] = -1
    ours = vocabulary_cross_entropy(states, weight, targets, smoothing=smoothing)
    theirs = plain(states, weight, targets, smoothing)
    torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(3 * ours, (states, weight)), torch.autograd.grad(3 * theirs, (states, weight))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


def test_under_autocast_products_are_in_bfloat16_and_the_sum_in_float32():
    states, weight, targets = problem(300, 64, 1000, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = vocabulary_cross_entropy(states, weight, targets, smoothing=0.1)
    assert ours.dtype == torch.float32
    theirs = plain(states, weight, targets, 0.1)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=0)
    mine, expected = (torch.autograd.grad(each, (states, weight)) for each in (ours, theirs))
    for found, wanted in zip(mine, expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_without_gradients_nothing_is_kept():
    states, weight, targets = problem()
    with torch.no_grad():
        assert vocabulary_cross_entropy(states, weight, targets).grad_fn is None


def test_nothing_and_only_padding():
    states, weight, targets = problem()
    assert vocabulary_cross_entropy(states[:0], weight, targets[:0]).item() == 0.0
    total = vocabulary_cross_entropy(states, weight, torch.full_like(targets, -1))
    total.backward()
    assert total.item() == 0.0
    assert not states.grad.any()
    assert not weight.grad.any()


def test_sizes_that_do_not_fit():
    states, weight, targets = problem()
    with pytest.raises(ShapeError, match=r"expected \(tokens, width\), \(vocabulary, width\) and \(tokens,\), got"):
        vocabulary_cross_entropy(states, weight[:, :3], targets)
