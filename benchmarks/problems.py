"""What is computed: one attention problem, its inputs, and how much work it is."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard.masks import Causal, GlobalTokens, Mask, SlidingWindow
from regard.positions import T5Bias

Dtype = Literal["fp32", "bf16"]
Direction = Literal["forward", "forward+backward"]
Pattern = Literal["dense", "causal", "window", "window+global"]
Extra = Literal["none", "dropout", "bias-table"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 20261122
DROPOUT = 0.1


@dataclass(frozen=True)
class Problem:
    """One attention problem. `copies`: so many sets of inputs take turns, so that no cache holds them all."""

    dtype: Dtype = "fp32"
    direction: Direction = "forward"
    pattern: Pattern = "dense"
    q_len: int = 1024
    kv_len: int = 1024
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    value_dim: int = 64
    radius: int = 256
    global_tokens: int = 16
    extra: Extra = "none"
    copies: int = 1

    @property
    def name(self) -> str:
        """Short, unique, and readable in a table."""
        length = f"n={self.q_len}" if self.q_len == self.kv_len else f"q={self.q_len} kv={self.kv_len}"
        heads = f"h={self.heads}" if self.heads == self.kv_heads else f"h={self.heads}/{self.kv_heads}"
        width = f"d={self.head_dim}" if self.head_dim == self.value_dim else f"d={self.head_dim}/{self.value_dim}"
        pattern = f"{self.pattern}±{self.radius}" if self.pattern.startswith("window") else self.pattern
        extra = () if self.extra == "none" else (self.extra,)
        return " ".join((self.dtype, self.direction, pattern, length, heads, width, *extra))

    @property
    def backward(self) -> bool:
        """Are gradients of query, key and value asked for?"""
        return self.direction == "forward+backward"

    @property
    def visible_pairs(self) -> int:
        """How many pairs (query, key) of one head may attend."""
        return _visible_pairs(self)

    @property
    def flops(self) -> int:
        """Useful work: 2 (d + d_v) for each visible pair, and 3.5 times that with backward."""
        forward = 2 * (self.head_dim + self.value_dim) * self.visible_pairs * self.heads
        return forward * 7 // 2 if self.backward else forward

    @property
    def result_bytes(self) -> int:
        """What must be returned: the output, and the gradients of query, key and value."""
        query, key = self.heads * self.q_len, self.kv_heads * self.kv_len
        numbers = query * self.value_dim
        if self.backward:
            numbers += query * self.head_dim + key * (self.head_dim + self.value_dim)
        return numbers * DTYPES[self.dtype].itemsize

    @property
    def score_bytes(self) -> int:
        """One tensor of all scores, which plain peers lay out."""
        return self.heads * self.q_len * self.kv_len * DTYPES[self.dtype].itemsize


def square(length: int, **fields: Any) -> Problem:
    """A problem with as many queries as keys."""
    return Problem(q_len=length, kv_len=length, **fields)


def allowed(problem: Problem, rows: Tensor) -> Tensor:
    """Which keys these queries may attend to, bool (rows, kv_len): written apart from regard's masks."""
    query, key = rows[:, None], torch.arange(problem.kv_len)[None, :]
    if problem.pattern == "dense":
        return torch.ones(len(rows), problem.kv_len, dtype=torch.bool)
    if problem.pattern == "causal":
        return key <= query
    near = (key - query).abs() <= problem.radius
    if problem.pattern == "window":
        return near
    return near | (key < problem.global_tokens) | (query < problem.global_tokens)


@functools.cache
def _visible_pairs(problem: Problem) -> int:
    return sum(int(allowed(problem, rows).sum()) for rows in some_rows(problem.q_len, 1024))


def some_rows(length: int, step: int) -> Iterator[Tensor]:
    """The indices of all rows, `step` at a time, so that not all pairs are laid out at once."""
    return (torch.arange(start, min(start + step, length)) for start in range(0, length, step))


def mask_of(problem: Problem) -> Mask | None:
    """The same pattern as a value of `regard.masks`."""
    if problem.pattern == "dense":
        return None
    if problem.pattern == "causal":
        return Causal()
    window = SlidingWindow(problem.radius)
    return window if problem.pattern == "window" else window | GlobalTokens(problem.global_tokens)


@dataclass(frozen=True)
class Inputs:
    """What goes in. `position` is a table with gradient where the problem asks for one."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_output: Tensor | None
    position: T5Bias | None

    def wanted(self) -> tuple[Tensor, ...]:
        """What gradients are asked of: query, key, value, and the table if there is one."""
        table = () if self.position is None else (self.position.table,)
        return (self.query, self.key, self.value, *table)


def make_inputs(problem: Problem, *, copy: int = 0) -> Inputs:
    """Unit-normal inputs: the same numbers in every process for the same problem and copy."""
    generator = torch.Generator().manual_seed(SEED + copy)
    dtype = DTYPES[problem.dtype]

    def normal(heads: int, length: int, width: int) -> Tensor:
        return torch.randn(1, heads, length, width, generator=generator).to(dtype)

    query = normal(problem.heads, problem.q_len, problem.head_dim)
    key = normal(problem.kv_heads, problem.kv_len, problem.head_dim)
    value = normal(problem.kv_heads, problem.kv_len, problem.value_dim)
    grad_output = normal(problem.heads, problem.q_len, problem.value_dim) if problem.backward else None
    position = _table(problem) if problem.extra == "bias-table" else None
    for tensor in (query, key, value):
        tensor.requires_grad_(problem.backward)
    return Inputs(query, key, value, grad_output, position)


def _table(problem: Problem) -> T5Bias:
    weight = torch.randn(32, problem.heads, generator=torch.Generator().manual_seed(SEED)) * 0.1
    position = T5Bias.from_weight(weight)
    position.table.requires_grad_(problem.backward)
    return position
