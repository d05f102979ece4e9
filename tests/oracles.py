"""The oracle every kernel is compared with, and the comparisons. NaN places first, then infinities, then values.

A comparator that passes when one side is NaN proves nothing (`test_oracles_bite.py` feeds it such cases), so
places are compared before anything is subtracted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import regard
from regard.trust import budget

Attention = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One attention problem: three tensors and the options of `regard.attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)

    def copied(self, dtype: torch.dtype | None = None, *, gradient: bool = False) -> Case:
        """A case of fresh leaves with the same numbers, in `dtype` unless None; `gradient` lets all of them learn."""

        def fresh(tensor: Tensor) -> Tensor:
            copied = tensor.detach().clone(memory_format=torch.preserve_format)
            return (copied if dtype is None else copied.to(dtype)).requires_grad_(gradient)

        options = dict(self.options)
        for name in ("bias", "sink"):
            if options.get(name) is not None:
                options[name] = fresh(options[name])
        if options.get("position") is not None:
            options["position"] = copy.deepcopy(options["position"]).requires_grad_(gradient)
            options["position"].to(dtype if dtype is not None else self.query.dtype)
        return Case(fresh(self.query), fresh(self.key), fresh(self.value), options)

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that wants a gradient, by name: inputs, bias, sink, the position's tables."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        named |= {name: self.options[name] for name in ("bias", "sink") if self.options.get(name) is not None}
        position: nn.Module | None = self.options.get("position")
        if position is not None:
            named |= {f"position.{name}": parameter for name, parameter in position.named_parameters()}
        return {name: tensor for name, tensor in named.items() if tensor.requires_grad}

    def run(self, function: Attention, **more: Any) -> Any:
        """Call `function` on this case."""
        return function(self.query, self.key, self.value, **self.options, **more)


@dataclass(frozen=True)
class Answer:
    """What a function made of a case, and the gradients of all that goes in (empty when none were asked for)."""

    output: Tensor
    lse: Tensor | None
    gradients: Mapping[str, Tensor]


def answer(function: Attention, case: Case, *, dtype: torch.dtype | None = None, gradient: bool = True) -> Answer:
    """Run `function` on a fresh copy of the case; the gradient is that of a fixed random mixture of what it returns."""
    fresh = case.copied(dtype, gradient=gradient)
    returned = fresh.run(function)
    output, lse = returned if isinstance(returned, tuple) else (returned, None)
    if not gradient:
        return Answer(output, lse, {})
    mixture = (output * _weights_like(output, 1)).sum()
    if lse is not None:
        finite = lse.masked_fill(lse.isinf(), 0.0)
        mixture = mixture + (finite * _weights_like(lse, 2)).sum()
    leaves = fresh.leaves()
    found = torch.autograd.grad(mixture, list(leaves.values()), allow_unused=True)
    zeros = (
        torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves.values(), found, strict=True)
    )
    return Answer(output.detach(), None if lse is None else lse.detach(), dict(zip(leaves, zeros, strict=True)))


def _weights_like(tensor: Tensor, seed: int) -> Tensor:
    numbers = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(torch.bfloat16).to(tensor.dtype)  # the same numbers in every dtype


def exact(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """The oracle behind the interface of `regard.attention`: the reference, on whatever dtype it is given."""
    return_lse = options.pop("return_lse", False)
    for name in ("backend", "additive"):
        options.pop(name, None)
    result = regard.reference.attention(query, key, value, **options)
    return (result.output, result.lse) if return_lse else result.output


def oracle(case: Case, *, gradient: bool = True) -> Answer:
    """The truth about a case: the reference in float64, on the case's own numbers cast up."""
    return answer(exact, case, dtype=torch.float64, gradient=gradient)


# ------------------------------------------------------------------------------------ comparisons


def assert_same_special(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """Shapes, then the places of NaN, then the places and signs of infinities."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    for what, test in (
        ("NaN", torch.isnan),
        ("+inf", torch.isposinf),
        ("-inf", torch.isneginf),
    ):
        have, want = test(actual), test(expected)
        assert torch.equal(have, want), (
            f"{name}: {what} in {int(have.sum())} places, expected in {int(want.sum())}, "
            f"and {int((have != want).sum())} places differ"
        )


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference where both are finite; call assert_same_special first."""
    finite = expected.isfinite() & actual.isfinite()
    difference = (actual.detach().to(torch.float64) - expected.detach().to(torch.float64)).abs()
    return float(difference[finite].max()) if finite.any() else 0.0


def assert_within(actual: Tensor, expected: Tensor, limit: float, name: str = "result") -> None:
    """No difference above `limit`, NaN and infinities in the same places."""
    assert_same_special(actual, expected, name)
    error = largest_error(actual, expected)
    assert error <= limit, f"{name}: error {error:.3g} above {limit:.3g}"


def assert_same(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """The same bits (NaN equals NaN)."""
    assert actual.dtype == expected.dtype, f"{name}: dtype {actual.dtype}, expected {expected.dtype}"
    assert_within(actual, expected, 0.0, name)


def assert_answer(actual: Answer, plain: Answer, truth: Answer) -> None:
    """The error budget of regard.trust.budget, for the output, the lse and every gradient."""
    _assert_forward(actual.output, plain.output, truth.output, "output")
    assert (actual.lse is None) == (truth.lse is None), "one has an lse and the other has none"
    if actual.lse is not None and plain.lse is not None and truth.lse is not None:
        assert actual.lse.dtype == torch.float32, f"lse is {actual.lse.dtype}, expected float32"
        _assert_forward(actual.lse, plain.lse.to(torch.float32), truth.lse, "lse")
    assert set(actual.gradients) == set(truth.gradients), "gradients of different inputs"
    for name, expected in truth.gradients.items():
        limit = budget.gradient(name, plain.gradients, truth.gradients)
        assert_within(actual.gradients[name], expected, limit, f"gradient of {name}")


def _assert_forward(actual: Tensor, plain: Tensor, expected: Tensor, name: str) -> None:
    assert_within(actual, expected, budget.forward(plain, expected), name)
