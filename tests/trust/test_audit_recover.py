"""Weights read off outputs are the weights: compared with the plain definition, in float64, on whatever it computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard._shapes import Sizes
from regard.trust.audit.heads import neighbours_reached, read_heads
from regard.trust.audit.recover import Probe, is_repeatable, recover, strays_from_weights

SIZES = Sizes(batch=2, heads=4, kv_heads=2, q_len=5, kv_len=11, head_dim=3, value_dim=3)


def true_weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax with a ragged mask and a bias, each query head beside its group's key head."""
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT / math.sqrt(query.shape[-1])
    q_len, kv_len = scores.shape[-2:]
    place = torch.arange(q_len)[:, None] * 3 + torch.arange(kv_len)
    return (scores + torch.sin(place).to(scores)).masked_fill(place % 4 == 1, -math.inf).softmax(-1)


class Attention:
    """The definition, and how often it was called."""

    def __init__(self, *, constant: float = 0.0) -> None:
        self.calls, self.constant = 0, constant

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.calls += 1
        shared = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return true_weights(query, key) @ shared + self.constant


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_definition(dtype):
    probe = Probe(Attention(), SIZES, dtype)
    query, key = probe.normal()
    expected = true_weights(query.double(), key.double())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(probe.weights(query, key), expected, atol=tolerance, rtol=0.0)


def test_heads_narrower_than_the_keys_take_several_calls():
    attention = Attention()
    probe = Probe(attention, SIZES)
    probe.weights(*probe.zeros())
    assert attention.calls == 1 + math.ceil(11 / 3)


def test_what_no_value_brought_is_taken_off():
    probe = Probe(Attention(constant=7.0), SIZES, torch.float64)
    query, key = probe.normal()
    torch.testing.assert_close(probe.weights(query, key), true_weights(query, key), atol=1e-13, rtol=0.0)


def test_zero_scores_show_the_mask_whatever_the_bias():
    found = recover(Probe(Attention(), SIZES))
    place = torch.arange(5)[:, None] * 3 + torch.arange(11)
    assert torch.equal(found.allowed, (place % 4 != 1).expand(2, 4, 5, 11))
    assert not bool(found.unknown.any())
    assert torch.equal(found.uniform_mask(), place % 4 != 1)


def test_rows_of_nan_are_unknown_and_attend_to_nothing():
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.repeat_interleave(2, 1).mT).masked_fill(torch.arange(5)[:, None] == 2, -math.inf)
        return scores.softmax(-1) @ value.repeat_interleave(2, 1)

    found = recover(Probe(attend, SIZES))
    assert torch.equal(found.unknown, (torch.arange(5) == 2).expand(2, 4, 5))
    assert not bool(found.allowed[:, :, 2].any())
    assert bool(found.allowed[:, :, 3].all())


@pytest.mark.parametrize("spoilt", [False, True])
def test_outputs_that_are_no_weighted_sum_stray(spoilt):
    attention = Attention()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = attention(query, key, value)
        return output * output.abs() if spoilt else output

    stray = strays_from_weights(Probe(attend, SIZES), torch.tensor([0, 0, 1, 1]))
    assert (stray > 0.1) if spoilt else (stray < 1e-5)


def test_the_same_numbers_are_drawn_again_and_others_for_another_seed():
    first, again, other = (Probe(Attention(), SIZES, seed=seed).normal()[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_is_told_from_rounding():
    def dropping(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = torch.nn.functional.dropout(true_weights(query, key), 0.2)
        return weights @ value.repeat_interleave(2, 1)

    assert is_repeatable(Probe(Attention(), SIZES))
    assert not is_repeatable(Probe(dropping, SIZES))


# ------------------------------------------------------------------------------------------------ heads


def mixing(keys: list[int], values: list[int]):
    """Attention whose query head h reads the key head keys[h] and the value head values[h]."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key[:, keys].mT).softmax(-1) @ value[:, values]

    return attend


@pytest.mark.parametrize(
    ("keys", "values", "groups"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], (0, 0, 1, 1)),
        ([0, 1, 0, 1], [0, 1, 0, 1], (0, 1, 0, 1)),
        ([1, 1, 0, 0], [1, 1, 0, 0], (1, 1, 0, 0)),
        ([0, 0, 1, 1], [0, 1, 0, 1], None),
    ],
)
def test_who_reads_whom(keys, values, groups):
    reading = read_heads(Probe(mixing(keys, values), SIZES))
    assert reading.keys == tuple((head,) for head in keys)
    assert reading.values == tuple((head,) for head in values)
    assert reading.groups == groups


def test_a_head_that_reads_two_is_none():
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return mixing([0, 0, 1, 1], [0, 0, 1, 1])(query, key, value) + value.mean(1, keepdim=True).mean(2, keepdim=True)

    assert read_heads(Probe(attend, SIZES)).groups is None


def test_a_single_key_tells_nothing_of_who_reads_it():
    probe = Probe(mixing([0, 0, 1, 1], [0, 0, 1, 1]), Sizes(2, 4, 2, 5, 1, 3, 3))
    assert read_heads(probe).keys == ((), (), (), ())
    assert read_heads(probe).groups == (0, 0, 1, 1)


def test_heads_that_see_nothing_are_no_reason_for_alarm():
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return mixing([0, 0, 1, 1], [0, 0, 1, 1])(query, key, value) * torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1)

    reading = read_heads(Probe(attend, SIZES))
    assert reading.groups is None
    assert reading.reads([0, 0, 1, 1])
    assert reading.reads([0, 1, 1, 1])
    assert not reading.reads([0, 0, 1, 0])


def test_neighbours_in_a_batch_are_seen():
    plain = mixing([0, 0, 1, 1], [0, 0, 1, 1])

    def leaking(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plain(query, key, value) + 1e-2 * value.mean()

    assert neighbours_reached(Probe(plain, SIZES)) == ()
    assert neighbours_reached(Probe(leaking, SIZES)) == (1,)
