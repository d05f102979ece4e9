"""What a backend is, and what it is asked.

A `Problem` is a validated attention problem; a `Backend` answers `support(problem)` with a value, never
an exception, and computes `run(problem)` when it said yes. Backends know nothing of one another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from regard._finite import all_finite
from regard._shapes import Sizes
from regard.masks import Mask
from regard.positions import Position
from regard.positions._pairs import bias_of_pairs


@dataclass(frozen=True)
class Support:
    """A backend's answer: can it compute this problem exactly, and why (not)."""

    ok: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Problem:
    """One attention problem whose every argument has been checked."""

    query: Tensor
    key: Tensor
    value: Tensor
    sizes: Sizes
    mask: Mask | None
    position: Position | None
    bias: Tensor | None
    scale: float
    softcap: float | None
    sink: Tensor | None
    dropout_p: float
    seed: int | Tensor | None
    return_lse: bool

    @property
    def finite(self) -> bool | None:
        """Whether query, key and value hold only finite numbers, read when first asked; None where it cannot be."""
        # The compiler cannot trace the lock of a cached property.
        return None if torch.compiler.is_compiling() else self._finite

    @cached_property
    def _finite(self) -> bool | None:
        return all_finite(self.query, self.key, self.value)

    @property
    def wants_gradient(self) -> bool:
        """Will autograd ask for a gradient of anything that goes in?"""
        learned = () if self.position is None else tuple(self.position.parameters())
        inputs = (self.query, self.key, self.value, self.bias, self.sink, *learned)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)

    def has_term(self, term: str) -> bool:
        """Does the position, if any, have this term?"""
        return self.position is not None and term in self.position.terms

    def rotated(self) -> tuple[Tensor, Tensor]:
        """Query and key after the position's rotation; unchanged when it has none."""
        if self.position is None or not self.has_term("rotation"):
            return self.query, self.key
        positions = self.position.query_positions(self.sizes.q_len, self.sizes.kv_len, device=self.query.device)
        keys = torch.arange(self.sizes.kv_len, device=self.key.device)
        return self.position.rotate(self.query, positions), self.position.rotate(self.key, keys)

    def added(self) -> Tensor | None:
        """All that is added to the scores, 4-D and broadcastable to the scores, or None: bias and position."""
        if self.position is None or not self.has_term("bias"):
            return self.bias
        rows = self.position.query_positions(self.sizes.q_len, self.sizes.kv_len, device=self.query.device)
        cols = torch.arange(self.sizes.kv_len, device=self.query.device)
        placed = bias_of_pairs(self.position, rows, cols, count=self.sizes.q_len + self.sizes.kv_len - 1).unsqueeze(0)
        return placed if self.bias is None else placed + self.bias

    def allowed(self) -> Tensor | None:
        """The mask as a bool tensor that broadcasts to the scores, or None when every pair may attend."""
        if self.mask is None:
            return None
        return self.mask.dense(self.sizes.q_len, self.sizes.kv_len, device=self.query.device)


class Backend(ABC):
    """Who computes exact attention."""

    name: ClassVar[str]

    @abstractmethod
    def support(self, problem: Problem) -> Support:
        """Can this backend compute the problem within the error budget, every option honoured?"""

    @abstractmethod
    def run(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """The output (batch, heads, q_len, value_dim), and the lse float32 (batch, heads, q_len) when asked for."""
