"""One observed layer: weights and statistics on demand, checked against what the layer gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from regard._errors import RegardError
from regard._front_door import Options, build_problem
from regard.backends import Problem
from regard.observation.call import AttentionCall
from regard.observation.statistics import Statistics, statistics_of
from regard.observation.tiles import (
    Selection,
    row_normaliser,
    score_tile,
    select,
    softmax,
    weights_of,
    without_autocast,
)
from regard.positions._pairs import distances_of_pairs

TOLERANCE = 1e-5
"""Largest difference between weights . value and what the layer gave, in float32 (FAULTS F68), relative to its size."""
LARGE_SCORE = 32.0
"""Scores beyond this are rounded so coarsely in float32 that the tolerance grows with them ..."""
LARGEST_SCORE = 1024.0
"""... up to here: what lies beyond are masks written as large numbers, and models gone wrong."""
HALF_STEPS = 16
"""In half precision the tolerance is so many rounding steps: scores and weights may have been rounded to it too."""


class ObservedLayer:
    """One attention layer as it ran last. Weights are computed when asked for, exact, in O(tile) memory."""

    def __init__(self, name: str, call: AttentionCall) -> None:
        self.name = name
        self.call = call
        self._checked = False

    @cached_property
    def _problem(self) -> Problem:
        options: Options = {**self.call.options, "enable_gqa": True, "additive": True}
        with without_autocast(self.call.query.device):
            return build_problem(self.call.query, self.call.key, self.call.value, **options)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.call.query.shape[1]

    @property
    def kv_heads(self) -> int:
        """Key/value heads; fewer than `heads` with grouped queries."""
        return self.call.key.shape[1]

    @property
    def q_len(self) -> int:
        """Number of queries."""
        return self.call.query.shape[2]

    @property
    def kv_len(self) -> int:
        """Number of keys."""
        return self.call.key.shape[2]

    def weights(self, heads: Selection = None, rows: Selection = None, cols: Selection = None) -> Tensor:
        """The weights of chosen query heads, queries and keys, (batch, heads, rows, cols).

        float32 (float64 for a float64 model), recomputed from q, k and the row's normaliser; before dropout.
        The first call also compares weights . value with what the layer gave, on a few rows.

        Raises:
            ArgumentError: an index out of range.
            RegardError: q or k was changed in place since, or the weights do not explain the layer's output.
        """
        device = self.call.query.device
        chosen = select("heads", heads, self.heads, device)
        at_rows = select("rows", rows, self.q_len, device)
        at_cols = select("cols", cols, self.kv_len, device)
        self._ready()
        with torch.no_grad(), without_autocast(device):
            return weights_of(self._problem, chosen, at_rows, at_cols)

    def lse(self, heads: Selection = None, rows: Selection = None) -> Tensor:
        """The log of each row's normaliser, (batch, heads, rows). Raises as `weights` does."""
        device = self.call.query.device
        chosen, at_rows = select("heads", heads, self.heads, device), select("rows", rows, self.q_len, device)
        self._ready()
        with torch.no_grad(), without_autocast(device):
            return row_normaliser(self._problem, chosen, at_rows).lse

    def statistics(
        self,
        *,
        want: Sequence[str] = ("entropy", "received", "max_logit", "sink_share", "distance"),
        topk: int = 0,
        pooled: int | None = None,
    ) -> Statistics:
        """`regard.statistics` of this layer. Raises as `weights` does."""
        self._ready()
        with torch.no_grad(), without_autocast(self.call.query.device):
            return statistics_of(self._problem, want, topk=topk, pooled=pooled)

    def check(self, rows: int = 4) -> float:
        """Largest relative difference between weights . value and the layer's output, on a few rows.

        Returns 0.0 where the output cannot be seen (fused layers), was changed since, or holds dropout. Raises
        RegardError when the difference is more than rounding explains: then the weights are not those that the
        layer used. NaN and Inf that went in are let be: kernels differ in where they come out.
        """
        output = self.call.output
        hidden = output is None or self.call.dropout_p > 0.0 or "output" in self.call.changed()
        if output is None or hidden or 0 in (*output.shape, self.kv_len):
            return 0.0
        at = torch.linspace(0, self.q_len - 1, min(rows, self.q_len), device=output.device).long()
        with torch.no_grad(), without_autocast(output.device):
            found, largest = _outputs(self._problem, at)
            clean = all(bool(t.isfinite().all()) for t in (self.call.query, self.call.key, self.call.value))
            error = _relative_error(found, output[:, :, at].to(found.dtype), clean=clean)
        allowed = _tolerance(output.dtype, largest)
        if error > allowed:
            message = (
                f"{self.name}: the recomputed weights do not give the layer's own output (relative error {error:.1e}, "
                f"allowed {allowed:.0e}). Its attention function ({self.call.implementation}) does something that its "
                "arguments do not say."
            )
            raise RegardError(message)
        return error

    def _ready(self) -> None:
        self.call.unchanged()
        if not self._checked:
            self.check()
            self._checked = True

    def __repr__(self) -> str:
        kv = "" if self.kv_heads == self.heads else f", kv_heads={self.kv_heads}"
        return (
            f"ObservedLayer({self.name!r}, heads={self.heads}{kv}, q_len={self.q_len}, kv_len={self.kv_len}, "
            f"implementation={self.call.implementation!r})"
        )


def _outputs(problem: Problem, rows: Tensor) -> tuple[Tensor, float]:
    """What the weights make of the values, (batch, heads, rows, value_dim), and the largest score among them."""
    device = problem.query.device
    heads, cols = torch.arange(problem.sizes.heads, device=device), torch.arange(problem.sizes.kv_len, device=device)
    scores, allowed = score_tile(problem, heads, rows, cols)
    weights = softmax(scores, allowed, row_normaliser(problem, heads, rows))
    value = problem.value.to(weights.dtype).repeat_interleave(problem.sizes.group, dim=1)
    outputs = weights @ value
    if problem.position is not None and problem.has_term("value"):
        standing = problem.position.query_positions(problem.sizes.q_len, problem.sizes.kv_len, device=device)
        distances, which = distances_of_pairs(standing[rows], cols)
        spread = torch.zeros(*weights.shape[:-1], distances.numel(), dtype=weights.dtype, device=device)
        spread = spread.scatter(-1, which.expand(weights.shape), weights)
        outputs = outputs + spread @ problem.position.distance_values(distances).to(weights.dtype)
    sizes = scores[weights > 0].abs()
    return outputs, min(float(sizes.max()), LARGEST_SCORE) if sizes.numel() else 0.0


def _tolerance(dtype: torch.dtype, largest_score: float) -> float:
    if dtype not in (torch.float32, torch.float64):
        return HALF_STEPS * torch.finfo(dtype).eps
    return TOLERANCE * max(1.0, largest_score / LARGE_SCORE)


def _relative_error(found: Tensor, output: Tensor, *, clean: bool) -> float:
    """`clean`: only finite numbers went in, so that NaN must stand in the same places, and +-inf too."""
    both = found.isfinite() & output.isfinite()
    if clean and not torch.equal(found.isfinite(), output.isfinite()):
        return math.inf
    if not bool(both.any()):
        return 0.0
    size = float(output[both].abs().max())
    return float((found - output)[both].abs().max()) / max(size, 1e-6)
