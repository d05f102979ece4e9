"""How far a measured number can be trusted: intervals for metrics, for differences of two systems, and over seeds.

- `mean_interval`, `corpus_interval`: percentile bootstrap over examples (Efron 1979; Efron & Tibshirani 1993,
  "An Introduction to the Bootstrap", chapter 13). Examples are drawn with replacement, as many as there are, and the
  metric is computed anew; the interval holds the middle 95 % of what comes out.
- `paired_difference`: the same draws for both systems, so that what is hard for both cancels (Koehn 2004, "Statistical
  Significance Tests for Machine Translation Evaluation", https://aclanthology.org/W04-3250).
- `seeds_interval`: Student's t over a few training runs. It covers what examples cannot: another seed.

The first three say how the number would move with other test examples, for one trained model; the last how it would
move with another training run. With fewer than some 20 examples a bootstrap's interval is too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from regard._errors import ArgumentError

RESAMPLES = 2000
"""Draws of a bootstrap: enough for the ends of a 95 % interval to stand still in two digits."""
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A number and where it could have been, in the metric's own unit.

    Attributes:
        value: as measured.
        low, high: the ends of the interval.
        level: how much of what could have been lies between them, 0 to 1.
        count: examples, or runs.
    """

    value: float
    low: float
    high: float
    level: float
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """One system against another on the same examples.

    Attributes:
        difference: first minus second, with its interval.
        p_value: two-sided, 0 to 1: how often resampling would give a difference at least as far from 0 if there were
            none. It is never below 1 / (resamples + 1).
    """

    difference: Interval
    p_value: float


