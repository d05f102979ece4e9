"""Dropout by counter: the generator, the same mask everywhere, and what depends on what."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import regard
from regard import _dropout
from regard.masks import Causal
from tests import oracles

CPU = torch.device("cpu")
WORD = 2**32


def philox_in_plain_python(counter, key):
    """Philox-4x32-7 as Salmon et al. 2011 define it, with numbers of 32 bits."""
    a, b, c, d = counter
    low, high = key
    for _ in range(7):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (second // WORD) ^ b ^ low, second % WORD, (first // WORD) ^ d ^ high, first % WORD
        low, high = (low + 0x9E3779B9) % WORD, (high + 0xBB67AE85) % WORD
    return a, b, c, d


def one(numbers):
    return tuple(int(number) for number in numbers)


@given(
    counter=st.tuples(*[st.integers(0, WORD - 1)] * 4),
    seed=st.integers(0, 2**63 - 1),
)
def test_generator_is_philox(counter, seed):
    tensors = tuple(torch.tensor(number) for number in counter)
    expected = philox_in_plain_python(counter, (seed % WORD, seed // WORD))
    assert one(_dropout.philox(tensors, seed)) == expected
    assert one(_dropout.philox(tensors, torch.tensor(seed))) == expected


def test_generator_known_answers_of_ten_rounds(monkeypatch):
    # The vectors that the authors publish for philox4x32-10: counter and key of zeros, of ones, and of pi's digits.
    monkeypatch.setattr(_dropout, "ROUNDS", 10)
    ones = WORD - 1
    for counter, key, expected in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        tensors = tuple(torch.tensor(number) for number in counter)
        seed = torch.tensor(key[0]) | (torch.tensor(key[1]) << 32)  # as int64 the second key is negative
        assert one(_dropout.philox(tensors, seed)) == expected


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 11)),
    seed=st.integers(0, 2**63 - 1),
    probability=st.sampled_from([0.0, 0.1, 0.5, 0.999]),
    data=st.data(),
)
def test_a_tile_is_a_part_of_the_whole(shape, seed, probability, data):
    whole = _dropout.keep_all(seed, probability, torch.Size(shape), CPU)
    assert whole.shape == shape
    chosen = [
        torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4, unique=True)))
        for size in shape
    ]
    batch, head, rows, cols = chosen
    tile = _dropout.keep_tile(seed, probability, batch=batch, head=head, rows=rows, cols=cols)
    assert torch.equal(tile, whole[batch[:, None, None, None], head[:, None, None], rows[:, None], cols])


@pytest.mark.parametrize("probability", [0.01, 0.3, 0.5, 0.9])
def test_share_that_is_kept(probability):
    kept = _dropout.keep_all(4, probability, torch.Size((4, 4, 64, 65)), CPU)
    deviation = math.sqrt(probability * (1 - probability) / kept.numel())
    assert abs(float(kept.double().mean()) - (1 - probability)) < 5 * deviation


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_samples_heads_queries_and_keys_differ(dim):
    kept = _dropout.keep_all(4, 0.5, torch.Size((2, 2, 64, 64)), CPU)
    first, second = kept.narrow(dim, 0, 1), kept.narrow(dim, 1, 1)
    agree = float((first == second).double().mean())
    assert abs(agree - 0.5) < 5 * math.sqrt(0.25 / first.numel())


@pytest.mark.parametrize("other", [1, 2**31, 2**32, 2**62])
def test_seeds_differ_in_every_bit(other):
    shape = torch.Size((1, 2, 64, 64))
    agree = (_dropout.keep_all(0, 0.5, shape, CPU) == _dropout.keep_all(other, 0.5, shape, CPU)).double().mean()
    assert abs(float(agree) - 0.5) < 5 * math.sqrt(0.25 / shape.numel())


def test_a_longer_problem_keeps_the_same_weights():
    small = _dropout.keep_all(9, 0.5, torch.Size((1, 2, 5, 6)), CPU)
    assert torch.equal(_dropout.keep_all(9, 0.5, torch.Size((2, 3, 8, 13)), CPU)[:1, :2, :5, :6], small)


def tensors():
    return [torch.randn(2, 2, 8, 4, requires_grad=True) for _ in range(3)]


def test_backend_and_reference_drop_the_same_weights():
    inputs, options = tensors(), {"mask": Causal(), "dropout_p": 0.4, "seed": 77}
    result = regard.reference.attention(*inputs, **options)
    oracles.assert_within(regard.attention(*inputs, backend="eager", **options), result.output, 1e-6)
    kept = _dropout.keep_all(77, 0.4, result.weights.shape, CPU)
    oracles.assert_within((result.weights * kept / 0.6) @ inputs[2], result.output, 1e-6)


def test_seed_is_drawn_from_torch_and_named_seeds_leave_torch_alone():
    inputs, outputs = tensors(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(regard.attention(*inputs, dropout_p=0.5))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    before = torch.get_rng_state()
    regard.attention(*inputs, dropout_p=0.5, seed=3)
    regard.attention(*inputs)
    assert torch.equal(torch.get_rng_state(), before)
    regard.attention(*inputs, dropout_p=0.5)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_with_the_same_seed(use_reentrant):
    inputs = tensors()
    attend = functools.partial(regard.attention, dropout_p=0.5)
    gradients = []
    for function in (attend, lambda *given: checkpoint(attend, *given, use_reentrant=use_reentrant)):
        torch.manual_seed(5)
        gradients.append(torch.autograd.grad(function(*inputs).square().sum(), inputs) if not use_reentrant
                         else backward(function, inputs))  # fmt: skip
    for one_, other in zip(*gradients, strict=True):
        assert torch.equal(one_, other)


def backward(function, inputs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    function(*leaves).square().sum().backward()
    return [leaf.grad for leaf in leaves]
