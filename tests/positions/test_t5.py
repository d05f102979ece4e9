"""T5's buckets against transformers, and the bias of each pair against a loop."""

import pytest
import torch
from dense_attention import filled, pair_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from regard import ArgumentError, ShapeError
from regard.positions import T5Bias

SIZES = [(32, 128), (16, 64), (64, 256), (8, 20), (10, 1000), (320, 800), (12, 100), (4, 3), (6, 5)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), SIZES)
def test_buckets_are_those_of_transformers(buckets, max_distance, bidirectional):
    if (buckets, bidirectional) == (320, False):
        max_distance = 1600  # so that it is more than half of the buckets
    distance = torch.arange(-300, 301) if max_distance <= 128 else torch.arange(-2000, 2001)
    position = T5Bias(1, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, max_distance)
    assert torch.equal(position.bucket(distance), expected)


def test_first_buckets_by_hand():
    """32 buckets, both directions: 8 exact ones a side, then the next begins at 8, 12, 16, 23, 32, 46, 64, 91."""
    assert T5Bias(1).first_distances == (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)
    assert T5Bias(1).bucket(torch.tensor([0, -1, 1, -11, -12, 12, -9999, 9999])).tolist() == [
        0,
        1,
        17,
        8,
        9,
        25,
        15,
        31,
    ]
    assert T5Bias(1, bidirectional=False).bucket(torch.tensor([5, 0, -1, -9999])).tolist() == [0, 0, 1, 31]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@settings(derandomize=True, max_examples=20, deadline=None)
@given(q_len=st.integers(1, 12), kv_len=st.integers(1, 12))
def test_each_pair(bidirectional, align, q_len, kv_len):
    position = filled(T5Bias(3, buckets=8, max_distance=10, bidirectional=bidirectional, align=align))
    bias = position.distance_bias(pair_distances(position, q_len, kv_len).flatten()).reshape(3, q_len, kv_len)
    offset = kv_len - q_len if align == "bottom_right" else 0
    for query in range(q_len):
        for key in range(kv_len):
            distance = torch.tensor([key - (query + offset)])
            row = int(T5Attention._relative_position_bucket(distance, bidirectional, 8, 10))
            assert torch.equal(bias[:, query, key], position.table[row])


@pytest.mark.parametrize("decoder", [True, False])
def test_from_weight_gives_the_bias_of_a_t5_layer(decoder):
    config = T5Config(d_model=16, d_kv=4, num_heads=4, is_decoder=decoder)
    layer = T5Attention(config, has_relative_attention_bias=True)
    torch.nn.init.normal_(layer.relative_attention_bias.weight)
    position = T5Bias.from_weight(layer.relative_attention_bias.weight, bidirectional=not decoder, align="top_left")
    own = position.distance_bias(pair_distances(position, 40, 200).flatten()).reshape(4, 40, 200)
    assert torch.equal(own, layer.compute_bias(40, 200)[0])


def test_from_weight_copies_and_keeps_the_dtype():
    weight = torch.randn(32, 2, dtype=torch.float64)
    position = T5Bias.from_weight(weight)
    assert position.table.dtype == torch.float64
    assert position.table.data_ptr() != weight.data_ptr()
    assert isinstance(position.table, torch.nn.Parameter)


def test_from_weight_refuses_another_size():
    with pytest.raises(ShapeError) as error:
        T5Bias.from_weight(torch.zeros(32))
    assert str(error.value) == (
        "T5Bias weight: expected size (buckets, heads), got size (32,). "
        "Give relative_attention_bias.weight as it is in the checkpoint."
    )


def test_repr():
    assert repr(T5Bias(4)) == "T5Bias(heads=4, buckets=32, max_distance=128, bidirectional=True)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "T5Bias heads: expected an int >= 1, got 0."),
        ({"buckets": 2}, "T5Bias buckets: expected an int >= 4, got 2."),
        (
            {"buckets": 33},
            (
                "T5Bias buckets: expected an even number when bidirectional, half for each side, got 33. "
                "Take 34 buckets, or bidirectional=False."
            ),
        ),
        (
            {"max_distance": 8},
            (
                "T5Bias max_distance: expected more than 8, the distances that 32 buckets tell apart exactly, got 8. "
                "Take fewer buckets or a larger max_distance."
            ),
        ),
        ({"max_distance": 16, "bidirectional": False}, "T5Bias max_distance: expected more than 16, "),
        ({"max_distance": 0}, "T5Bias max_distance: expected an int >= 1, got 0."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError) as error:
        T5Bias(**{"heads": 2, **arguments})
    assert str(error.value).startswith(message)
