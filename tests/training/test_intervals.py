"""Intervals against closed forms, tables and coverage."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import pytest
import torch

from regard._errors import ArgumentError
from regard.training.intervals import (
    Interval,
    corpus_interval,
    mean_interval,
    paired_difference,
    seeds_interval,
    student_quantile,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "table"),
    [
        (0.975, 1, 12.706204736),
        (0.975, 2, 4.302652730),
        (0.975, 3, 3.182446305),
        (0.975, 4, 2.776445105),
        (0.975, 5, 2.570581836),
        (0.975, 10, 2.228138852),
        (0.975, 29, 2.045229642),
        (0.995, 4, 4.604094871),
        (0.95, 9, 1.833112933),
        (0.9995, 2, 31.599054577),
    ],
)
def test_students_quantiles_are_those_of_the_tables(probability: float, freedom: int, table: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(table, rel=1e-9)
    assert student_quantile(1.0 - probability, freedom) == pytest.approx(-table, rel=1e-9)


@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.999])
def test_students_quantiles_have_closed_forms_at_one_and_two_degrees(probability: float) -> None:
    cauchy = math.tan(math.pi * (probability - 0.5))
    two = (2.0 * probability - 1.0) / math.sqrt(2.0 * probability * (1.0 - probability))
    assert student_quantile(probability, 1) == pytest.approx(cauchy, rel=1e-10, abs=1e-12)
    assert student_quantile(probability, 2) == pytest.approx(two, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("freedom", [3, 6, 7, 12])
def test_the_density_up_to_a_quantile_sums_to_the_probability(freedom: int) -> None:
    end = student_quantile(0.9, freedom)
    factor = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    at = torch.linspace(0.0, end, 20001, dtype=torch.float64)
    density = factor * (1.0 + at.square() / freedom) ** (-(freedom + 1) / 2)
    assert float(torch.trapezoid(density, at)) == pytest.approx(0.4, abs=1e-8)


def test_many_degrees_are_nearly_normal() -> None:
    assert student_quantile(0.975, 4000) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3)


def test_three_seeds() -> None:
    found = seeds_interval([1.0, 2.0, 3.0])
    half = 4.302652730 / math.sqrt(3.0)  # their standard deviation is 1
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-9)
    assert (found.level, found.count) == (0.95, 3)
    assert seeds_interval([5.0, 5.0]) == Interval(5.0, 5.0, 5.0, 0.95, 2)
    narrow = seeds_interval([1.0, 2.0, 3.0], level=0.5)
    assert narrow.high - narrow.value == pytest.approx(0.816496581 / math.sqrt(3.0), rel=1e-8)


def test_a_share_is_resampled_as_a_binomial() -> None:
    """30 of 100: draws are binomial(100, 0.3), whose 2.5 % and 97.5 % points are 21 and 39."""
    found = mean_interval([1.0] * 30 + [0.0] * 70, resamples=20_000)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.21, 0.39), abs=1e-9)


def test_two_examples_have_four_draws() -> None:
    """Means 0, 0.5, 0.5, 1."""
    assert mean_interval([0.0, 1.0], level=0.95) == Interval(0.5, 0.0, 1.0, 0.95, 2)
    assert mean_interval([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5, 0.4, 2)


def test_the_width_is_that_of_the_standard_error() -> None:
    values = torch.randn(2000, dtype=torch.float64) * 3.0 + 10.0
    for level in (0.5, 0.95):
        found = mean_interval(values, level=level, resamples=4000)
        error = float(values.std(correction=0)) / math.sqrt(2000)
        width = 2.0 * NormalDist().inv_cdf((1.0 + level) / 2.0) * error
        assert found.high - found.low == pytest.approx(width, rel=0.06)
        assert found.value == pytest.approx(float(values.mean()), rel=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        found = mean_interval(torch.randn(60), resamples=400, seed=seed)
        covered += found.low <= 0.0 <= found.high
    assert 180 <= covered <= 197  # 95 % of 200 is 190


def test_a_corpus_metric_that_is_a_mean_gives_the_interval_of_a_mean() -> None:
    values = torch.randn(50, dtype=torch.float64)
    expected = mean_interval(values, resamples=300, seed=3)
    found = corpus_interval(lambda drawn: float(values[drawn].mean()), 50, resamples=300, seed=3)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_corpus_metric_is_asked_for_all_examples_and_for_draws_of_as_many() -> None:
    asked: list[list[int]] = []

    def metric(drawn: list[int]) -> float:
        asked.append(drawn)
        return float(len(set(drawn)))

    found = corpus_interval(metric, 40, resamples=500)
    assert asked[0] == list(range(40))
    assert found.value == 40.0
    assert len(asked) == 501
    assert {len(drawn) for drawn in asked} == {40}
    assert {place for drawn in asked for place in drawn} == set(range(40))
    distinct = 40.0 * (1.0 - (1.0 - 1.0 / 40.0) ** 40)  # so many are different in a draw on average
    assert sum(len(set(drawn)) for drawn in asked[1:]) / 500 == pytest.approx(distinct, rel=0.01)
    assert found.high < 40.0


def test_draws_in_several_pieces_are_of_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.training.intervals._AT_ONCE", 700)
    asked: list[int] = []
    corpus_interval(lambda drawn: float(asked.append(len(drawn)) or sum(drawn)), 100, resamples=17)
    assert asked == [100] * 18


def test_a_seed_decides_and_the_global_state_stays() -> None:
    values = torch.randn(30)
    state = torch.get_rng_state()
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_hard_for_both_cancels() -> None:
    hard = 10.0 * torch.randn(200, dtype=torch.float64)
    first, second = hard + 0.5 + 0.1 * torch.randn(200), hard + 0.1 * torch.randn(200)
    found = paired_difference(first, second)
    assert 0.45 < found.difference.low < found.difference.value < found.difference.high < 0.55
    assert found.p_value == 1.0 / 2001.0
    assert mean_interval(first).low < float(second.mean()), "apart, they could not be told from each other"
    back = paired_difference(second, first)
    assert back.difference.value == pytest.approx(-found.difference.value)
    assert (back.difference.low, back.difference.high) == pytest.approx(
        (-found.difference.high, -found.difference.low), rel=1e-9
    )


def test_the_p_value_is_that_of_a_normal_difference() -> None:
    apart = torch.randn(400, dtype=torch.float64)
    for wanted in (0.5, 1.0, 1.6, 2.2):  # standard errors
        error = float(apart.std(correction=0)) / 20.0
        moved = apart - apart.mean() + wanted * error
        found = paired_difference(moved, torch.zeros(400), resamples=4000)
        assert found.p_value == pytest.approx(2.0 * (1.0 - NormalDist().cdf(wanted)), abs=0.025)


def test_systems_that_do_not_differ_seem_to_in_one_case_of_twenty() -> None:
    small = sum(
        paired_difference(torch.randn(50), torch.randn(50), resamples=200, seed=seed).p_value < 0.05
        for seed in range(200)
    )
    assert 2 <= small <= 22


def test_equal_systems_and_a_constant_difference() -> None:
    values = [1.0, 5.0, 2.0, 8.0]
    assert paired_difference(values, values).p_value == 1.0
    better = paired_difference([value + 0.1 for value in values], values, resamples=99)
    assert better.p_value == 0.01
    assert better.difference.low == pytest.approx(0.1)


def test_corpus_metrics_are_compared_on_the_same_draws() -> None:
    one, other = torch.rand(30), torch.rand(30)
    asked: list[list[list[int]]] = [[], []]

    def of(system: int, values: torch.Tensor) -> Any:
        return lambda drawn: asked[system].append(drawn) or float(values[drawn].sum() / values[drawn].max())

    found = paired_difference(of(0, one), of(1, other), 30, resamples=50)
    assert asked[0] == asked[1]
    assert len(asked[0]) == 51
    assert found.difference.value == pytest.approx(float(one.sum() / one.max() - other.sum() / other.max()))
    assert found.difference.count == 30


def _constant(value: float) -> Callable[[list[int]], float]:
    def metric(drawn: list[int]) -> float:
        return value

    return metric


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_interval([1.0]), r"examples: expected 2 or more, got 1\."),
        (lambda: mean_interval([1.0, math.nan]), r"values: expected a list of finite numbers"),
        (lambda: mean_interval(torch.zeros(2, 2)), r"shape \(2, 2\)"),
        (lambda: mean_interval([1.0, 2.0], level=95), r"level: expected between 0 and 1, got 95\."),
        (lambda: mean_interval([1.0, 2.0], resamples=0), r"resamples: expected 1 or more, got 0\."),
        (lambda: corpus_interval(_constant(math.nan), 5), r"metric: expected a finite number of any examples"),
        (lambda: corpus_interval(lambda drawn: 1.0 if len(set(drawn)) == 9 else math.inf, 9), r"metric: expected"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), r"the same examples, got 2 and 1\. Score both on one test set"),
        (lambda: paired_difference([1.0, 2.0], [1.0, 2.0], 3), r"got 2 and 2, count 3\."),
        (lambda: paired_difference(_constant(1.0), _constant(1.0)), r"count: expected the number of examples"),
        (lambda: paired_difference(_constant(1.0), [1.0, 2.0]), r"got one of each\. Give both in one form"),
        (lambda: seeds_interval([1.0]), r"examples: expected 2 or more, got 1\."),
        (lambda: student_quantile(1.0, 3), r"probability: expected between 0 and 1, got 1\.0\."),
        (lambda: student_quantile(0.9, 0), r"freedom: expected 1 or more, got 0\."),
    ],
)
def test_what_cannot_be_asked(call: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        call()
