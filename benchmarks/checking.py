"""Wrong answers are not timed: every contestant is compared once with float64, on some rows or one head."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.problems import Inputs, Problem, allowed, some_rows

TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2}
"""Relative error in the Frobenius norm. A mask that is off by one key exceeds it; rounding does not."""

_ROWS = 64


_NOTHING = 1e-6
"""Mean square of numbers that are as good as none, beside inputs of mean square 1."""


def relative_error(problem: Problem, inputs: Inputs, results: tuple[Tensor, ...]) -> float:
    """The largest relative error among what was returned. Dropout is random by nature and is not compared."""
    if problem.extra == "dropout":
        return math.nan
    if problem.backward:
        return max(_error(got, expected) for got, expected in _with_gradients(problem, inputs, results))
    count = min(_ROWS, problem.q_len)
    rows = torch.tensor(sorted({place * (problem.q_len - 1) // max(count - 1, 1) for place in range(count)}))
    heads = torch.tensor(sorted({0, problem.heads - 1}))
    expected = _output(problem, inputs, heads, rows)
    return _error(results[0].detach()[:, heads][:, :, rows], expected)


def is_right(problem: Problem, error: float) -> bool:
    """Is the error small enough to time the contestant? NaN means that nothing was compared."""
    return problem.extra == "dropout" if math.isnan(error) else error <= TOLERANCE[problem.dtype]


def _error(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    wrong, whole = (got.double() - expected).square().sum(), expected.square().sum()
    # A gradient may be nothing at all, as that of the only key is; then what is small beside the inputs is right.
    return math.sqrt(float(wrong) / max(float(whole), _NOTHING * max(expected.numel(), 1)))


def _output(problem: Problem, inputs: Inputs, heads: Tensor, rows: Tensor) -> Tensor:
    """The definition, in float64, for these heads and rows."""
    shared = heads // (problem.heads // problem.kv_heads)
    query = inputs.query[:, heads][:, :, rows].double()
    key, value = inputs.key[:, shared].double(), inputs.value[:, shared].double()
    scores = query @ key.mT / math.sqrt(problem.head_dim)
    if inputs.position is not None:
        scores = scores + _bias(problem, inputs, heads, rows)
    return scores.masked_fill(~allowed(problem, rows), -torch.inf).softmax(-1) @ value


def _bias(problem: Problem, inputs: Inputs, heads: Tensor, rows: Tensor) -> Tensor:
    if inputs.position is None:
        raise ValueError("no position")
    distances = torch.arange(problem.kv_len)[None, :] - rows[:, None]
    found = inputs.position.distance_bias(distances.reshape(-1)).double()
    return found.reshape(problem.heads, *distances.shape)[heads]


def _with_gradients(problem: Problem, inputs: Inputs, results: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """(got, expected) for the output and the three gradients of the last head, some rows at a time."""
    head = torch.tensor([problem.heads - 1])
    if inputs.grad_output is None or problem.heads != problem.kv_heads:
        raise ValueError("gradients are compared for equal heads only")
    leaves = [tensor.detach()[:, head].double().requires_grad_() for tensor in inputs.wanted()[:3]]
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    outputs: list[Tensor] = []
    for rows in some_rows(problem.q_len, 512):
        query, key, value = leaves
        scores = query[:, :, rows] @ key.mT / math.sqrt(problem.head_dim)
        if inputs.position is not None:
            scores = scores + _bias(problem, inputs, head, rows).detach()
        output = scores.masked_fill(~allowed(problem, rows), -torch.inf).softmax(-1) @ value
        gradients = torch.autograd.grad(output, leaves, inputs.grad_output[:, head][:, :, rows].double())
        sums = [so_far + gradient for so_far, gradient in zip(sums, gradients, strict=True)]
        outputs.append(output.detach())
    expected = [torch.cat(outputs, 2), *sums]
    got = [result.detach()[:, head] for result in results[:4]]
    return list(zip(got, expected, strict=True))
