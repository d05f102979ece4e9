"""RoPE against complex numbers, a loop over channels, and transformers' two conventions."""

import cmath

import pytest
import torch
from dense_attention import dense_scores, unit_normal
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.cohere import modeling_cohere
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from regard import ArgumentError, ShapeError
from regard.positions import DynamicNTKScaling, LinearScaling, LongRoPEScaling, RoPE, YaRNScaling

LONG = LongRoPEScaling((1.0, 1.5), (2.0, 4.0), original_length=8, factor=4.0)
STYLES = ["half", "interleaved"]


def turned_channel_pairs(vector, position, dim, style, base):
    """One vector turned pair by pair, each pair a complex number."""
    turned = list(vector)
    for c in range(dim // 2):
        first, second = (c, c + dim // 2) if style == "half" else (2 * c, 2 * c + 1)
        spun = complex(vector[first], vector[second]) * cmath.exp(1j * position * base ** (-2 * c / dim))
        turned[first], turned[second] = spun.real, spun.imag
    return turned


@pytest.mark.parametrize("style", STYLES)
@settings(derandomize=True, max_examples=20, deadline=None)
@given(dim=st.sampled_from([2, 4, 8]), rest=st.sampled_from([0, 1, 5]), start=st.integers(-5, 1000))
def test_each_channel_pair(style, dim, rest, start):
    states = unit_normal(1, 2, 3, dim + rest)
    positions = torch.arange(start, start + 3)
    own = RoPE(dim, style=style, base=100.0).rotate(states, positions)
    for head in range(2):
        for i in range(3):
            expected = turned_channel_pairs(states[0, head, i].tolist(), start + i, dim, style, 100.0)
            assert own[0, head, i].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@pytest.mark.parametrize("scaling", [None, LinearScaling(2.0), YaRNScaling(4.0, 16)])
@settings(derandomize=True, max_examples=6, deadline=None)
@given(q_len=st.integers(1, 9), kv_len=st.integers(1, 9))
def test_scores_depend_on_distance_only(style, align, scaling, q_len, kv_len):
    """The same query and the same key everywhere: pairs at one distance must have one score."""
    position = RoPE(4, style=style, base=50.0, scaling=scaling, align=align)
    query = unit_normal(1, 1, 1, 6, seed=1).expand(1, 1, q_len, 6)
    key = unit_normal(1, 1, 1, 6, seed=2).expand(1, 1, kv_len, 6)
    scores = dense_scores(query, key, position)[0, 0]
    offset = kv_len - q_len if align == "bottom_right" else 0
    at_distance = {}
    for i in range(q_len):
        for j in range(kv_len):
            seen = at_distance.setdefault(j - i - offset, scores[i, j].item())
            assert scores[i, j].item() == pytest.approx(seen, abs=1e-12)
    far = unit_normal(1, 1, 2, 6, seed=3)
    near_pair = position.rotate(far, torch.tensor([3, 7]))
    far_pair = position.rotate(far, torch.tensor([100_003, 100_007]))
    assert (near_pair[0, 0, 0] @ near_pair[0, 0, 1]).item() == pytest.approx(
        (far_pair[0, 0, 0] @ far_pair[0, 0, 1]).item(), abs=1e-9
    )


def cos_sin(dim, length):
    angles = torch.arange(length).double()[:, None] * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    return angles.cos()[None], angles.sin()[None]


def test_half_is_the_llama_convention():
    query, key = unit_normal(2, 3, 11, 8), unit_normal(2, 3, 11, 8, seed=1)
    cos, sin = (torch.cat([table, table], dim=-1) for table in cos_sin(8, 11))
    theirs = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin)
    for own, expected in zip((query, key), theirs, strict=True):
        torch.testing.assert_close(RoPE(8).rotate(own, torch.arange(11)), expected, atol=1e-12, rtol=0)


def test_interleaved_is_the_cohere_convention():
    query, key = unit_normal(2, 3, 11, 8).float(), unit_normal(2, 3, 11, 8, seed=1).float()
    cos, sin = (table.repeat_interleave(2, dim=-1).float() for table in cos_sin(8, 11))
    theirs = modeling_cohere.apply_rotary_pos_emb(query, key, cos, sin)
    for own, expected in zip((query, key), theirs, strict=True):
        mine = RoPE(8, style="interleaved").rotate(own, torch.arange(11))
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)


