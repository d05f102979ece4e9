"""The content term as two factors: the query that meets the distances, and a vector for each distance."""

import pytest
import torch
from dense_attention import filled, unit_normal

from regard.positions import ALiBi, Shaw, TransformerXL
from regard.positions._base import Position

HEADS, WIDTH, ROWS = 2, 4, 5
DISTANCES = torch.tensor([-90, -9, -3, -2, -1, 0, 1, 2, 3, 8, 70])
MAKERS = {
    "shaw": lambda: Shaw(WIDTH, 2),
    "shaw-keys": lambda: Shaw(WIDTH, 20, values=False),
    "shaw-one-row": lambda: Shaw(WIDTH, 0),
    "transformer-xl": lambda: TransformerXL(HEADS, WIDTH),
    "transformer-xl-wide": lambda: TransformerXL(HEADS, WIDTH, embed_dim=18, base=50.0),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def product(position, query, distance):
    return torch.einsum(
        "bhqd,hnd->bhqn",
        position.distance_query(query),
        position.distance_keys(distance).expand(HEADS, -1, -1),
    )


@every
def test_scores_are_the_product_of_the_factors(make):
    position, query = filled(make()), unit_normal(3, HEADS, ROWS, WIDTH)
    assert position.distance_query(query).shape == query.shape
    assert position.distance_keys(DISTANCES).shape in {(heads, len(DISTANCES), WIDTH) for heads in (1, HEADS)}
    scores = position.distance_scores(query, DISTANCES)
    torch.testing.assert_close(scores, product(position, query, DISTANCES), atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(scores, Position.distance_scores(position, query, DISTANCES), atol=1e-13, rtol=1e-13)


@every
def test_gradients_are_those_of_the_scores(make):
    position = filled(make())
    query, pull = unit_normal(1, HEADS, ROWS, WIDTH).requires_grad_(), unit_normal(1, HEADS, ROWS, len(DISTANCES))
    named = {name: table for name, table in position.named_parameters() if name not in {"value_table", "key_bias"}}
    leaves = [query, *named.values()]
    by_factors = torch.autograd.grad((product(position, query, DISTANCES) * pull).sum(), leaves)
    by_scores = torch.autograd.grad((position.distance_scores(query, DISTANCES) * pull).sum(), leaves)
    assert len(by_scores) > 1
    for own, expected in zip(by_factors, by_scores, strict=True):
        assert own.abs().sum() > 0
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-12)


@every
@pytest.mark.parametrize("states", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(make, states, parameters):
    position, query = make().to(parameters), unit_normal(1, HEADS, ROWS, WIDTH, dtype=states)
    wider = torch.promote_types(states, parameters)
    assert position.distance_query(query).dtype == wider
    assert position.distance_scores(query, DISTANCES).dtype == wider
    assert position.distance_keys(DISTANCES).dtype == parameters
    assert position.distance_keys(DISTANCES, dtype=torch.float64).dtype == torch.float64


@every
def test_the_wider_dtype_is_computed_in_and_not_only_answered_in(make):
    """Parameters in half precision and a query in double: only the parameters themselves may be rounded."""
    half = make().to(torch.bfloat16)
    query = unit_normal(1, HEADS, ROWS, WIDTH)
    double = make().double()
    double.load_state_dict(half.state_dict())
    expected = double.distance_scores(query, DISTANCES)
    torch.testing.assert_close(half.distance_scores(query, DISTANCES), expected, atol=1e-13, rtol=1e-13)
    keys = half.distance_keys(DISTANCES, dtype=torch.float64)
    torch.testing.assert_close(keys, double.distance_keys(DISTANCES), atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("position", [ALiBi(HEADS), Shaw(WIDTH, 2, keys=False)], ids=repr)
def test_without_a_content_term_there_are_no_factors(position):
    for ask in (
        lambda: position.distance_query(torch.zeros(1, HEADS, ROWS, WIDTH)),
        lambda: position.distance_keys(DISTANCES),
        lambda: position.distance_scores(torch.zeros(1, HEADS, ROWS, WIDTH), DISTANCES),
    ):
        with pytest.raises(TypeError, match="has no content term"):
            ask()


def test_no_distances():
    for make in MAKERS.values():
        assert make().distance_scores(torch.zeros(1, HEADS, ROWS, WIDTH), DISTANCES[:0]).shape == (1, HEADS, ROWS, 0)
