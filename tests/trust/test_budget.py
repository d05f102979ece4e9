"""An error in units of plain torch's: the limit is 2 of them forward and 3 in gradients."""

from __future__ import annotations

import math

import pytest
import torch

from regard.trust import budget
from regard.trust.plain import plain_attention


@pytest.mark.parametrize("factor", [budget.FORWARD_FACTOR, budget.GRADIENT_FACTOR])
def test_the_limit_is_the_factor(factor):
    assert budget.ratio(1e-6, 1e-6, factor) == factor
    assert budget.ratio(0.0, 1e-6, factor) == 0.0
    assert budget.ratio(5e-7, 1e-6, factor) == factor / 2


def test_nothing_may_differ_where_nothing_is_allowed():
    assert budget.ratio(0.0, 0.0, 2.0) == 0.0
    assert budget.ratio(1e-30, 0.0, 2.0) == math.inf


def test_twice_the_error_of_plain_torch_and_a_rounding():
    expected = torch.tensor([1.0, 0.3, -0.7], dtype=torch.float64)
    plain = expected.to(torch.bfloat16) + torch.tensor([0.0, 0.25, 0.0], dtype=torch.bfloat16)
    error = float((plain.double() - expected).abs().max())
    limit = budget.forward(plain, expected)
    assert 2 * error < limit <= 2 * error + 2 * 2**-7


def test_float64_has_a_cap_alone():
    exact = torch.randn(4, dtype=torch.float64)
    assert budget.forward(exact + 1, exact) == 1e-12


def test_plain_torch_errs_where_a_row_sees_one_key():
    """The truth is zero. Exact by luck, plain torch would allow no rounding to what divides after the product."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 16, 64)[:, :, :length].requires_grad_() for length in (16, 1, 1))
    output = plain_attention(query, key, value)
    assert torch.equal(output, value.expand_as(output))
    found = torch.autograd.grad((output * torch.randn_like(output)).sum(), (query, key))
    assert all(0.0 < float(each.abs().max()) < 1e-4 for each in found)
