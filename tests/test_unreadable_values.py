"""Where values cannot be read (torch.compile, vmap) the rules for NaN hold all the same, or it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import regard
from regard.masks import Causal

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def states() -> list[Tensor]:
    return [torch.randn(1, 2, 4, 4) for _ in range(3)]


def compiled(attend: Attend) -> Attend:
    return torch.compile(attend, fullgraph=True, backend="aot_eager")


def mapped(attend: Attend) -> Attend:
    return lambda query, key, value: torch.vmap(attend)(query[None], key[None], value[None])[0]


# torch says that its vmap over the fused kernel is a loop.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

WAYS = pytest.mark.parametrize("way", [compiled, mapped])


@WAYS
def test_f33_a_key_that_only_the_bias_forbids_has_no_influence(way: Callable[[Attend], Attend]) -> None:
    query, key, value = states()
    bias = torch.zeros(1, 1, 1, 4)
    bias[..., 3] = -math.inf

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return regard.attention(query, key, value, bias=bias)

    clean = attend(query, key, value)
    key[:, :, 3], value[:, :, 3] = math.nan, math.nan
    torch.testing.assert_close(way(attend)(query, key, value), clean)


@WAYS
def test_f31_a_query_that_the_bias_leaves_nothing_to_see_is_zero(way: Callable[[Attend], Attend]) -> None:
    query, key, value = states()
    query[:, :, 1] = math.nan
    bias = torch.zeros(1, 1, 4, 1)
    bias[:, :, 1] = -math.inf
    output = way(lambda *states: regard.attention(*states, bias=bias))(query, key, value)
    assert torch.equal(output[:, :, 1], torch.zeros(1, 2, 4))
    assert bool(output.isfinite().all())


@WAYS
def test_the_lse_does_not_depend_on_the_values(way: Callable[[Attend], Attend]) -> None:
    query, key, value = states()

    def lse(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return regard.attention(query, key, value, mask=Causal(), return_lse=True)[1]

    clean = lse(query, key, value)
    value[0, 0, 2, 0] = math.nan
    torch.testing.assert_close(way(lse)(query, key, value), clean)


@WAYS
def test_flex_is_never_chosen_there(way: Callable[[Attend], Attend]) -> None:
    query, key, value = states()
    output = way(lambda *states: regard.attention(*states, mask=Causal(), softcap=3.0))(query, key, value)
    torch.testing.assert_close(output, regard.attention(query, key, value, mask=Causal(), softcap=3.0))


def test_flex_refuses_vmap_over_any_input() -> None:
    query, key, value = states()
    with pytest.raises(regard.UnsupportedError, match=r"inside torch\.compile and vmap"):
        mapped(lambda *states: regard.attention(*states, backend="flex"))(query, key, value)
    with pytest.raises(regard.UnsupportedError, match=r"inside torch\.compile and vmap"):
        torch.vmap(lambda bias: regard.attention(query, key, value, bias=bias, backend="flex"))(torch.randn(2, 4, 4))


@pytest.mark.parametrize("backend", ["native", "sdpa", "eager", "flex"])
def test_f29_a_wider_bias_beyond_the_range_forbids_on_every_backend(backend: str) -> None:
    query, key, value = states()
    bias = torch.randn(4, 4, dtype=torch.float64)
    bias[3] = torch.finfo(torch.float64).min
    output = regard.attention(query, key, value, bias=bias, backend=backend)
    assert torch.equal(output[:, :, 3], torch.zeros(1, 2, 4))
    exact = regard.reference.attention(query, key, value, bias=bias).output
    torch.testing.assert_close(output, exact)


def test_dispatch_draws_nothing() -> None:
    query, key, value = states()
    before = torch.get_rng_state()
    regard.dispatch(query, key, value, dropout_p=0.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_negative_seed_is_refused_in_either_form() -> None:
    for seed in (-1, torch.tensor(-1)):
        with pytest.raises(regard.ArgumentError, match="seed: expected an integer from 0"):
            regard.attention(*states(), dropout_p=0.1, seed=seed)


def test_a_missing_tensor_inside_autocast_is_a_shape_error() -> None:
    query, _, value = states()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(regard.ShapeError, match="key: expected a torch"):
        regard.attention(query, None, value)
