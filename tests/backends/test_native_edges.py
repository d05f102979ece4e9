"""Where numbers run out of digits, and tensors that change, overlap or hide a sign: the native core against eager."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import functional

import regard
from regard.backends import _library

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))

SMALLEST = torch.finfo(torch.float32).min


def made(*lengths: int, width: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, length, width) for length in lengths]


def gradients(backend, *tensors, weights=None, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = regard.attention(*leaves, backend=backend, **options)
    return torch.autograd.grad(output, leaves, torch.ones_like(output) if weights is None else weights)


def assert_same(found, expected, tolerance=3e-6):
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("keys", [2, 7, 64, 65, 200])
@pytest.mark.parametrize("score", [SMALLEST, -1e9, -1e8, 2e7, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_row_whose_scores_are_all_huge(keys, score, dtype):
    query, key, value = (tensor.to(dtype) for tensor in made(4, keys, keys))
    bias = torch.zeros(1, 1, 4, keys)
    bias[:, :, 0] = score
    weights = torch.randn(1, 2, 4, 8).to(dtype)
    found = gradients("native", query, key, value, bias=bias, weights=weights)
    expected = gradients("eager", query, key, value, bias=bias, weights=weights)
    assert_same(found, expected, 3e-6 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("size", [1e1, 1e2, 3e2, 1e3, 3e3, 1e5])
def test_weights_in_backward_add_up_for_huge_products(size):
    query, key = (tensor * size for tensor in made(5, 7))
    value = torch.randn(1, 2, 7, 8)
    weights = torch.softmax(query.double() @ key.double().mT, -1)
    (_, _, found) = gradients("native", query, key, value, scale=1.0)
    torch.testing.assert_close(found[..., 0].double(), weights.sum(-2), rtol=0, atol=3e-5)


@pytest.mark.parametrize("keys", [8, 64, 65])
def test_a_nan_value_shows_in_the_gradients_that_it_makes_unknown(keys):
    query, key, value = made(6, keys, keys)
    value[0, 0, 3] = math.nan
    found = gradients("native", query, key, value)
    assert found[0][:, 0].isnan().all()
    assert found[1][:, 0].isnan().all()
    assert all(gradient[:, 1].isfinite().all() for gradient in found[:2])


def test_a_query_of_nan_leaves_a_key_alone_that_a_bias_forbids():
    query, key, value = made(3, 5, 5)
    query[:, :, 1] = math.nan
    bias = torch.zeros(1, 1, 1, 5)
    bias[..., 3] = -math.inf
    found = gradients("native", query, key, value, bias=bias)
    assert not found[1][:, :, 3].any()
    assert not found[2][:, :, 3].any()
    assert found[1][:, :, 0].isnan().all()


def test_statistics_leave_out_a_key_of_nan_that_a_bias_forbids():
    query, key = made(2, 8)
    key[:, :, 3] = math.nan
    bias = torch.zeros(1, 1, 2, 8)
    bias[..., 3] = -math.inf
    received = regard.statistics(query, key, bias=bias).received
    assert received is not None
    assert received.isfinite().all()
    assert not received[..., 3].any()


@pytest.mark.parametrize("size", [1e3, 1e4, 1e6, 1e9])
def test_gradient_of_a_sink_among_large_scores(size):
    _, key, value = made(4, 6, 6)
    found = []
    for backend in ("native", "eager"):
        sink = torch.full((2,), size, requires_grad=True)
        bias = torch.full((1, 1, 1, 6), size)
        output = regard.attention(torch.zeros(1, 2, 4, 8), key, value, bias=bias, sink=sink, backend=backend)
        found += torch.autograd.grad(output.sum(), sink)
    torch.testing.assert_close(*found, rtol=3e-6, atol=0)


def test_a_sink_of_infinity_takes_everything():
    output, lse = regard.attention(*made(4, 6, 6), sink=torch.full((2,), math.inf), backend="native", return_lse=True)
    assert not output.any()
    assert (lse == math.inf).all()


@pytest.mark.parametrize("scale", [1e-46, 1e-40])
def test_a_scale_that_is_almost_zero(scale):
    tensors = made(4, 6, 6)
    mask = regard.masks.Causal(align="bottom_right")
    found = regard.attention(*tensors, scale=scale, mask=mask, backend="native")
    torch.testing.assert_close(found, regard.attention(*tensors, scale=scale, mask=mask, backend="eager"))


def test_a_view_that_overlaps_itself():
    query = torch.randn(1, 2, 10).unfold(-1, 8, 1)
    key = torch.randn(1, 2, 9, 8)
    found = gradients("native", query, key, key)
    assert_same(found, gradients("eager", query.clone(), key, key))
    output = regard.attention(query, key, key, backend="native")
    torch.testing.assert_close(output, regard.attention(query, key, key, backend="eager"))


def test_backward_sees_the_mask_and_the_seed_that_forward_saw():
    tensors = [tensor.requires_grad_() for tensor in made(5, 7, 7)]
    mask = torch.rand(5, 7) < 0.6
    mask[:, 0] = True
    seed = torch.tensor(5)
    options = {"dropout_p": 0.3, "backend": "native"}
    expected = torch.autograd.grad(
        regard.attention(*tensors, mask=mask.clone(), seed=torch.tensor(5), **options).sum(), tensors
    )
    output = regard.attention(*tensors, mask=mask, seed=seed, **options)
    mask.zero_()
    seed.zero_()
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), tensors), expected))


def test_several_gradients_at_a_time():
    tensors = [tensor.requires_grad_() for tensor in made(4, 6, 6)]
    output, lse = regard.attention(*tensors, backend="native", return_lse=True)
    several, more = torch.randn(3, *output.shape), torch.randn(3, *lse.shape)
    found = torch.autograd.grad((output, lse), tensors, (several, more), is_grads_batched=True, retain_graph=True)
    for place in range(3):
        one = torch.autograd.grad((output, lse), tensors, (several[place], more[place]), retain_graph=True)
        assert all(map(torch.equal, (each[place] for each in found), one))


def test_jacobian_of_many_outputs_at_once():
    query, key, value = made(2, 3, 3, width=2)

    def attend(query):
        return regard.attention(query, key, value, backend="native")

    found = functional.jacobian(attend, query, vectorize=True)
    torch.testing.assert_close(found, functional.jacobian(attend, query))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("width", [16, 33, 64, 80])
def test_a_few_queries_against_many_keys(rows, dtype, width):
    torch.manual_seed(0)
    query = torch.randn(2, rows, 1, width).to(dtype)
    key, value = (torch.randn(2, 1, 700, width).to(dtype) for _ in range(2))
    with torch.no_grad():
        found = regard.attention(query, key, value, enable_gqa=True, backend="native")
    exact = regard.attention(query.double(), key.double(), value.double(), enable_gqa=True, backend="eager")
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=4 * unit, atol=4 * unit)


def negative(tensor):
    """The same numbers with their sign kept beside the memory."""
    return torch._neg_view(-tensor)


@pytest.mark.parametrize("which", ["query", "key", "value", "bias", "sink", "grad_output"])
def test_a_sign_that_is_kept_beside_the_memory(which):
    given = dict(zip(("query", "key", "value"), made(4, 6, 6), strict=True))
    given |= {"bias": torch.randn(1, 2, 4, 6), "sink": torch.randn(2)}
    weights = torch.randn(1, 2, 4, 8)

    def found(change):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
        used = {name: change(leaf) if name == which else leaf for name, leaf in leaves.items()}
        options = {"dropout_p": 0.3, "seed": 5, "backend": "native"}
        output = regard.attention(
            used["query"], used["key"], used["value"], bias=used["bias"], sink=used["sink"], **options
        )
        return [
            output,
            *torch.autograd.grad(output, list(leaves.values()), change(weights) if which == "grad_output" else weights),
        ]

    assert all(map(torch.equal, found(negative), found(lambda tensor: tensor)))


def test_a_gradient_of_zeros_that_take_no_memory():
    tensors = [tensor.requires_grad_() for tensor in made(4, 6, 6)]
    output = regard.attention(*tensors, backend="native")
    assert not any(
        gradient.any() for gradient in torch.autograd.grad(output, tensors, torch._efficientzerotensor(output.shape))
    )
