"""F18-F30: masks and biases that are wrong, empty, ambiguous, or far from any number."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard import ArgumentError, MaskError, ShapeError
from regard.masks import Causal, Padding, SlidingWindow
from regard.positions import ALiBi
from tests import oracles
from tests.judging import BATCH, HEADS, assert_error, each_backend, judge, made

NAN, INFINITY = math.nan, math.inf
EMPTY = {
    "one-row": torch.ones(8, 8, dtype=torch.bool).index_fill(0, torch.tensor([3]), value=False),
    "all-rows": torch.zeros(8, 8, dtype=torch.bool),
    "whole-sample": Padding([0, 8]),
    "causal-and-padding": Causal() & Padding([3, 8], side="left"),
    "diagonal-taken-out": Causal() & ~SlidingWindow(0),
}


@each_backend
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"sink": torch.ones(HEADS)}, {"return_lse": True}], ids=str)
@pytest.mark.parametrize("name", EMPTY)
def test_f18_row_that_may_attend_to_nothing(name, options, backend):
    judge(made(mask=EMPTY[name], **options), backend)


@pytest.mark.parametrize("backend", ["native", "eager", "sdpa"])
@pytest.mark.parametrize("name", EMPTY)
def test_f18_is_zero_with_finite_gradients(name, backend):
    case = made(mask=EMPTY[name], bias=torch.randn(1, HEADS, 8, 8)).copied(gradient=True)
    dense = case.options["mask"] if name.endswith("rows") or name == "one-row" else case.options["mask"].dense(8, 8)
    empty = ~dense.expand(BATCH, HEADS, 8, 8).any(-1)
    output = case.run(regard.attention, backend=backend)
    assert empty.any()
    assert (output[empty] == 0).all()
    output.square().sum().backward()
    for leaf in case.leaves().values():
        assert leaf.grad.isfinite().all()
    assert (case.query.grad[empty] == 0).all()
    result = case.run(regard.reference.attention)
    assert (result.weights[empty] == 0).all()
    assert (result.lse[empty] == -INFINITY).all()


def test_f18_by_a_bias_of_minus_infinity():
    bias = torch.zeros(1, 1, 8, 8)
    bias[..., 2, :] = -INFINITY
    for backend in ("native", "eager", "sdpa", "flex"):
        assert judge(made(bias=bias), backend) == "honoured"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
def test_f19_mask_of_another_dtype(dtype):
    assert_error(MaskError, "bool", str(dtype), ".bool()", case=made(mask=torch.ones(8, 8).to(dtype)))


def test_f19_float_mask_is_a_bias():
    assert_error(MaskError, "bias=", ".bool()", case=made(mask=torch.zeros(8, 8)))


@pytest.mark.parametrize("mask", ["causal", [True], 1], ids=repr)
def test_f19_mask_that_is_no_mask(mask):
    assert_error(MaskError, "regard.masks", type(mask).__name__, case=made(mask=mask))


def test_f20_bias_that_looks_like_a_mask():
    bias = torch.ones(8, 8).tril()
    assert_error(
        ArgumentError, "bias", "only 0 and 1", "mask=bias.bool()", "additive=True", case=made(bias=bias), compiled=False
    )
    assert_error(ArgumentError, "only 0 and 1", case=made(bias=torch.ones(1)), compiled=False)
    assert judge(made(bias=bias, additive=True), "auto") == "honoured"
    assert judge(made(bias=torch.zeros(8, 8)), "auto") == "honoured"  # adds nothing, hides nothing
    assert (
        judge(made(bias=torch.full((8, 300), 0.0)[:, :8].index_fill(1, torch.tensor([7]), 0.5)), "auto") == "honoured"
    )


def test_f20_a_late_number_is_seen():
    bias = torch.ones(1, 1, 64, 64)
    bias[..., -1, -1] = 0.5
    assert judge(made(64, 64, bias=bias), "auto") == "honoured"


@each_backend
@pytest.mark.parametrize("number", [NAN, INFINITY])
@pytest.mark.parametrize("where", ["one", "all", "row"])
def test_f21_bias_that_is_no_number_propagates(number, where, backend):
    bias = torch.zeros(1, HEADS, 8, 8)
    index = {"one": (0, 1, 2, 3), "all": ..., "row": (0, 1, 2)}[where]
    bias[index] = number
    judge(made(bias=bias), backend)
    output = made(bias=bias).run(regard.attention, backend="auto")
    touched = (bias == 0).logical_not().any(-1).expand(BATCH, HEADS, 8)
    assert output[touched].isnan().all()
    assert output[~touched].isfinite().all()


@each_backend
@pytest.mark.parametrize("number", [NAN, INFINITY])
def test_f21_bias_that_is_no_number_where_nobody_may_look(number, backend):
    bias = torch.randn(1, 1, 8, 8).triu(1) * number  # NaN or infinite above the diagonal
    bias = torch.where(torch.ones(8, 8, dtype=torch.bool).triu(1), number, bias.nan_to_num(0.0))
    judge(made(bias=bias, mask=Causal()), backend)
    assert made(bias=bias, mask=Causal()).run(regard.attention).isfinite().all()


def test_f22_two_dimensions_with_two_meanings():
    # (q_len, kv_len) or (batch, kv_len)? With batch 2 and 2 queries nobody can tell.
    mask = torch.ones(2, 8, dtype=torch.bool)
    assert_error(MaskError, "one meaning", "mask[None, None]", "Padding", case=made(2, 8, mask=mask))
    assert_error(ShapeError, "one meaning", "bias[None, None]", case=made(2, 8, bias=torch.randn(2, 8)))
    for said in (mask[None, None], mask[:, None, None]):
        assert judge(made(2, 8, mask=said), "auto") == "honoured"


@pytest.mark.parametrize("shape", [(8,), (8, 1), (2, 8), (4, 8, 8), (2, 4, 8), (2, 2, 8, 8), (1, 1, 1, 8, 8)])
def test_f22_mask_of_a_wrong_shape(shape):
    assert_error(MaskError, case=made(5, 8, mask=torch.ones(shape, dtype=torch.bool)))


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 8), (3, 5, 8), (2, 3, 5, 8), (1, 1, 1, 5, 8)])
def test_f22_bias_of_a_wrong_shape(shape):
    assert_error(ShapeError, "bias", "(2, 4, 5, 8)", str(shape), case=made(5, 8, bias=torch.randn(shape)))


@each_backend
def test_f24_mask_and_causal_intersect(backend):
    allowed = torch.rand(8, 8) < 0.6
    case = made(mask=Causal() & regard.masks.Dense(allowed))
    assert judge(case, backend) == "honoured"
    together = oracles.Case(case.query, case.key, case.value, {"mask": allowed.tril()})
    assert torch.equal(case.run(regard.attention, backend=backend), together.run(regard.attention, backend=backend))


def test_f25_causal_with_other_lengths_must_say_which_corner():
    assert_error(MaskError, "align='bottom_right'", "q_len 3", "kv_len 8", case=made(3, 8, mask=Causal()))
    assert_error(ShapeError, "align='bottom_right'", "q_len 3", case=made(3, 8, position=ALiBi(HEADS)))


@each_backend
@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@pytest.mark.parametrize("lengths", [(3, 8), (8, 3), (1, 8), (8, 1)])
def test_f25_f26_both_corners(lengths, align, backend):
    assert judge(made(*lengths, mask=Causal(align)), backend) == "honoured"


def test_f26_first_rows_are_empty_with_more_queries_than_keys():
    for backend in ("native", "eager", "sdpa", "flex"):
        output = made(8, 3, mask=Causal("bottom_right")).run(regard.attention, backend=backend)
        assert (output[:, :, :5] == 0).all()
        assert (output[:, :, 5:] != 0).all()


@each_backend
@pytest.mark.parametrize(("query", "bias"), [("float32", "float64"), ("bfloat16", "float32"), ("float16", "float32"),
                                             ("float16", "bfloat16"), ("float64", "float16")])  # fmt: skip
def test_f27_bias_of_another_dtype_is_cast(query, bias, backend):
    numbers = torch.randn(1, HEADS, 8, 8).to(getattr(torch, bias))
    assert judge(made(dtype=getattr(torch, query), bias=numbers), backend) == "honoured"


@each_backend
def test_f28_forbidden_keys_have_no_mass_however_low_the_others_score(backend):
    for dtype in (torch.float32, torch.float64):
        low = torch.full((1, 1, 1, 8), -1.1e5, dtype=dtype)
        case = made(dtype=dtype, mask=torch.arange(8).expand(8, 8) < 4, bias=low)
        case.value[:, :, 4:] = 1e30
        assert case.run(regard.attention, backend=backend).abs().max() < 10
    assert judge(case, backend, gradient=False) == "honoured"  # in float64, since float32 is coarse at 1e5


@each_backend
def test_f29_smallest_half_number_added_twice(backend):
    low = torch.finfo(torch.float16).min
    bias = torch.full((1, 1, 8, 8), low, dtype=torch.float16)
    bias[..., 4:, 2] = 0.0
    case = made(dtype=torch.float16, bias=bias, position=ALiBi(HEADS, slopes=[1e4] * HEADS, form="symmetric").half())
    assert judge(case, backend) == "honoured"
    assert (case.run(regard.attention, backend=backend)[:, :, 0] != 0).any()  # the first row is low, not empty


@each_backend
def test_f29_large_negative_float32_bias_on_half_queries(backend):
    bias = torch.full((1, 1, 8, 8), -1e9)
    bias[..., 4:, 2] = 0.0
    case = made(dtype=torch.float16, bias=bias)
    output = case.run(regard.attention, backend=backend)
    # Scores are float32 here, where every key of the first rows is as low as the others: their mean.
    oracles.assert_within(output[:, :, :4], case.value.float().mean(2, keepdim=True).expand(-1, -1, 4, -1), 1e-3)
    oracles.assert_within(output[:, :, 4:], case.value[:, :, 2:3].float().expand(-1, -1, 4, -1), 1e-3)


@each_backend
@pytest.mark.parametrize("kind", ["transposed", "stride-0", "every-second", "flipped"])
def test_f30_mask_that_is_not_contiguous(kind, backend):
    wide = torch.rand(BATCH, HEADS, 8, 16) < 0.6
    mask = {
        "transposed": (torch.rand(BATCH, HEADS, 8, 8) < 0.6).transpose(2, 3),
        "stride-0": wide[:1, :, :, :8].expand(BATCH, -1, -1, -1),
        "every-second": wide[..., ::2],
        "flipped": wide[..., :8].flip(-1),
    }[kind]
    assert judge(made(mask=mask), backend) == "honoured"
    bias = torch.where(mask, torch.randn(()), -INFINITY)
    bias = bias.transpose(2, 3).contiguous().transpose(2, 3) if kind == "transposed" else bias
    assert judge(made(bias=bias), backend) == "honoured"
