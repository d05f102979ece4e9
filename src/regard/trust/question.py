"""A question: one attention problem, in regard's own argument names, and its answer in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regard import reference
from regard._shapes import Sizes

OPTIONS = ("mask", "position", "bias", "scale", "softcap", "sink", "dropout_p", "seed", "enable_gqa")
"""What a question may ask for beside query, key and value."""


@dataclass(frozen=True, eq=False)
class Question:
    """One attention problem.

    query: (batch, heads, q_len, head_dim).
    key: (batch, kv_heads, kv_len, head_dim).
    value: (batch, kv_heads, kv_len, value_dim).
    options: named and meant as those of `regard.attention`; one that is absent is left out.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def sizes(self) -> Sizes:
        """The sizes of the tensors, as they are: whether they fit together is not asked."""
        batch, heads, q_len, head_dim = self.query.shape
        kv_heads, kv_len = self.key.shape[1:3]
        return Sizes(batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim=self.value.shape[3])

    @property
    def dtype(self) -> torch.dtype:
        """Of the query."""
        return self.query.dtype

    def truth(self) -> reference.Result:
        """The reference in float64, on this question's own numbers cast up: output, weights, scores, lse."""
        exact = self.copied(torch.float64)
        with torch.no_grad():
            return reference.attention(exact.query, exact.key, exact.value, **exact.options)

    def asked(self) -> dict[str, Any]:
        """The options that ask for something: not None, no grouping that is off, no dropout of 0 nor its seed."""
        asked = {name: value for name, value in self.options.items() if value is not None and value is not False}
        if asked.get("dropout_p") == 0.0:
            del asked["dropout_p"]
        if "dropout_p" not in asked:
            asked.pop("seed", None)
        return asked

    def copied(self, dtype: torch.dtype | None = None, *, gradient: bool = False) -> Question:
        """Fresh leaves with the same numbers and strides, in `dtype` unless None; `gradient` lets all of them learn."""

        def fresh(tensor: Tensor) -> Tensor:
            return _relaid(tensor.detach(), tensor.dtype if dtype is None else dtype).requires_grad_(gradient)

        options = dict(self.options)
        for name in ("bias", "sink"):
            if options.get(name) is not None:
                options[name] = fresh(options[name])
        if options.get("position") is not None:
            position: nn.Module = copy.deepcopy(options["position"])
            options["position"] = position.requires_grad_(gradient).to(self.dtype if dtype is None else dtype)
        return Question(fresh(self.query), fresh(self.key), fresh(self.value), options)

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that wants a gradient, by name: query, key, value, bias, sink, the tables of the position."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        named |= {name: self.options[name] for name in ("bias", "sink") if self.options.get(name) is not None}
        position: nn.Module | None = self.options.get("position")
        if position is not None:
            named |= {f"position.{name}": parameter for name, parameter in position.named_parameters()}
        return {name: tensor for name, tensor in named.items() if tensor.requires_grad}


def _relaid(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers with the same strides in memory of their own."""
    if tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=tensor.device)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    held = tensor.as_strided((reach,), (1,)).to(dtype, copy=True)
    return held.as_strided(tensor.shape, tensor.stride())
