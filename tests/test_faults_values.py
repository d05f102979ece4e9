"""F31-F45: NaN, infinities, extreme numbers, impossible scalars, dtypes and devices that do not fit."""

from __future__ import annotations

import math

import pytest
import torch

import regard
from regard import ArgumentError, MaskError, ShapeError
from regard.masks import Causal, Padding
from regard.positions import ALiBi, RoPE, Shaw, T5Bias, TransformerXL
from tests import oracles
from tests.judging import BATCH, HEADS, WIDTH, assert_error, each_backend, judge, made

NAN, INFINITY = math.nan, math.inf
OPTIONS = {
    "plain": dict,
    "causal": lambda: {"mask": Causal()},
    "softcap": lambda: {"softcap": 2.0, "mask": Causal()},
    "bias": lambda: {"bias": torch.randn(1, HEADS, 8, 8), "mask": Causal()},
    "sink": lambda: {"sink": torch.ones(HEADS), "return_lse": True},
    "dropout": lambda: {"dropout_p": 0.3, "seed": 5, "mask": Causal()},
    "shaw": lambda: {"position": Shaw(WIDTH, 2), "mask": Causal()},
    "transformer-xl": lambda: {"position": TransformerXL(HEADS, WIDTH)},
    "rope": lambda: {"position": RoPE(WIDTH), "mask": Causal()},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def touched_rows(output):
    return output.isnan().all(-1)


@each_backend
@each_option
def test_f31_nan_in_one_query_reaches_that_row_only(option, backend):
    case = made(**OPTIONS[option]())
    case.query[0, 1, 2, 3] = NAN
    judge(case, backend)
    output = case.run(lambda *args, **more: regard.reference.attention(*args, **without_lse(more)).output)
    expected = torch.zeros(BATCH, HEADS, 8, dtype=torch.bool)
    expected[0, 1, 2] = True
    assert torch.equal(touched_rows(output), expected)
    assert torch.equal(output.isnan().any(-1), expected)


@pytest.mark.parametrize("backend", ["native", "eager", "auto"])
@pytest.mark.parametrize("position", [Shaw(WIDTH, 2), TransformerXL(HEADS, WIDTH), T5Bias(HEADS)], ids=repr)
def test_f31_nan_in_a_query_that_sees_nothing_reaches_nothing(position, backend):
    case = made(position=position, softcap=2.0, mask=torch.ones(8, 8, dtype=torch.bool).tril(-1))
    case.query[:, :, 0] = NAN
    assert judge(case, backend) == "honoured"
    answer = oracles.answer(regard.attention, case)
    assert answer.output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in answer.gradients.values())


@each_backend
@each_option
@pytest.mark.parametrize("which", ["query", "key"])
def test_f32_everything_nan_is_never_zero(which, option, backend):
    case = made(**OPTIONS[option]())
    getattr(case, which).fill_(NAN)
    judge(case, backend)
    result = case.run(regard.attention)
    assert (result[0] if isinstance(result, tuple) else result).isnan().all()


@each_backend
@each_option
@pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
def test_f33_padding_holds_anything_without_effect(number, option, backend):
    options = {**OPTIONS[option](), "mask": Padding([5, 8]) & Causal()}
    clean, dirty = made(**options), made(**options)
    dirty = oracles.Case(clean.query, clean.key.clone(), clean.value.clone(), clean.options)
    dirty.key[0, :, 5:], dirty.value[0, :, 5:] = number, number
    if judge(dirty, backend) == "honoured":
        expected = oracles.answer(regard.attention, clean)
        actual = oracles.answer(regard.attention, dirty)
        oracles.assert_within(actual.output, expected.output, 1e-6)
        for name, gradient in expected.gradients.items():
            oracles.assert_within(actual.gradients[name], gradient, 1e-5, name)


@each_backend
@each_option
@pytest.mark.parametrize("number", [INFINITY, -INFINITY])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_f34_infinity_propagates(which, number, option, backend):
    case = made(**OPTIONS[option]())
    getattr(case, which)[0, 1, 2, 3] = number
    judge(case, backend)


