"""Every option of `regard.attention` and the values it is tried with. Pairs of them make tests/test_option_pairs.py.

A value is a function from the sizes of a problem to what the caller would pass. `ASPECTS` names, for each
aspect, the parameter of `regard.attention` it belongs to; a parameter without an aspect fails a test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from regard import masks, positions
from regard.masks import Causal, Dense, Mask, SlidingWindow
from tests.oracles import Case

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 8, 6
SEED = 20


@dataclass(frozen=True)
class Spec:
    """The sizes of a problem and what makes each of its options."""

    q_len: int = LENGTH
    kv_heads: int = HEADS
    value_dim: int = WIDTH
    dtype: torch.dtype = torch.float32
    gradient: bool = True
    layout: str = "contiguous"
    makers: Mapping[str, Callable[[Spec], Any]] = field(default_factory=dict)

    def case(self) -> Case:
        """The problem, with the same random numbers in every run."""
        query = _laid_out(self.random(1, BATCH, HEADS, self.q_len, WIDTH), self.layout)
        key = _laid_out(self.random(2, BATCH, self.kv_heads, LENGTH, WIDTH), self.layout)
        value = _laid_out(self.random(3, BATCH, self.kv_heads, LENGTH, self.value_dim), self.layout)
        return Case(query, key, value, {name: make(self) for name, make in self.makers.items()})

    def random(self, seed: int, *sizes: int) -> Tensor:
        """Unit-normal numbers in the dtype of the problem."""
        generator = torch.Generator().manual_seed(SEED + seed)
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(self.dtype)

    def having(self, **makers: Callable[[Spec], Any]) -> Spec:
        """The same with more options."""
        return replace(self, makers={**self.makers, **makers})


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return tensor
    if layout == "heads last":  # what a projection gives: (batch, length, heads, head_dim) seen the other way
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)  # the last stride is not 1


@dataclass(frozen=True)
class Value:
    """One value of one aspect: what it makes of a problem."""

    aspect: str
    name: str
    apply: Callable[[Spec], Spec]

    def __str__(self) -> str:
        return f"{self.aspect}={self.name}"


def _option(parameter: str, make: Callable[[Spec], Any]) -> Callable[[Spec], Spec]:
    return lambda spec: spec.having(**{parameter: make})


def _resized(**sizes: Any) -> Callable[[Spec], Spec]:
    return lambda spec: replace(spec, **sizes)


def _some(*sizes: int, seed: int, share: float = 0.6) -> Tensor:
    """A bool tensor; of three rows or more, one is empty in every sample and head."""
    kept = torch.rand(*sizes, generator=torch.Generator().manual_seed(seed)) < share
    kept[..., 2:3, :] = False
    return kept


def _filled(position: positions.Position, dtype: torch.dtype) -> positions.Position:
    generator = torch.Generator().manual_seed(SEED)
    for parameter in position.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return position.to(dtype)


def _position(make: Callable[..., positions.Position], *arguments: Any, **named: Any) -> Callable[[Spec], Any]:
    return lambda spec: _filled(make(*arguments, align="bottom_right", **named), spec.dtype)


def _bias(*shape: int | None) -> Callable[[Spec], Tensor]:
    """A bias of this shape, where None is the length of the queries."""
    return lambda spec: spec.random(4, *(spec.q_len if size is None else size for size in shape))


def _forbidding(spec: Spec) -> Tensor:
    bias = spec.random(4, spec.q_len, LENGTH)
    bias[1:2], bias[:, 3] = -math.inf, -math.inf  # one query sees nothing, one key is never seen
    return bias[None, None]


def _always(mask: Mask | Tensor) -> Callable[[Spec], Mask | Tensor]:
    """The same mask whatever the lengths."""
    return lambda _: mask


MASKS: dict[str, Callable[[Spec], Mask | Tensor]] = {
    "causal": _always(Causal()),
    "causal-bottom-right": _always(Causal("bottom_right")),
    "causal-top-left": _always(Causal("top_left")),
    "window": _always(SlidingWindow(2, 1)),
    "window-of-none": _always(SlidingWindow(2, 0) & ~SlidingWindow(0)),  # the first query sees nothing
    "global-or-window": _always(masks.GlobalTokens([1, 4]) | SlidingWindow(1, align="bottom_right")),
    "padding": _always(masks.Padding([5, LENGTH])),
    "padding-left-and-causal": _always(masks.Padding([3, 8], side="left") & Causal("bottom_right")),
    "padding-of-whole-sample": _always(masks.Padding([0, 6])),
    "keys": _always(masks.Keys(_some(BATCH, 3, LENGTH, seed=1)[:, 0])),
    "documents": _always(masks.Documents([3, 5])),
    "blocks": _always(masks.Blocks(3)),
    "dilated": _always(masks.Dilated(2)),
    "prefix": _always(masks.PrefixLM(3, align="bottom_right")),
    "bigbird": _always(masks.BigBird(2, window_blocks=1, global_blocks=1, random_blocks=1)),
    "axial": _always(masks.Axial((2, 4), 1)),
    "criss-cross": _always(masks.CrissCross((2, 4))),
    "grid-blocks": _always(masks.GridBlocks((2, 4), (1, 2))),
    "neighborhood": _always(masks.Neighborhood((2, 4), 1)),
    "dense": lambda spec: Dense(_some(spec.q_len, LENGTH, seed=2)),
    "dense-4d": lambda spec: Dense(_some(BATCH, HEADS, spec.q_len, LENGTH, seed=3)),
    "tensor": lambda spec: _some(spec.q_len, LENGTH, seed=4),
    "tensor-4d": lambda spec: _some(BATCH, 1, spec.q_len, LENGTH, seed=5),
    "tensor-keys": _always(_some(BATCH, 1, 3, LENGTH, seed=6)[:, :, :1]),
    "tensor-false": lambda spec: torch.zeros(spec.q_len, LENGTH, dtype=torch.bool),
}
POSITIONS: dict[str, Callable[[Spec], Any]] = {
    "alibi": _position(positions.ALiBi, HEADS),
    "alibi-learned": _position(positions.ALiBi, HEADS, form="asymmetric", learnable=True),
    "t5": _position(positions.T5Bias, HEADS, buckets=8, max_distance=6),
    "continuous": _position(positions.ContinuousBias, HEADS, hidden=5),
    "shaw": lambda spec: _filled(positions.Shaw(WIDTH, 2, value_dim=spec.value_dim, align="bottom_right"), spec.dtype),
    "shaw-keys": _position(positions.Shaw, WIDTH, 2, values=False),
    "transformer-xl": _position(positions.TransformerXL, HEADS, WIDTH),
    "rope": _position(positions.RoPE, WIDTH),
    "rope-interleaved-part": _position(positions.RoPE, 4, style="interleaved"),
}
BIASES: dict[str, Callable[[Spec], Any]] = {
    "full": _bias(BATCH, HEADS, None, LENGTH),
    "heads": _bias(HEADS, 1, 1),
    "pairs": _bias(1, 1, None, LENGTH),
    "keys-of-sample": _bias(BATCH, 1, 1, LENGTH),
    "queries": _bias(1, HEADS, None, 1),
    "one-number": lambda spec: spec.random(4, 1)[0],
    "forbidding": _forbidding,
}


def _values(aspect: str, values: Mapping[str, Callable[[Spec], Spec]]) -> dict[str, Value]:
    return {name: Value(aspect, name, apply) for name, apply in values.items()}


def _of_parameter(parameter: str, makers: Mapping[str, Callable[[Spec], Any]]) -> dict[str, Value]:
    return _values(parameter, {name: _option(parameter, make) for name, make in makers.items()})


def _dropout(probability: float, seed: int | Tensor) -> Callable[[Spec], Spec]:
    return lambda spec: spec.having(dropout_p=lambda _: probability, seed=lambda _: seed)


PARAMETERS_OF = {
    "q_len": ("query",),
    "dtype": ("query", "key", "value"),
    "layout": ("query", "key", "value"),
    "gradient": ("query", "key", "value"),
    "value_dim": ("value",),
}
"""Aspects that are no parameter of their own, and the parameters they belong to."""
NOT_PAIRED = {"backend": "every pair is asked of every backend"}
"""Parameters that are no aspect, with the reason."""

ASPECTS: dict[str, dict[str, Value]] = {
    "mask": _of_parameter("mask", MASKS),
    "position": _of_parameter("position", POSITIONS),
    "bias": _of_parameter("bias", BIASES),
    "additive": _values(
        "additive",
        {"on": lambda spec: spec.having(additive=lambda _: True, bias=lambda at: torch.eye(at.q_len, LENGTH))},
    ),
    "scale": _of_parameter("scale", {"zero": lambda _: 0.0, "negative": lambda _: -0.8, "own": lambda _: 0.3}),
    "softcap": _of_parameter("softcap", {"low": lambda _: 0.7, "high": lambda _: 30.0}),
    "sink": _of_parameter("sink", {"on": lambda spec: spec.random(5, HEADS)}),
    "dropout_p": _values("dropout_p", {"some": _dropout(0.4, 11), "all": _dropout(1.0, 11)}),
    "seed": _values("seed", {"tensor": _dropout(0.2, torch.tensor(2**40 + 3))}),
    "enable_gqa": _values(
        "enable_gqa",
        {
            name: lambda spec, shared=shared: replace(spec, kv_heads=shared).having(enable_gqa=lambda _: True)
            for name, shared in (("two", 2), ("multi-query", 1), ("needless", HEADS))
        },
    ),
    "return_lse": _of_parameter("return_lse", {"on": lambda _: True}),
    "q_len": _values("q_len", {"one": _resized(q_len=1), "fewer": _resized(q_len=5), "more": _resized(q_len=11)}),
    "value_dim": _values("value_dim", {"narrow": _resized(value_dim=3), "wide": _resized(value_dim=9)}),
    "dtype": _values(
        "dtype",
        {str(dtype).split(".")[1]: _resized(dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)},
    ),
    "layout": _values("layout", {name: _resized(layout=name) for name in ("heads last", "last stride not 1")}),
    "gradient": _values("gradient", {"none": _resized(gradient=False)}),
}

SINGLES = tuple(value for values in ASPECTS.values() for value in values.values())
ALONE = {
    "mask": {"keys", "blocks", "dilated", "prefix", "bigbird", "axial", "criss-cross", "grid-blocks", "neighborhood"}
    | {"dense", "tensor-keys"},
    "position": {"shaw-keys", "rope-interleaved-part"},
    "bias": {"heads", "queries", "one-number"},
    "layout": {"last stride not 1"},
    "softcap": {"high"},
    "scale": {"own"},
    "enable_gqa": {"needless"},
}
"""Values tried alone only, since another of their aspect goes the same ways through every backend."""
SETTING_THE_SAME = ({"bias", "additive"}, {"dropout_p", "seed"})
PAIRS = tuple(
    (first, second)
    for first, second in combinations(SINGLES, 2)
    if first.aspect != second.aspect
    and {first.aspect, second.aspect} not in SETTING_THE_SAME
    and not any(value.name in ALONE.get(value.aspect, ()) for value in (first, second))
)


@functools.lru_cache(maxsize=8)
def spec_of(*values: Value) -> Spec:
    """The base problem with these values applied."""
    return functools.reduce(lambda spec, value: value.apply(spec), values, Spec())
