"""Attention problems as plain values, so that one that was ever found wrong can be written down as a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard import masks
from regard.masks import Mask
from regard.positions import ALiBi, Position, RoPE, Shaw, T5Bias
from regard.trust import Question
from tests.strategies import bools, numbers

PositionName = Literal["none", "alibi", "t5", "rope", "shaw"]
Drawn = Literal["none", "plain", "forbidding"]
Part = tuple[str, int, int]
"""A mask without its sizes: its kind, and two numbers that mean what the kind makes of them."""
Join = Literal["and", "or", "but not"]


@dataclass(frozen=True)
class Described:
    """Everything but the numbers in the tensors, which come from a seed.

    mask: parts that are joined from left to right.
    bias: which of batch, heads, queries and keys it has; the others are 1 long.
    heads_inside: tensors lie in memory as projections leave them, (batch, length, heads, width).
    poisoned: a tensor with one NaN in it.
    """

    batch: int = 1
    kv_heads: int = 2
    group: int = 1
    q_len: int = 8
    kv_len: int = 8
    width: int = 8
    value_dim: int = 8
    dtype: torch.dtype = torch.float32
    heads_inside: bool = False
    mask: tuple[tuple[Join, Part], ...] = ()
    bias: Drawn = "none"
    bias_sizes: tuple[bool, bool, bool, bool] = (True, True, True, True)
    position: PositionName = "none"
    scale: float | None = None
    softcap: float | None = None
    dropout_p: float = 0.0
    sink: bool = False
    poisoned: Literal["none", "query", "key", "value"] = "none"

    @property
    def heads(self) -> int:
        """Of the query."""
        return self.kv_heads * self.group

    def question(self, seed: int) -> Question:
        """The problem with the numbers of this seed."""
        query = self._tensor(seed, "query", self.heads, self.q_len, self.width)
        key = self._tensor(seed + 1, "key", self.kv_heads, self.kv_len, self.width)
        value = self._tensor(seed + 2, "value", self.kv_heads, self.kv_len, self.value_dim)
        options: dict[str, Any] = {"enable_gqa": self.group > 1, "scale": self.scale, "softcap": self.softcap}
        options["mask"] = self._mask(seed)
        options["position"] = self._position(seed + 3)
        options["bias"] = self._bias(seed + 4)
        options["sink"] = numbers(seed + 6, self.heads, dtype=self.dtype) if self.sink else None
        options |= {"dropout_p": self.dropout_p, "seed": 5} if self.dropout_p else {}
        return Question(query, key, value, {name: given for name, given in options.items() if given is not None})

    def _tensor(self, seed: int, name: str, heads: int, length: int, width: int) -> Tensor:
        tensor = numbers(seed, self.batch, heads, length, width, dtype=self.dtype)
        if name == self.poisoned and tensor.numel():
            tensor.view(-1)[seed % tensor.numel()] = torch.nan
        return tensor.transpose(1, 2).contiguous().transpose(1, 2) if self.heads_inside else tensor

    def _mask(self, seed: int) -> Mask | None:
        found: Mask | None = None
        for join, part in self.mask:
            other = self._part(part, seed)
            match join:
                case _ if found is None:
                    found = other
                case "and":
                    found = found & other
                case "or":
                    found = found | other
                case "but not":
                    found = found & ~other
        return found

    def _part(self, part: Part, seed: int) -> Mask:
        kind, first, second = part
        lengths = [(first + sample * second) % (self.kv_len + 1) for sample in range(self.batch)]
        pairs = (self.q_len, self.kv_len)
        kinds: dict[str, Callable[[], Mask]] = {
            "causal": lambda: masks.Causal("top_left" if first % 2 else "bottom_right"),
            "window": lambda: masks.SlidingWindow(first, second),
            "padding": lambda: masks.Padding(lengths, side="left" if second % 2 else "right"),
            "global": lambda: masks.GlobalTokens(min(first, *pairs)),
            "blocks": lambda: masks.Blocks(first + 1),
            "pairs": lambda: masks.Dense(bools(seed + first, *pairs)),
            "pairs of each head": lambda: masks.Dense(bools(seed + first, self.batch, self.heads, *pairs)),
        }
        return kinds[kind]()

    def _bias(self, seed: int) -> Tensor | None:
        if self.bias == "none":
            return None
        whole = (self.batch, self.heads, self.q_len, self.kv_len)
        sizes = [size if kept else 1 for size, kept in zip(whole, self.bias_sizes, strict=True)]
        bias = numbers(seed, *sizes, dtype=self.dtype)
        return bias.masked_fill(bools(seed + 1, *sizes), -torch.inf) if self.bias == "forbidding" else bias

    def _position(self, seed: int) -> Position | None:
        """None where there cannot be one."""
        made: Position
        match self.position:
            case "alibi":
                made = ALiBi(self.heads, align="bottom_right")
            case "t5":
                made = T5Bias(self.heads, align="bottom_right")
            case "rope" if self.width % 2 == 0:
                made = RoPE(self.width, align="bottom_right")
            case "shaw":
                made = Shaw(self.width, 3, value_dim=self.value_dim, align="bottom_right")
            case _:
                return None
        for parameter in made.parameters():
            parameter.data.copy_(numbers(seed, *parameter.shape))
        return made