def mean_interval(
    values: Sequence[float] | Tensor, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of one number for each example, with its bootstrap interval.

    Args:
        values: one finite number for each example, two or more.
        level: of the interval, between 0 and 1.
        resamples: draws, 1 or more.
        seed: the same seed gives the same interval; the global random state is left alone.

    Raises:
        ArgumentError: too few values, one that is not finite, a level or a count out of range.
    """
    numbers = _numbers("values", values)
    _check(len(numbers), level, resamples)
    value, means = _resampled_mean(numbers, resamples, seed)
    return _interval(value, means, level, len(numbers))


def corpus_interval(
    metric: Callable[[list[int]], float],
    count: int,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A metric that is no mean over examples (BLEU, F1), with its bootstrap interval.

    Args:
        metric: of a list of example numbers, 0 to count - 1, in which some come twice and some never. Called
            resamples + 1 times, so keep what each example contributes (n-gram counts) and only add it up here.
        count: examples, two or more.
        level, resamples, seed: as in `mean_interval`.

    Raises:
        ArgumentError: as `mean_interval`; also a metric that is not finite.
    """
    _check(count, level, resamples)
    value, found = _resampled(metric, count, resamples, seed)
    return _interval(value, found, level, count)


def paired_difference(
    first: Callable[[list[int]], float] | Sequence[float] | Tensor,
    second: Callable[[list[int]], float] | Sequence[float] | Tensor,
    count: int | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """How much better one system is than another on the same examples, and whether that could be chance.

    Draws of examples are the same for both. The p-value compares the difference with the draws moved to a mean of 0:
    p = (1 + #{|d* - mean d*| >= |d|}) / (resamples + 1) (Efron & Tibshirani 1993, chapter 16).

    Args:
        first, second: a number for each example, in the same order, of which the mean counts; or functions of example
            numbers as in `corpus_interval`.
        count: examples; needed with functions only.
        level, resamples, seed: as in `mean_interval`.

    Raises:
        ArgumentError: as `mean_interval`; unequal numbers of examples; functions without a count.
    """
    if callable(first) and callable(second):
        if count is None:
            raise ArgumentError("count", expected="the number of examples", got="None", do="Functions do not tell it.")
        examples = count
        _check(examples, level, resamples)
        value, found = _resampled(lambda drawn: first(drawn) - second(drawn), examples, resamples, seed)
    else:
        apart = _apart(first, second, count)
        examples = len(apart)
        _check(examples, level, resamples)
        value, found = _resampled_mean(apart, resamples, seed)
    # what is equal but for rounding counts as equally far
    far = (found - found.mean()).abs() >= abs(value) * (1.0 - 1e-12)
    return PairedDifference(_interval(value, found, level, examples), (1.0 + float(far.sum())) / (resamples + 1.0))


def seeds_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The mean over training runs with other seeds, with Student's interval: mean -+ t s / sqrt(n).

    It takes runs to vary as a normal distribution does. With three runs t is 4.30 at 95 %: wide, and honest.

    Args:
        values: the metric of each run, finite, two or more.
        level: as in `mean_interval`.

    Raises:
        ArgumentError: too few values, one that is not finite, a level out of range.
    """
    numbers = _numbers("values", values)
    count = len(numbers)
    _check(count, level, resamples=1)
    mean = float(numbers.mean())
    half = student_quantile((1.0 + level) / 2.0, count - 1) * float(numbers.std(correction=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, level, count)


def student_quantile(probability: float, freedom: int) -> float:
    """The number below which a Student-t variable falls with this probability.

    Found by bisection on the distribution function, which for whole degrees of freedom is a finite sum (Abramowitz &
    Stegun 1964, 26.7.3 and 26.7.4). Right to about 12 digits for probabilities from 0.0005 to 0.9995.

    Args:
        probability: between 0 and 1.
        freedom: degrees of freedom, 1 or more.

    Raises:
        ArgumentError: either out of range.
    """
    if not 0.0 < probability < 1.0:
        raise ArgumentError(
            "probability", expected="between 0 and 1", got=repr(probability), do="Both ends are infinite."
        )
    if freedom < 1:
        raise ArgumentError(
            "freedom", expected="1 or more", got=repr(freedom), do="Two runs have one degree of freedom."
        )
    if probability < 0.5:
        return -student_quantile(1.0 - probability, freedom)
    central = 2.0 * probability - 1.0
    low, high = 0.0, math.pi / 2.0  # of the angle arctan(t / sqrt(freedom))
    for _ in range(200):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _central_probability(middle, freedom) < central else (low, middle)
    return math.tan((low + high) / 2.0) * math.sqrt(freedom)


def _central_probability(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle))."""
    squared = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for number in range(3 if odd else 2, freedom - 1, 2):
        term *= squared * (number - 1) / number
        total += term
    return 2.0 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _apart(
    first: Callable[[list[int]], float] | Sequence[float] | Tensor,
    second: Callable[[list[int]], float] | Sequence[float] | Tensor,
    count: int | None,
) -> Tensor:
    """First minus second for each example."""
    if callable(first) or callable(second):
        raise ArgumentError(
            "first, second", expected="two functions or two lists", got="one of each", do="Give both in one form."
        )
    one, other = _numbers("first", first), _numbers("second", second)
    if len(one) != len(other) or count not in (None, len(one)):
        got = f"{len(one)} and {len(other)}" + ("" if count is None else f", count {count}")
        raise ArgumentError(
            "first, second", expected="numbers for the same examples", got=got, do="Score both on one test set."
        )
    return one - other


def _resampled_mean(numbers: Tensor, resamples: int, seed: int) -> tuple[float, Tensor]:
    """The mean of all numbers, and of each draw."""
    means = [numbers[drawn].mean(1) for drawn in _draws(len(numbers), resamples, seed)]
    return float(numbers.mean()), torch.cat(means)


def _resampled(metric: Callable[[list[int]], float], count: int, resamples: int, seed: int) -> tuple[float, Tensor]:
    """The metric of all examples, and of each draw."""
    value = float(metric(list(range(count))))
    found: list[float] = []
    for drawn in _draws(count, resamples, seed):
        rows: list[list[int]] = cast("Any", drawn).tolist()
        found += [float(metric(row)) for row in rows]
    draws = torch.tensor(found, dtype=torch.float64)
    if not math.isfinite(value) or not bool(draws.isfinite().all()):
        raise ArgumentError(
            "metric", expected="a finite number of any examples", got="NaN or infinity",
            do="Let it say what it is for examples that are all alike.",
        )  # fmt: skip
    return value, draws


def _draws(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Example numbers with replacement, (some resamples, count) at a time."""
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, _AT_ONCE // count)
    for first in range(0, resamples, at_once):
        yield torch.randint(count, (min(at_once, resamples - first), count), generator=generator)


def _interval(value: float, draws: Tensor, level: float, count: int) -> Interval:
    ends = torch.tensor([(1.0 - level) / 2.0, (1.0 + level) / 2.0], dtype=torch.float64)
    low, high = (float(end) for end in torch.quantile(draws, ends))
    return Interval(value, low, high, level, count)


def _numbers(name: str, values: Sequence[float] | Tensor) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if numbers.dim() != 1 or not bool(numbers.isfinite().all()):
        raise ArgumentError(
            name, expected="a list of finite numbers", got=f"shape {tuple(numbers.shape)}, or NaN or infinity",
            do="Say what the metric is for each example.",
        )  # fmt: skip
    return numbers


def _check(count: int, level: float, resamples: int) -> None:
    if count < 2:
        raise ArgumentError("examples", expected="2 or more", got=str(count), do="One number says nothing of another.")
    if not 0.0 < level < 1.0:
        raise ArgumentError("level", expected="between 0 and 1", got=repr(level), do="Take 0.95.")
    if resamples < 1:
        raise ArgumentError("resamples", expected="1 or more", got=str(resamples), do=f"Take {RESAMPLES}.")
