"""What something costs: bytes that the allocator really held, and a time that is a time."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch import Tensor

from regard.measure import cost_of, growth, peak_bytes
from regard.measure.cost import available_bytes, processor_name

MIB = 2**20


def test_the_result_counts() -> None:
    assert peak_bytes(lambda: torch.empty(MIB, dtype=torch.uint8)) == pytest.approx(MIB, rel=0.01)


def test_what_is_held_at_once_counts_and_what_was_freed_before_does_not() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            torch.empty(MIB, dtype=torch.uint8)

    def all_at_once() -> list[Tensor]:
        return [torch.empty(MIB, dtype=torch.uint8) for _ in range(4)]

    assert peak_bytes(one_after_the_other) == pytest.approx(MIB, rel=0.01)
    assert peak_bytes(all_at_once) == pytest.approx(4 * MIB, rel=0.01)


def test_scratch_memory_of_a_kernel_counts() -> None:
    query = torch.randn(1, 1, 1024, 32)
    fused = peak_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    plain = peak_bytes(lambda: torch.softmax(query @ query.transpose(-2, -1), -1) @ query)
    assert fused >= query.numel() * 4
    assert plain >= 2 * 1024 * 1024 * 4
    assert fused < plain / 2


def test_what_was_there_before_does_not_count() -> None:
    before = torch.ones(8 * MIB)
    assert peak_bytes(before.sum) < MIB


def test_nothing_is_written_to_standard_error_and_it_is_open_again(capfd: pytest.CaptureFixture[str]) -> None:
    peak_bytes(lambda: torch.ones(3))
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_standard_error_is_open_again_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the one raised above
        peak_bytes(fails)
    os.write(2, b"still here")
    assert "still here" in capfd.readouterr().err


def test_standard_error_may_be_closed(capfd: pytest.CaptureFixture[str]) -> None:
    kept = os.dup(2)
    os.close(2)
    try:
        assert peak_bytes(lambda: torch.empty(MIB, dtype=torch.uint8)) >= MIB
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_time_is_the_median_and_the_budget_ends_the_runs() -> None:
    calls: list[float] = []

    def sleeps() -> None:
        calls.append(0.0)
        time.sleep(0.2 if len(calls) == 1 else 0.01)

    cost = cost_of(sleeps, seconds=10, runs=5)
    assert len(calls) == 1 + 5 + 1  # one to warm up, one for the memory
    assert 10 <= cost.milliseconds < 100
    calls.clear()
    cost_of(lambda: time.sleep(0.02), seconds=0.05, runs=1000)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 1.58])
def test_growth_finds_the_exponent(power: float) -> None:
    assert growth(512, 4096, 3 * 512**power, 3 * 4096**power) == pytest.approx(power)


@pytest.mark.parametrize("unusable", [(512, 512, 1, 2), (0, 512, 1, 2), (512, 1024, 0, 2), (512, 1024, 2, 0)])
def test_growth_that_cannot_be_told_is_zero(unusable: tuple[float, float, float, float]) -> None:
    assert growth(*unusable) == 0.0


def test_the_machine_is_named() -> None:
    assert processor_name().strip()
    assert available_bytes() >= 0
