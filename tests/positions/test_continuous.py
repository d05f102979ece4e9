"""The continuous bias against the network written out for one distance, and Swin V2's own network."""

import math

import pytest
import torch
from dense_attention import filled, pair_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regard import ArgumentError
from regard.positions import ContinuousBias


def one_distance(position, distance):
    """W2 relu(W1 x + b1), channel by channel."""
    x = math.copysign(math.log(1 + abs(distance)), distance) if position.log_spaced else float(distance)
    inner = [max(0.0, float(w) * x + float(b)) for w, b in zip(position.inner_weight, position.inner_bias, strict=True)]
    return [sum(float(w) * h for w, h in zip(row, inner, strict=True)) for row in position.outer_weight]


@pytest.mark.parametrize("log_spaced", [True, False])
@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@settings(derandomize=True, max_examples=8, deadline=None)
@given(q_len=st.integers(1, 6), kv_len=st.integers(1, 6))
def test_each_pair(log_spaced, align, q_len, kv_len):
    position = filled(ContinuousBias(2, hidden=5, log_spaced=log_spaced, align=align)).requires_grad_(
        requires_grad=False
    )
    bias = position.distance_bias(pair_distances(position, q_len, kv_len).flatten()).reshape(2, q_len, kv_len)
    offset = kv_len - q_len if align == "bottom_right" else 0
    for query in range(q_len):
        for key in range(kv_len):
            expected = one_distance(position, key - (query + offset))
            assert bias[:, query, key].tolist() == pytest.approx(expected, abs=1e-12)


def test_is_the_network_of_swin_v2():
    """Linear(1, hidden), ReLU, Linear(hidden, heads, bias=False), fed the signed logarithm."""
    position = filled(ContinuousBias(3, hidden=16))
    network = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)).double()
    names = ("inner_weight", "inner_bias", "outer_weight")
    for name, parameter in zip(names, network.parameters(), strict=True):
        parameter.data = getattr(position, name).detach()
    distance = torch.arange(-100, 101)
    fed = distance.double().sign() * (1 + distance.double().abs()).log()
    torch.testing.assert_close(position.distance_bias(distance), network(fed[:, None]).T, atol=1e-12, rtol=0)


def test_half_types_round_only_the_result():
    position = filled(ContinuousBias(4)).bfloat16()
    distance = torch.arange(-2000, -1900)
    exact = position.double().distance_bias(distance)
    rounded = position.bfloat16().distance_bias(distance)
    torch.testing.assert_close(rounded.double(), exact, rtol=2**-8, atol=1e-6)


def test_repr():
    assert repr(ContinuousBias(4)) == "ContinuousBias(heads=4, hidden=512, log_spaced=True)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "ContinuousBias heads: expected an int >= 1, got 0."),
        ({"hidden": 0}, "ContinuousBias hidden: expected an int >= 1, got 0."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError) as error:
        ContinuousBias(**{"heads": 2, **arguments})
    assert str(error.value).startswith(message)