@each_backend
def test_f34_infinite_value_is_seen_by_those_that_may(backend):
    case = made(mask=Causal())
    case.value[0, 1, 2, 3] = INFINITY
    judge(case, backend)
    output = case.run(regard.attention)
    assert (output[0, 1, 2:, 3] == INFINITY).all()
    assert output.isinf().sum() == 6


@each_backend
def test_f35_huge_scores_are_one_hot(backend):
    case = made()
    case.query.fill_(1.0)
    case.key.fill_(0.0)[:, :, 3] = 1e30 / WIDTH
    output = case.run(regard.attention, backend=backend)
    oracles.assert_within(output, case.value[:, :, 3:4].expand_as(output), 1e-6)
    case.key.neg_()  # -1e30 for one key: the mean of the others
    output = case.run(regard.attention, backend=backend)
    others = case.value[:, :, [0, 1, 2, 4, 5, 6, 7]].mean(2, keepdim=True)
    oracles.assert_within(output, others.expand_as(output), 1e-6)


@each_backend
def test_f35_scores_at_the_end_of_half_precision(backend):
    case = made(dtype=torch.float16)
    case.query.fill_(100.0)
    case.key.fill_(0.0)[:, :, 3] = 100.0  # 6 * 100 * 100 = 6e4
    output = case.run(regard.attention, backend=backend, scale=1.0)
    oracles.assert_within(output, case.value[:, :, 3:4].expand_as(output), 1e-3)


@each_backend
def test_f36_identical_scores_are_uniform(backend):
    case = made()
    case.key.copy_(case.key[:, :, :1].expand_as(case.key).clone())
    output = case.run(regard.attention, backend=backend)
    oracles.assert_within(output, case.value.mean(2, keepdim=True).expand_as(output), 3e-7)
    weights = case.run(regard.reference.attention).weights
    assert (weights - 1 / 8).abs().max() <= 2**-26  # an ulp of 1/8


@each_backend
def test_f37_subnormals_and_minus_zero(backend):
    case = made()
    case.query.fill_(-0.0)
    case.key.fill_(1e-40)
    case.value[:, :, 0] = 1e-40
    assert judge(case, backend) == "honoured"


@each_backend
@pytest.mark.parametrize("scale", [0.0, -0.0, -1.5, 0, 2, 1e-30])
@pytest.mark.parametrize("mask", [None, Causal()], ids=repr)
def test_f38_any_finite_scale(scale, mask, backend):
    assert judge(made(scale=scale, mask=mask), backend) == "honoured"


@pytest.mark.parametrize("scale", [NAN, INFINITY, -INFINITY, "1", True, 1j])
def test_f38_scale_that_is_no_number(scale):
    assert_error(ArgumentError, "scale", "a finite number", repr(scale), case=made(scale=scale))


@pytest.mark.parametrize("softcap", [NAN, INFINITY, 0, -1.0, "1", True])
def test_f38_softcap_that_caps_nothing(softcap):
    assert_error(ArgumentError, "softcap", "a positive number", repr(softcap), case=made(softcap=softcap))


@pytest.mark.parametrize("probability", [-0.1, 1.1, NAN, "0.1", True])
def test_f39_dropout_that_is_no_probability(probability):
    assert_error(ArgumentError, "dropout_p", "from 0 to 1", repr(probability), case=made(dropout_p=probability))


@each_backend
def test_f39_dropout_of_one_is_zero(backend):
    if judge(made(dropout_p=1.0, seed=0), backend) == "honoured":
        output = made(dropout_p=1.0).run(regard.attention, backend=backend)
        assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.parametrize(
    "seed", [-1, 2**63, 0.5, "1", True, torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor(True)]
)
def test_f39_seed_that_is_no_seed(seed):
    assert_error(ArgumentError, "seed", "2**63 - 1", case=made(dropout_p=0.1, seed=seed))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_f41_seed_of_any_integer_dtype_is_the_number(dtype):
    case = made(dropout_p=0.5)
    expected = case.run(regard.attention, seed=100)
    assert torch.equal(case.run(regard.attention, seed=torch.tensor([100], dtype=dtype)), expected)


