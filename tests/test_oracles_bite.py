"""The comparators themselves: each is fed kernels that are wrong in one known way and must fail."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch

import regard
from regard.masks import Causal
from regard.trust import budget, plain
from regard.trust.plain import plain_attention
from tests import oracles
from tests.oracles import Case

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 8, 6


def case(dtype=torch.float32, **options):
    tensors = (
        torch.randn(BATCH, HEADS, length, WIDTH, dtype=torch.float64).to(dtype) for length in (5, LENGTH, LENGTH)
    )
    return Case(*tensors, options)


def judge(kernel, given, *, gradient=True):
    truth = oracles.oracle(given, gradient=gradient)
    plain = oracles.answer(plain_attention, given, gradient=gradient)
    oracles.assert_answer(oracles.answer(kernel, given, gradient=gradient), plain, truth)


def changed(**change):
    """A kernel that is right but for these options."""
    return lambda query, key, value, **options: plain_attention(query, key, value, **{**options, **change})


def swapped_heads(query, key, value, **options):
    return plain_attention(query, key.flip(1), value.flip(1), **options)


def rounded_to_bfloat16(query, key, value, **options):
    return plain_attention(*(tensor.bfloat16().to(query.dtype) for tensor in (query, key, value)), **options)


def nan_to_zero(query, key, value, **options):
    return plain_attention(query, key, value, **options).nan_to_num(0.0)


def nan_elsewhere(query, key, value, **options):
    return plain_attention(query, key, value, **options).roll(1, dims=2)


def everything_nan(query, key, value, **options):
    return plain_attention(query, key, value, **options) * math.nan


def lse_in_log2(query, key, value, **options):
    output, lse = plain_attention(query, key, value, **options)
    return output, lse / math.log(2)


def lse_in_float64(query, key, value, **options):
    output, lse = plain_attention(query, key, value, **options)
    return output, lse.double()


def lse_without_sink(query, key, value, **options):
    output, _ = plain_attention(query, key, value, **options)
    return output, plain_attention(query, key, value, **{**options, "sink": None})[1]


def mask_off_by_one(query, key, value, **options):
    dense = options.pop("mask").dense(query.shape[2], key.shape[2])
    return plain_attention(query, key, value, mask=dense.roll(1, dims=1), **options)


def empty_rows_average(query, key, value, *, mask, **options):
    """What finfo.min in place of -inf makes of a row that may attend to nothing."""
    low = torch.where(mask.dense(query.shape[2], key.shape[2]), 0.0, -1e9)
    return plain_attention(query, key, value, bias=low[None, None], **options)


class _WrongSign(torch.autograd.Function):
    """The identity, whose backward has the wrong sign."""

    @staticmethod
    def forward(_, tensor):
        return tensor.clone()

    @staticmethod
    def backward(_, gradient):
        return -gradient


def wrong_gradient(query, key, value, **options):
    return plain_attention(_WrongSign.apply(query), key, value, **options)


def no_gradient_of_bias(query, key, value, **options):
    return plain_attention(query, key, value, **{**options, "bias": options["bias"].detach()})


WRONG = {
    "mask-off-by-one": (mask_off_by_one, lambda: case(mask=Causal("bottom_right"))),
    "wrong-causal-corner": (changed(mask=Causal("top_left")), lambda: case(mask=Causal("bottom_right"))),
    "mask-dropped": (changed(mask=None), lambda: case(mask=Causal("bottom_right"))),
    "empty-row-averages": (empty_rows_average, lambda: case(mask=~Causal("bottom_right"))),
    "missing-scale": (changed(scale=1.0), case),
    "scale-by-length": (changed(scale=LENGTH**-0.5), case),
    "swapped-heads": (swapped_heads, case),
    "bfloat16-inside": (rounded_to_bfloat16, case),
    "bias-dropped": (changed(bias=None), lambda: case(bias=torch.randn(1, HEADS, 1, LENGTH))),
    "bias-gradient-dropped": (no_gradient_of_bias, lambda: case(bias=torch.randn(1, HEADS, 1, LENGTH))),
    "softcap-dropped": (changed(softcap=None), lambda: case(softcap=2.0)),
    "sink-dropped": (changed(sink=None), lambda: case(sink=torch.randn(HEADS))),
    "gradient-of-wrong-sign": (wrong_gradient, lambda: case(softcap=2.0)),
    "other-dropout-seed": (changed(seed=2), lambda: case(dropout_p=0.5, seed=1)),
    "dropout-not-scaled-up": (changed(dropout_p=0.0), lambda: case(dropout_p=0.5, seed=1)),
    "lse-in-log2": (lse_in_log2, lambda: case(return_lse=True)),
    "lse-in-float64": (lse_in_float64, lambda: case(return_lse=True)),
    "lse-without-sink": (lse_without_sink, lambda: case(return_lse=True, sink=torch.ones(HEADS))),
    "lse-missing": (changed(return_lse=False), lambda: case(return_lse=True)),
    "everything-nan": (everything_nan, case),
}


@pytest.mark.parametrize(("kernel", "make"), WRONG.values(), ids=WRONG.keys())
def test_wrong_kernel_is_caught(kernel, make):
    with pytest.raises(AssertionError, match=r"above|places|float64|lse"):
        judge(kernel, make())


@pytest.mark.parametrize(("kernel", "make"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("right", [plain_attention, functools.partial(regard.attention, backend="eager")])
def test_right_kernel_passes_where_the_wrong_one_is_caught(kernel, make, right):
    judge(right, make())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_excuse(dtype):
    judge(functools.partial(regard.attention, backend="eager"), case(dtype))
    for wrong in (changed(scale=0.39), swapped_heads):
        with pytest.raises(AssertionError, match="above"):
            judge(wrong, case(dtype))


def with_nan(given, place):
    given.query[place] = math.nan
    return given


@pytest.mark.parametrize("kernel", [nan_to_zero, nan_elsewhere, everything_nan])
def test_nan_that_vanishes_moves_or_spreads_is_caught(kernel):
    given = with_nan(case(), (0, 1, 2))
    judge(plain_attention, given, gradient=False)
    with pytest.raises(AssertionError, match=r"NaN in .* places"):
        judge(kernel, given, gradient=False)


# ----------------------------------------------------------------------------- the comparators alone

NAN, INFINITY = math.nan, math.inf
ONE_SIDED = {
    "nan-against-number": ([NAN, 1.0], [0.0, 1.0]),
    "number-against-nan": ([0.0, 1.0], [NAN, 1.0]),
    "nan-in-other-places": ([NAN, 1.0], [1.0, NAN]),
    "nan-against-infinity": ([NAN, 1.0], [INFINITY, 1.0]),
    "infinity-of-other-sign": ([INFINITY, 1.0], [-INFINITY, 1.0]),
    "infinity-in-other-places": ([INFINITY, 1.0], [1.0, INFINITY]),
    "infinity-against-number": ([INFINITY, 1.0], [3e38, 1.0]),
    "other-shape": ([1.0, 1.0], [1.0]),
}


@pytest.mark.parametrize(("left", "right"), ONE_SIDED.values(), ids=ONE_SIDED.keys())
@pytest.mark.parametrize("compare", [oracles.assert_same_special, oracles.assert_same])
def test_special_values_are_compared_first(left, right, compare):
    with pytest.raises(AssertionError, match=r"places|shape"):
        compare(torch.tensor(left), torch.tensor(right))
    with pytest.raises(AssertionError, match=r"places|shape"):
        oracles.assert_within(torch.tensor(left), torch.tensor(right), math.inf)


def test_equal_special_values_pass():
    both = torch.tensor([NAN, INFINITY, -INFINITY, 1.0])
    oracles.assert_same(both, both.clone())


def test_limit_is_a_limit():
    one = torch.ones(3)
    oracles.assert_within(one + 1e-3, one, 1.1e-3)
    with pytest.raises(AssertionError, match="above"):
        oracles.assert_within(one + 1e-3, one, 0.9e-3)
    with pytest.raises(AssertionError, match="dtype"):
        oracles.assert_same(one, one.double())


def test_nan_error_is_no_small_error():
    # A comparison of NaN is false either way; the error must not come out as 0 because of it.
    assert not oracles.largest_error(torch.tensor([NAN]), torch.tensor([1.0])) > 0
    with pytest.raises(AssertionError):
        oracles.assert_within(torch.tensor([NAN]), torch.tensor([1.0]), 1e9)


def test_no_environment_variable_is_read():
    for module in (budget, plain, oracles):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert "os.environ" not in source
        assert "getenv" not in source
