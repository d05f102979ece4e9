"""From one RoPE convention to the other: the scores stay, and so does the model."""

import pytest
import torch
from dense_attention import unit_normal

from regard import ArgumentError, ShapeError
from regard.positions import RoPE, half_to_interleaved, interleaved_to_half

DIMS = [(8, None), (8, 8), (8, 4), (9, 6), (2, 2)]


def projected_scores(tokens, q_weight, k_weight, heads, kv_heads, position):
    """Scores of a layer with grouped keys, (batch, heads, length, length)."""
    places = torch.arange(tokens.shape[1])
    query = (tokens @ q_weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)
    key = (tokens @ k_weight.T).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
    key = position.rotate(key, places).repeat_interleave(heads // kv_heads, dim=1)
    return position.rotate(query, places) @ key.mT


@pytest.mark.parametrize(("head_dim", "dim"), DIMS)
def test_a_model_keeps_its_scores(head_dim, dim):
    heads, kv_heads, width = 4, 2, 5
    tokens = unit_normal(2, 6, width)
    q_weight, k_weight = unit_normal(heads * head_dim, width, seed=1), unit_normal(kv_heads * head_dim, width, seed=2)
    turned = head_dim if dim is None else dim
    half = projected_scores(tokens, q_weight, k_weight, heads, kv_heads, RoPE(turned))
    interleaved = projected_scores(
        tokens,
        half_to_interleaved(q_weight, heads=heads, dim=dim),
        half_to_interleaved(k_weight, heads=kv_heads, dim=dim),
        heads,
        kv_heads,
        RoPE(turned, style="interleaved"),
    )
    torch.testing.assert_close(half, interleaved, atol=1e-12, rtol=1e-12)
    if turned > 2:  # one pair is the same in both conventions
        unconverted = projected_scores(tokens, q_weight, k_weight, heads, kv_heads, RoPE(turned, style="interleaved"))
        assert not torch.allclose(half, unconverted)


@pytest.mark.parametrize(("head_dim", "dim"), DIMS)
def test_one_undoes_the_other(head_dim, dim):
    weight = unit_normal(3 * head_dim, 4)
    there = half_to_interleaved(weight, heads=3, dim=dim)
    assert torch.equal(interleaved_to_half(there, heads=3, dim=dim), weight)
    back = interleaved_to_half(weight, heads=3, dim=dim)
    assert torch.equal(half_to_interleaved(back, heads=3, dim=dim), weight)


def test_states_and_rotation_commute():
    states, places = unit_normal(2, 3, 5, 8), torch.arange(5)
    own = RoPE(6, style="interleaved").rotate(half_to_interleaved(states, dim=6, axis=-1), places)
    expected = half_to_interleaved(RoPE(6).rotate(states, places), dim=6, axis=-1)
    torch.testing.assert_close(own, expected, atol=1e-12, rtol=0)


def test_by_hand():
    assert half_to_interleaved(torch.arange(6)).tolist() == [0, 3, 1, 4, 2, 5]
    assert interleaved_to_half(torch.arange(6)).tolist() == [0, 2, 4, 1, 3, 5]
    assert half_to_interleaved(torch.arange(10), heads=2, dim=4).tolist() == [0, 2, 1, 3, 4, 5, 7, 6, 8, 9]


@pytest.mark.parametrize("convert", [half_to_interleaved, interleaved_to_half])
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"heads": 5},
            ShapeError,
            (
                " axis 0: expected a multiple of heads=5, got 12. "
                "Give the number of heads of this projection; k_proj has the key heads."
            ),
        ),
        ({"heads": 2, "dim": 8}, ShapeError, " dim: expected at most head_dim=6, got 8. Give the dim of the RoPE."),
        ({"heads": 4}, ArgumentError, " dim: expected an even int, since it is split in two halves, got 3."),
        ({"heads": 0}, ArgumentError, " heads: expected an int >= 1, got 0."),
    ],
)
def test_wrong_arguments(convert, options, kind, message):
    with pytest.raises(kind) as error:
        convert(torch.zeros(12, 3), **options)
    assert str(error.value).startswith(convert.__name__ + message)