@each_backend
def test_f42_bias_of_minus_infinity_with_everything(backend):
    bias = torch.randn(1, HEADS, 8, 8).masked_fill(torch.rand(1, HEADS, 8, 8) < 0.4, -INFINITY)
    bias[:, 1, 4] = -INFINITY
    for options in ({"softcap": 1.0}, {"position": ALiBi(HEADS)}, {"sink": torch.ones(HEADS)}, {"return_lse": True}):
        judge(made(bias=bias, mask=Causal(), **options), backend)


@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_f43_dtypes_that_differ(which):
    case = made()
    tensors = {name: getattr(case, name) for name in ("query", "key", "value")}
    tensors[which] = tensors[which].half()
    assert_error(ShapeError, "dtype", f"{which} torch.float16", case=oracles.Case(**tensors))


def test_f43_devices_that_differ():
    case = made()
    there = case.key.to("meta")
    assert_error(ShapeError, "device", "key meta", case=oracles.Case(case.query, there, case.value))
    meta = {"device": "meta"}
    assert_error(MaskError, "mask device", case=made(mask=torch.ones(8, 8, dtype=torch.bool, **meta)))
    assert_error(ShapeError, "bias device", case=made(bias=torch.ones(8, 8, **meta)))
    assert_error(ShapeError, "sink device", case=made(sink=torch.ones(HEADS, **meta)))
    assert_error(ShapeError, "position table device", case=made(position=T5Bias(HEADS).to("meta")))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "auto"])
def test_f43_meta_tensors_have_a_meta_answer(backend):
    tensors = (tensor.to("meta") for tensor in (made().query, made().key, made().value))
    output = regard.attention(*tensors, mask=Causal(), backend=backend)
    assert (output.device.type, output.shape) == ("meta", (BATCH, HEADS, 8, WIDTH))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_f44_dtype_that_is_no_float(which, dtype):
    case = made()
    tensors = {name: getattr(case, name) for name in ("query", "key", "value")}
    tensors[which] = tensors[which].to(dtype)
    words = (f"{which} dtype", "float16, bfloat16, float32 or float64", str(dtype))
    assert_error(ShapeError, *words, case=oracles.Case(**tensors))


@pytest.mark.parametrize("wrong", [None, [[1.0]], 3.0], ids=repr)
def test_f44_no_tensor_at_all(wrong):
    case = made()
    words = ("key", "a torch.Tensor", type(wrong).__name__, "torch.as_tensor")
    assert_error(ShapeError, *words, case=oracles.Case(case.query, wrong, case.value))


def test_f44_sparse_or_nested():
    case = made()
    sparse = oracles.Case(case.query, case.key.to_sparse(), case.value)
    assert_error(
        ShapeError, "key layout", "strided", ".to_dense()", case=sparse, compiled=False
    )  # torch.compile refuses it


def test_f44_sink_or_position_of_a_wrong_kind():
    assert_error(ShapeError, "sink", "(4,)", "(3,)", case=made(sink=torch.ones(3)))
    assert_error(ShapeError, "sink", "int64", case=made(sink=torch.ones(4, dtype=torch.int64)))
    assert_error(ArgumentError, "position", "str", case=made(position="rope"))
    assert_error(ShapeError, "ALiBi heads", "expected 4", "got 3", case=made(position=ALiBi(3)))
    assert_error(ShapeError, "bias", "bool", "mask=", case=made(bias=torch.ones(8, 8, dtype=torch.bool)))


def test_f44_backend_that_does_not_exist():
    for function in (regard.attention, regard.dispatch):
        with pytest.raises(ArgumentError, match=r"expected one of auto, .*eager.*, got 'fast'"):
            made().run(function, backend="fast")


@each_backend
@each_option
def test_f45_float64_is_float64(option, backend):
    options = OPTIONS[option]()
    for name in ("bias", "sink", "position"):
        options |= {name: options[name].double()} if name in options else {}
    judge(made(dtype=torch.float64, **options), backend)


def without_lse(options):
    return {name: value for name, value in options.items() if name != "return_lse"}
