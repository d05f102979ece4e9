"""Shaw's relative representations against a loop over pairs."""

import pytest
import torch
from dense_attention import dense_attention, filled, unit_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import ArgumentError, ShapeError
from regard.positions import Shaw


def loop_attention(query, key, value, position, offset, scale):
    """Equations 3 and 4 of the paper, pair by pair, for one batch entry and one head."""
    reach = position.max_distance
    rows = []
    for i in range(query.shape[0]):
        at = [max(-reach, min(reach, j - (i + offset))) + reach for j in range(key.shape[0])]
        scores = []
        for j, row in enumerate(at):
            relative = key[j] + position.key_table[row] if position.key_table is not None else key[j]
            scores.append(scale * (query[i] * relative).sum())
        weights = torch.stack(scores).softmax(0)
        values = [
            v + position.value_table[row] if position.value_table is not None else v
            for v, row in zip(value, at, strict=True)
        ]
        rows.append(sum(weight * v for weight, v in zip(weights, values, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@pytest.mark.parametrize(("keys", "values"), [(True, True), (True, False), (False, True)])
@settings(derandomize=True, max_examples=8, deadline=None)
@given(q_len=st.integers(1, 7), kv_len=st.integers(1, 7), reach=st.integers(0, 4))
def test_each_pair(align, keys, values, q_len, kv_len, reach):
    position = filled(Shaw(4, reach, keys=keys, values=values, align=align))
    query = unit_normal(2, 2, q_len, 4, seed=1)
    key, value = unit_normal(2, 2, kv_len, 4, seed=2), unit_normal(2, 2, kv_len, 4, seed=3)
    own = dense_attention(query, key, value, position, scale=0.5)
    offset = kv_len - q_len if align == "bottom_right" else 0
    for batch in range(2):
        for head in range(2):
            at = batch, head
            expected = loop_attention(query[at], key[at], value[at], position, offset, 0.5)
            torch.testing.assert_close(own[at], expected, atol=1e-12, rtol=1e-12)


def test_terms():
    assert Shaw(4, 2).terms == {"content", "value"}
    assert Shaw(4, 2, values=False).terms == {"content"}
    assert Shaw(4, 2, keys=False).terms == {"value"}


def test_value_dim_of_its_own():
    assert Shaw(4, 2, value_dim=7).distance_values(torch.arange(-5, 6)).shape == (11, 7)
    assert Shaw(4, 2, value_dim=7).distance_scores(torch.zeros(1, 1, 3, 4), torch.arange(-5, 6)).shape == (1, 1, 3, 11)


def test_distances_beyond_the_reach_are_clipped():
    values = Shaw(4, 2).distance_values(torch.tensor([-99, -2, 2, 99]))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[2], values[3])
    assert not torch.equal(values[1], values[2])


def test_repr():
    assert repr(Shaw(8, 16)) == "Shaw(head_dim=8, max_distance=16, keys=True, values=True)"
    assert repr(Shaw(8, 4, value_dim=3)) == "Shaw(head_dim=8, max_distance=4, keys=True, values=True, value_dim=3)"


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (Shaw(5, 2), "Shaw head_dim: expected 4, as the tensors have, got 5. Build the position with head_dim=4."),
        (Shaw(4, 2), "Shaw value_dim: expected 6, as the tensors have, got 4. Build the position with value_dim=6."),
    ],
)
def test_check_refuses_another_width(position, message):
    with pytest.raises(ShapeError) as error:
        position.check(heads=3, head_dim=4, value_dim=6, q_len=5, kv_len=5)
    assert str(error.value) == message


def test_check_accepts_a_width_it_has_no_table_for():
    Shaw(4, 2, values=False).check(heads=3, head_dim=4, value_dim=6, q_len=5, kv_len=5)
    Shaw(4, 2, keys=False, value_dim=6).check(heads=3, head_dim=9, value_dim=6, q_len=5, kv_len=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 0}, "Shaw head_dim: expected an int >= 1, got 0."),
        ({"max_distance": -1}, "Shaw max_distance: expected an int >= 0, got -1."),
        ({"value_dim": 0}, "Shaw value_dim: expected an int >= 1, got 0."),
        ({"keys": False, "values": False}, "Shaw terms: expected keys=True or values=True, got both False."),
        ({"values": False, "value_dim": 3}, "Shaw value_dim: expected None with values=False, got 3."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError) as error:
        Shaw(**{"head_dim": 4, "max_distance": 2, **arguments})
    assert str(error.value).startswith(message)
