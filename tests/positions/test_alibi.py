"""ALiBi against the paper's numbers, a per-pair loop, and transformers' Bloom and MPT."""

import pytest
import torch
from dense_attention import pair_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from regard import ArgumentError
from regard.positions import ALiBi

EIGHT = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
# Twelve heads: the eight above, then the 1st, 3rd, 5th, 7th slope of sixteen heads.
TWELVE = [*EIGHT, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


@pytest.mark.parametrize(("heads", "slopes"), [(8, EIGHT), (12, TWELVE), (1, [1 / 256]), (3, [1 / 16, 1 / 256, 1 / 4])])
def test_slopes_are_those_of_the_paper(heads, slopes):
    torch.testing.assert_close(ALiBi(heads).slopes, torch.tensor(slopes))


def pair_value(form, slope, key, query):
    """One pair, from the definition in words."""
    if form == "causal":
        return -slope * (query - key) if key <= query else 0.0
    return -slope * abs(query - key)


@pytest.mark.parametrize("form", ["causal", "symmetric"])
@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@settings(derandomize=True, max_examples=25, deadline=None)
@given(heads=st.integers(1, 7), q_len=st.integers(1, 9), kv_len=st.integers(1, 9))
def test_each_pair(form, align, heads, q_len, kv_len):
    position = ALiBi(heads, form=form, align=align).double()
    bias = position.distance_bias(pair_distances(position, q_len, kv_len).flatten()).reshape(heads, q_len, kv_len)
    offset = kv_len - q_len if align == "bottom_right" else 0
    for head in range(heads):
        slope = float(position.slopes[head])
        for query in range(q_len):
            for key in range(kv_len):
                expected = pair_value(form, slope, key, query + offset)
                assert bias[head, query, key].item() == pytest.approx(expected, abs=1e-12)


def test_asymmetric_has_a_slope_for_each_side():
    position = ALiBi(2, form="asymmetric", slopes=torch.tensor([[0.5, 0.25], [1.0, 0.0]], dtype=torch.float64))
    bias = position.distance_bias(torch.tensor([-3, 0, 2]))
    assert bias.tolist() == [[-1.5, 0.0, -2.0], [-0.75, 0.0, 0.0]]


def test_asymmetric_begins_symmetric():
    distance = torch.arange(-5, 6)
    assert torch.equal(
        ALiBi(6, form="asymmetric").distance_bias(distance), ALiBi(6, form="symmetric").distance_bias(distance)
    )


def seen_by_the_last_query(position, length):
    return position.distance_bias(torch.arange(length) - (length - 1))


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 20, 71])
def test_equals_bloom_and_mpt_up_to_a_constant_for_each_row(heads):
    """Both libraries drop a term that is the same for all keys of a query, which softmax does not see."""
    length, position = 17, ALiBi(heads)
    own = seen_by_the_last_query(position, length)
    bloom = build_alibi_tensor(torch.ones(1, length), heads, torch.float32)[:, 0]
    mpt = build_mpt_alibi_tensor(heads, length)[:, 0]
    torch.testing.assert_close(own, bloom - bloom[:, -1:], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(own, mpt, atol=1e-5, rtol=1e-6)


def test_half_types_round_only_the_product():
    """bfloat16 holds no 1001: were the distance rounded first, its bias would be that of 1000."""
    position, distance = ALiBi(12).bfloat16(), torch.arange(-2000, 1)
    exact = position.slopes.double()[:, None] * distance
    assert torch.equal(position.distance_bias(distance), exact.bfloat16())


def test_distance_zero_is_plain_zero():
    for form in ("causal", "symmetric", "asymmetric"):
        zero = ALiBi(2, form=form).distance_bias(torch.tensor([0]))
        assert torch.equal(zero, torch.zeros(2, 1))
        assert not torch.signbit(zero).any()


def test_learnable_slopes_are_parameters_and_fixed_ones_are_not_saved():
    assert list(ALiBi(4, learnable=True).state_dict()) == ["slopes"]
    assert not ALiBi(4).state_dict()
    assert not list(ALiBi(4).parameters())


def test_given_slopes_are_copied():
    slopes = torch.ones(2)
    position = ALiBi(2, slopes=slopes, learnable=True)
    slopes.zero_()
    assert position.slopes.tolist() == [1.0, 1.0]


def test_repr():
    assert repr(ALiBi(8)) == "ALiBi(heads=8, form='causal')"
    assert (
        repr(ALiBi(2, form="symmetric", learnable=True, align="top_left"))
        == "ALiBi(heads=2, form='symmetric', learnable=True, align='top_left')"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "ALiBi heads: expected an int >= 1, got 0. Give heads as a whole number of at least 1."),
        ({"heads": -2}, "ALiBi heads: expected an int >= 1, got -2."),
        ({"heads": True}, "ALiBi heads: expected an int >= 1, got True."),
        (
            {"heads": 2, "form": "cross"},
            "ALiBi form: expected one of 'causal', 'symmetric', 'asymmetric', got 'cross'. Give one of these as form.",
        ),
        ({"heads": 2, "align": "left"}, "ALiBi align: expected one of None, 'top_left', 'bottom_right', got 'left'."),
        (
            {"heads": 2, "slopes": [1.0]},
            (
                "ALiBi slopes: expected size (2,) for 2 heads, form='causal', got size (1,). "
                "Give one slope for each query head."
            ),
        ),
        (
            {"heads": 2, "slopes": [1.0], "form": "asymmetric"},
            "ALiBi slopes: expected size (2,) or size (2, 2) for 2 heads, form='asymmetric', got size (1,).",
        ),
        (
            {"heads": 2, "slopes": [1.0, -0.5]},
            (
                "ALiBi slopes: expected finite numbers >= 0, got -0.5 .. 1.0. "
                "Give the penalty for one step of distance; the minus sign is added here."
            ),
        ),
        ({"heads": 1, "slopes": [float("inf")]}, "ALiBi slopes: expected finite numbers >= 0, got inf .. inf."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError) as error:
        ALiBi(**arguments)
    assert str(error.value).startswith(message)
