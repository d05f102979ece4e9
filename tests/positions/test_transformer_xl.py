"""Transformer-XL's scores against the paper's sum, pair by pair."""

import math

import pytest
import torch
from dense_attention import dense_scores, filled, unit_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import ArgumentError, ShapeError
from regard.positions import TransformerXL
from regard.positions.transformer_xl import sinusoid


def relative_row(steps, width, base=10000.0):
    """R of the paper at i - j = steps: sines, then cosines."""
    angles = [steps / base ** (2 * c / width) for c in range(width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@settings(derandomize=True, max_examples=10, deadline=None)
@given(q_len=st.integers(1, 6), kv_len=st.integers(1, 6))
def test_each_pair(align, q_len, kv_len):
    heads, head_dim, width = 2, 3, 4
    position = filled(TransformerXL(heads, head_dim, embed_dim=width, align=align))
    query, key = unit_normal(1, heads, q_len, head_dim, seed=7), unit_normal(1, heads, kv_len, head_dim, seed=8)
    own = dense_scores(query, key, position, scale=0.7)
    offset = kv_len - q_len if align == "bottom_right" else 0
    for head in range(heads):
        u, v = position.key_bias[head], position.distance_query_bias[head]
        projection = position.projection[head * head_dim : (head + 1) * head_dim]
        for i in range(q_len):
            for j in range(kv_len):
                q, k = query[0, head, i], key[0, head, j]
                row = projection @ relative_row(i + offset - j, width)
                # (a) q.k, (b) q.W R, (c) u.k, (d) v.W R
                expected = 0.7 * ((q * k).sum() + (q * row).sum() + (u * k).sum() + (v * row).sum())
                assert own[0, head, i, j].item() == pytest.approx(expected.item(), abs=1e-12)


def test_before_and_after_differ():
    """A sign error in the distance would show only here: cosines are even, sines are not."""
    scores = filled(TransformerXL(2, 3)).distance_scores(unit_normal(1, 2, 1, 3), torch.tensor([-2, 2]))
    assert not torch.allclose(scores[..., 0], scores[..., 1])


def test_sinusoid_by_hand():
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]])
    torch.testing.assert_close(sinusoid(torch.tensor([0, 1]), 4, 10000.0), expected.double(), atol=1e-7, rtol=0)


def test_embed_dim_is_by_default_the_models_width():
    assert TransformerXL(4, 6).projection.shape == (24, 24)


def test_check_refuses_another_head_dim():
    with pytest.raises(ShapeError) as error:
        TransformerXL(2, 4).check(heads=2, head_dim=8, value_dim=8, q_len=3, kv_len=3)
    assert str(error.value) == (
        "TransformerXL head_dim: expected 8, as query has, got 4. Build the position with head_dim=8."
    )


def test_repr():
    assert repr(TransformerXL(2, 4)) == "TransformerXL(heads=2, head_dim=4, embed_dim=8, base=10000.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "TransformerXL heads: expected an int >= 1, got 0."),
        ({"head_dim": 0}, "TransformerXL head_dim: expected an int >= 1, got 0."),
        (
            {"embed_dim": 7},
            (
                "TransformerXL embed_dim: expected an even int, since it is split in two halves, got 7. "
                "Take 6 or 8 as embed_dim."
            ),
        ),
        ({"base": 1.0}, "TransformerXL base: expected a finite number > 1, got 1.0."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError) as error:
        TransformerXL(**{"heads": 2, "head_dim": 4, **arguments})
    assert str(error.value).startswith(message)
