"""The machine's own limit, as the native core measures it."""

import pytest
import torch

import regard.measure
from regard.backends import _library
from regard.measure import fma_peak


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
def test_peak_is_operations_a_second(dtype):
    assert 1e8 < fma_peak(dtype, 1, seconds=0.01) < 1e14


def test_no_matrix_product_is_faster_than_the_peak():
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    seconds = min(regard.measure.cost_of(lambda: left @ right).milliseconds for _ in range(3)) / 1000
    assert 2 * 256**3 / seconds < 1.2 * fma_peak("fp32")


def test_a_narrower_instruction_set_is_not_faster():
    try:
        _library.set_isa("baseline")
        narrow = fma_peak("fp32", 1, seconds=0.02)
    finally:
        _library.set_isa(None)
    assert narrow < 1.2 * fma_peak("fp32", 1, seconds=0.02)


def test_an_unknown_dtype_is_named():
    with pytest.raises(regard.ArgumentError, match="dtype: expected fp32, bf16, fp64, got 'fp16'"):
        fma_peak("fp16")
