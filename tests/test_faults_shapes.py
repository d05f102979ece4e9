"""F01-F16: sizes that do not fit, and sizes at the edge."""

from __future__ import annotations

import pytest
import torch

import regard
from regard import MaskError, ShapeError
from regard.masks import Causal, Dense, Documents, GlobalTokens, Padding, SlidingWindow
from regard.positions import ALiBi
from tests.judging import HEADS, assert_error, each_backend, judge, made
from tests.oracles import Case


def sized(query, key, value, **options):
    return Case(torch.randn(query), torch.randn(key), torch.randn(value), options)


@each_backend
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"position": ALiBi(HEADS, align="bottom_right")}])
def test_f01_no_queries(backend, options):
    expected = "refused" if backend == "flex" or (backend == "sdpa" and "softcap" in options) else "honoured"
    assert judge(made(0, 5, **options), backend) == expected
    assert regard.attention(*tensors_of(made(0, 5))).shape == (2, HEADS, 0, 6)


@each_backend
@pytest.mark.parametrize("options", [{}, {"position": ALiBi(HEADS, align="bottom_right")}, {"sink": torch.ones(HEADS)}])
def test_f02_no_keys(backend, options):
    judge(made(5, 0, **options), backend)
    judge(made(5, 0, return_lse=True, **options), backend)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_f02_no_keys_gives_zeros(backend):
    case = made(5, 0).copied(gradient=True)
    output, lse = case.run(regard.attention, backend=backend, return_lse=True)
    assert (output == 0).all()
    assert (lse == -torch.inf).all()
    (gradient,) = torch.autograd.grad(output.sum(), case.query)
    assert (gradient == 0).all()
    assert regard.reference.attention(*tensors_of(made(5, 0))).weights.shape == (2, HEADS, 5, 0)


@each_backend
@pytest.mark.parametrize("sizes", [(0, 4), (2, 0)])
def test_f03_no_samples_or_no_heads(backend, sizes):
    shape = (*sizes, 5, 6)
    judge(sized(shape, shape, shape), backend)


def test_f04_no_channels():
    assert_error(ShapeError, "head_dim", "at least 1", case=sized((1, 2, 5, 0), (1, 2, 5, 0), (1, 2, 5, 3)))
    assert_error(ShapeError, "head_dim", "at least 1", case=sized((1, 2, 5, 3), (1, 2, 5, 3), (1, 2, 5, 0)))


@each_backend
@pytest.mark.parametrize("width", [1, 3, 17])
def test_f05_value_of_another_width(backend, width):
    assert judge(sized((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, width)), backend) == "honoured"


@pytest.mark.parametrize(("keys", "values"), [(1, 1000), (5, 3), (3, 5), (0, 1)])
def test_f06_as_many_values_as_keys(keys, values):
    case = sized((1, 2, 4, 8), (1, 2, keys, 8), (1, 2, values, 8))
    assert_error(ShapeError, "kv_len", f"(1, 2, {keys}, 8)", f"(1, 2, {values}, 8)", "cut or pad", case=case)


def test_f07_query_and_key_of_another_width():
    assert_error(ShapeError, "head_dim", "(1, 2, 4, 8)", case=sized((1, 2, 4, 8), (1, 2, 4, 6), (1, 2, 4, 8)))


@pytest.mark.parametrize(("heads", "keys", "values"), [(6, 4, 4), (4, 0, 0), (4, 2, 1), (2, 4, 4)])
@pytest.mark.parametrize("enable_gqa", [False, True])
def test_f08_numbers_of_heads_that_do_not_divide(heads, keys, values, enable_gqa):
    case = sized((1, heads, 5, 8), (1, keys, 5, 8), (1, values, 5, 8), enable_gqa=enable_gqa)
    assert_error(ShapeError, "heads", f"query {heads}, key {keys}, value {values}", case=case)


def test_f09_fewer_key_heads_without_the_flag():
    assert_error(ShapeError, "enable_gqa=True", case=sized((1, 4, 5, 8), (1, 1, 5, 8), (1, 1, 5, 8)))


def test_f10_batches_are_not_broadcast():
    assert_error(ShapeError, "batch size", ".expand", case=sized((2, 4, 5, 8), (1, 4, 5, 8), (1, 4, 5, 8)))


@pytest.mark.parametrize("shape", [(5,), (5, 8), (2, 5, 8), (1, 2, 3, 5, 8)])
def test_f11_other_than_four_dimensions(shape):
    four = (1, 2, 5, 8)
    layout = "(batch, heads, length, head_dim)"
    assert_error(ShapeError, "query dimensions", layout, str(len(shape)), case=sized(shape, four, four))
    assert_error(ShapeError, "value dimensions", layout, case=sized(four, four, shape))


@pytest.mark.parametrize("q_len", [1, 2, 13, 31, 33])
@pytest.mark.parametrize("kv_len", [1, 15, 17, 33, 97])
def test_f13_lengths_around_the_vector_widths(q_len, kv_len):
    for backend in ("native", "eager", "sdpa"):
        assert judge(made(q_len, kv_len, mask=Causal("bottom_right")), backend) == "honoured"


@pytest.mark.parametrize("width", [1, 3, 8, 17, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_f13_widths_around_the_vector_widths(width, dtype):
    tensors = (torch.randn(1, 2, length, width).to(dtype) for length in (9, 33, 33))
    case = Case(*tensors, {})
    for backend in ("native", "eager", "sdpa"):
        assert judge(case, backend) == "honoured"


def test_f13_flex_takes_odd_sizes():
    assert judge(sized((1, 2, 13, 17), (1, 2, 33, 17), (1, 2, 33, 3)), "flex") == "honoured"


@pytest.mark.parametrize("length", [127, 129, 200])
def test_f15_blocks_that_do_not_divide_the_length(length):
    # FlexAttention's blocks are 128 long; the last one is cut short and must not let keys in.
    mask = Causal() & SlidingWindow(70) | GlobalTokens([0, length - 1])
    assert judge(made(length, length, mask=mask), "flex") == "honoured"


def shown(mask):
    """A name for a test: short, and on one line."""
    return f"a tensor {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else repr(mask)


@pytest.mark.parametrize(
    "mask",
    [
        Dense(torch.ones(5, 7, dtype=torch.bool)),
        torch.ones(8, 7, dtype=torch.bool),
        torch.ones(2, 4, 7, 8, dtype=torch.bool),
        Documents([3, 4]),
        GlobalTokens([9]),
        Padding([3, 9]),
    ],
    ids=shown,
)
def test_f16_mask_for_another_length(mask):
    assert_error(MaskError, case=made(8, 8, mask=mask))


@pytest.mark.parametrize("mask", [Padding([3, 4, 5]), torch.ones(3, 1, 8, 8, dtype=torch.bool)], ids=shown)
def test_f16_mask_for_another_batch(mask):
    assert_error(MaskError, "mask batch", "expected 2", "got 3", case=made(8, 8, mask=mask))


def test_f16_mask_for_other_heads():
    mask = torch.ones(1, 3, 8, 8, dtype=torch.bool)
    assert_error(MaskError, "mask heads", "expected 4", "got 3", case=made(8, 8, mask=mask))


def tensors_of(case):
    return case.query, case.key, case.value