def test_interleaved_is_the_gptj_convention_also_in_part():
    """GPT-J turns the first rotary_dim channels; its states are (batch, length, heads, head_dim)."""
    states = unit_normal(2, 3, 11, 10)
    cos, sin = cos_sin(6, 11)
    turned = modeling_gptj.apply_rotary_pos_emb(states.transpose(1, 2)[..., :6], sin, cos).transpose(1, 2)
    own = RoPE(6, style="interleaved").rotate(states, torch.arange(11))
    torch.testing.assert_close(own, torch.cat([turned, states[..., 6:]], dim=-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_only_the_result_is_rounded(style, dtype):
    """Far positions too: the angle is never held in the dtype of the states, nor in float32."""
    states, positions = unit_normal(1, 1, 4, 9, dtype=dtype), torch.tensor([0, 1, 4097, 100_003])
    position = RoPE(8, style=style).to(dtype)
    own = position.rotate(states, positions)
    exact = RoPE(8, style=style).rotate(states.double(), positions)
    assert own.dtype == dtype
    assert torch.equal(own[..., 8:], states[..., 8:])
    torch.testing.assert_close(own.double(), exact, rtol=torch.finfo(dtype).eps, atol=2e-7)


def test_position_zero_changes_nothing():
    states = unit_normal(1, 2, 1, 8)
    assert torch.equal(RoPE(8).rotate(states, torch.tensor([0])), states)


def test_an_empty_text_stays_empty():
    assert RoPE(4, scaling=LONG).rotate(torch.zeros(1, 2, 0, 4), torch.arange(0)).shape == (1, 2, 0, 4)


@pytest.mark.parametrize("scaling", [LONG, DynamicNTKScaling(3.0, original_length=8)])
def test_the_length_of_the_text_is_its_last_position_plus_one(scaling):
    position, states = RoPE(4, scaling=scaling), unit_normal(1, 1, 9, 4)
    short, beyond = position.rotate(states[:, :, :8], torch.arange(8)), position.rotate(states, torch.arange(9))
    assert not torch.allclose(short, beyond[:, :, :8])
    assert torch.equal(short, position.rotate(states[:, :, :8], torch.arange(8), length=3))
    # Some rows only: the length says which text they are of.
    assert torch.equal(position.rotate(states[:, :, 2:5], torch.arange(2, 5), length=9), beyond[:, :, 2:5])


def test_bottom_right_gives_queries_and_keys_one_length():
    position = RoPE(4, scaling=LONG, align="bottom_right")
    one = unit_normal(1, 1, 1, 4, seed=1)
    scores = dense_scores(one, one.expand(1, 1, 20, 4), position)[0, 0, 0]
    assert scores[-1].item() == pytest.approx((one * one).sum().item() * LONG.amplitude() ** 2, abs=1e-12)


def check(position, *, head_dim=8, q_len=5, kv_len=5):
    position.check(heads=3, head_dim=head_dim, value_dim=8, q_len=q_len, kv_len=kv_len)


def test_check_refuses_more_channels_than_there_are():
    with pytest.raises(ShapeError) as error:
        check(RoPE(8), head_dim=7)
    assert str(error.value) == (
        "RoPE dim: expected at most 7, the head_dim of query and key, got 8. Build the position with dim=6 or less."
    )


def test_check_refuses_a_text_of_two_lengths():
    with pytest.raises(ShapeError) as error:
        check(RoPE(4, scaling=LONG, align="top_left"), q_len=4, kv_len=9)
    assert str(error.value) == (
        "RoPE with LongRoPEScaling, whose frequencies depend on the length of the text: expected queries that end "
        "where the keys end, got align='top_left' with q_len 4 and kv_len 9. "
        "Say align='bottom_right', or take a scaling that is the same for every length."
    )
    check(RoPE(4, scaling=LONG, align="bottom_right"), q_len=4, kv_len=9)
    check(RoPE(4, scaling=LinearScaling(2.0), align="top_left"), q_len=4, kv_len=9)


def test_repr():
    assert repr(RoPE(8)) == "RoPE(dim=8, style='half', base=10000.0)"
    assert (
        repr(RoPE(8, style="interleaved", scaling=LinearScaling(4.0), align="top_left"))
        == "RoPE(dim=8, style='interleaved', base=10000.0, scaling=LinearScaling(factor=4.0), align='top_left')"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dim": 7},
            "RoPE dim: expected an even int, since it is split in two halves, got 7. Take 6 or 8 as dim.",
        ),
        ({"dim": 0}, "RoPE dim: expected an int >= 2, got 0."),
        ({"dim": 8.0}, "RoPE dim: expected an int >= 2, got 8.0."),
        ({"style": "neox"}, "RoPE style: expected one of 'half', 'interleaved', got 'neox'."),
        ({"base": 1}, "RoPE base: expected a finite number > 1, got 1. Give base as a number > 1."),
        ({"base": float("nan")}, "RoPE base: expected a finite number > 1, got nan."),
        ({"scaling": {"rope_type": "linear"}}, "RoPE scaling: expected a RoPEScaling such as YaRNScaling(4.0, "),
        (
            {"scaling": LONG},
            (
                "LongRoPEScaling short_factor: expected 4 numbers, one for each channel pair of RoPE dim 8, "
                "got 2 numbers. Take dim = 2 * the number of factors."
            ),
        ),
        (
            {"dim": 2, "scaling": DynamicNTKScaling(2.0, 8)},
            "DynamicNTKScaling with RoPE dim: expected at least 4, since the slowest of several pairs is scaled, ",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError) as error:
        RoPE(**{"dim": 8, **arguments})
    assert str(error.value).startswith(message)
