"""What a model's attention is like, in one pass over rows, without n x n memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from regard._errors import ArgumentError
from regard._front_door import Options, build_problem
from regard.backends import Problem, _native_observe
from regard.observation.tiles import (
    Normaliser,
    chunks,
    normaliser_of,
    score_tile,
    softmax,
    with_sink,
    without_autocast,
    working_dtype,
)

KINDS = ("entropy", "received", "received_value", "max_logit", "sink_share", "distance")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was asked for; None for the rest. B batch, H query heads, q rows, k columns.

    entropy: (B, H, q), of each row's weights, in nats; 0 for a row that attends to nothing.
    received: (B, H, k), the weight that each key got from all queries together.
    received_value: (B, H, k), the same times the length of the key's value vector.
    max_logit: (B, H, q), the largest score of each row; -inf for a row that may attend to nothing.
    sink_share: (B, H, q), the weight on key 0.
    distance: (B, H, q), mean |key index - query index| under the weights.
    top_weights, top_keys: (B, H, q, topk), the largest weights of each row and their keys.
    pooled: (B, H, p, p), mean over query bins of the weight summed over key bins.
    """

    entropy: Tensor | None = None
    received: Tensor | None = None
    received_value: Tensor | None = None
    max_logit: Tensor | None = None
    sink_share: Tensor | None = None
    distance: Tensor | None = None
    top_weights: Tensor | None = None
    top_keys: Tensor | None = None
    pooled: Tensor | None = None


def statistics(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    *,
    want: Sequence[str] = ("entropy", "received", "max_logit", "sink_share", "distance"),
    topk: int = 0,
    pooled: int | None = None,
    **options: Unpack[Options],
) -> Statistics:
    """Statistics of the weights of `regard.attention(query, key, ...)`, exact, in bounded memory.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim); fewer heads than query for GQA.
        value: (batch, kv_heads, kv_len, value_dim), needed for "received_value" only.
        want: names of the statistics, see `Statistics`.
        topk: how many of the largest weights of each row to keep.
        pooled: side of the pooled map, for pictures of any length.
        options: mask, position, bias, scale, softcap, sink as in `regard.attention`.

    Raises:
        ArgumentError: an unknown name in `want`, or "received_value" without value.
        ShapeError, MaskError: as `regard.attention`.
    """
    given: Options = {**options, "enable_gqa": True, "additive": True}
    problem = build_problem(query, key, key if value is None else value, **given)
    _check(want, topk, pooled, has_value=value is not None)
    with without_autocast(query.device):
        return statistics_of(problem, want, topk=topk, pooled=pooled)


def statistics_of(problem: Problem, want: Sequence[str], *, topk: int, pooled: int | None) -> Statistics:
    """`statistics` of a problem that has been checked."""
    _check(want, topk, pooled, has_value=True)
    wanted = {*want, "received"} if "received_value" in want else set(want)
    found = _native_observe.statistics(problem, tuple(wanted), topk=topk, pooled=pooled)
    if found is None:
        found = _statistics_by_torch(problem, tuple(wanted), topk=topk, pooled=pooled)
    if "received_value" in want:
        length = problem.value.to(found["received"].dtype).square().sum(-1).sqrt()
        found["received_value"] = found["received"] * length.repeat_interleave(problem.sizes.group, dim=1)
    return Statistics(**{name: tensor for name, tensor in found.items() if name != "received" or name in want})


def _statistics_by_torch(
    problem: Problem, want: tuple[str, ...], *, topk: int, pooled: int | None
) -> dict[str, Tensor]:
    """The same from the scores of blocks of rows: what the statistics mean, on any device, with gradients."""
    sizes, device = problem.sizes, problem.query.device
    gathering = _Gathering(problem, want, topk, pooled)
    heads, cols = torch.arange(sizes.heads, device=device), torch.arange(sizes.kv_len, device=device)
    width = sizes.kv_len + (sizes.q_len if problem.has_term("content") else 0)  # that one scores every distance
    blocks = list(chunks(sizes.q_len, sizes.batch * sizes.heads * width, device))
    for rows in blocks or [torch.arange(0, device=device)]:
        gathering.add(rows, *score_tile(problem, heads, rows, cols))
    return gathering.result()


def _check(want: Sequence[str], topk: int, pooled: int | None, *, has_value: bool) -> None:
    unknown = [name for name in want if name not in KINDS]
    if unknown:
        names = f"names out of {', '.join(KINDS)}"
        raise ArgumentError("want", expected=names, got=repr(unknown[0]), do="Leave it out.")
    if "received_value" in want and not has_value:
        raise ArgumentError("received_value", expected="value", got="None", do="Pass value=.")
    if topk < 0:
        raise ArgumentError("topk", expected="0 or more", got=str(topk), do="Leave it out for none.")
    if pooled is not None and pooled < 1:
        raise ArgumentError("pooled", expected="at least 1", got=str(pooled), do="Leave it out for no map.")


class _Gathering:
    """Adds up blocks of rows."""

    def __init__(self, problem: Problem, want: tuple[str, ...], topk: int, pooled: int | None) -> None:
        self.problem, self.want, self.topk, self.pooled = problem, want, topk, pooled
        self.rows: dict[str, list[Tensor]] = {}
        sizes, device, dtype = problem.sizes, problem.query.device, working_dtype(problem.query)
        self.received = torch.zeros(sizes.batch, sizes.heads, sizes.kv_len, device=device, dtype=dtype)
        if pooled is not None:
            self.map = torch.zeros(sizes.batch, sizes.heads, pooled, pooled, device=device, dtype=dtype)

    def add(self, rows: Tensor, scores: Tensor, allowed: Tensor | None) -> None:
        """One block of rows with all their keys: scores (batch, heads, rows, kv_len)."""
        everywhere = torch.full(scores.shape[:-1], scores.shape[-1] > 0, device=rows.device)
        visible = everywhere if allowed is None else allowed.any(-1)
        heads = torch.arange(self.problem.sizes.heads, device=rows.device)
        normaliser = with_sink(self.problem, heads, _normaliser(scores), visible)
        weights = softmax(scores, allowed, normaliser)
        self.received += weights.sum(-2)
        for name in self.want:
            if name not in ("received", "received_value"):
                number = _row_statistic(name, rows, scores, weights, normaliser)
                self.rows.setdefault(name, []).append(number)
        if self.topk:
            top = weights.topk(min(self.topk, weights.shape[-1]), dim=-1)
            self.rows.setdefault("top_weights", []).append(top.values)
            self.rows.setdefault("top_keys", []).append(top.indices)
        if self.pooled is not None:
            self._pool(rows, weights, self.pooled)

    def _pool(self, rows: Tensor, weights: Tensor, side: int) -> None:
        sizes = self.problem.sizes
        row_bin = rows * side // max(1, sizes.q_len)
        col_bin = torch.arange(sizes.kv_len, device=rows.device) * side // max(1, sizes.kv_len)
        by_col = weights.new_zeros(*weights.shape[:-1], side).index_add(-1, col_bin, weights)
        every_bin = torch.arange(sizes.q_len, device=rows.device) * side // max(1, sizes.q_len)
        count = torch.bincount(every_bin, minlength=side).to(weights.dtype)
        self.map.index_add_(-2, row_bin, by_col / count[row_bin].view(1, 1, -1, 1))

    def result(self) -> dict[str, Tensor]:
        """Everything that was asked for, but for what the values have a part in."""
        found = {name: torch.cat(parts, dim=2) for name, parts in self.rows.items()}
        if "received" in self.want:
            found["received"] = self.received
        if self.pooled is not None:
            found["pooled"] = self.map
        return found


def _normaliser(scores: Tensor) -> Normaliser:
    if scores.shape[-1]:
        return normaliser_of(scores)
    nothing = torch.zeros(scores.shape[:-1], dtype=scores.dtype, device=scores.device)
    return Normaliser(nothing, nothing - math.inf)


def _row_statistic(name: str, rows: Tensor, scores: Tensor, weights: Tensor, normaliser: Normaliser) -> Tensor:
    """One number for each row, (batch, heads, rows)."""
    if name == "max_logit":
        return scores.amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -math.inf)
    if name == "sink_share":
        return weights[..., :1].sum(-1)  # a copy: a view would keep the whole block alive; 0 where there is no key
    if name == "distance":
        away = (torch.arange(scores.shape[-1], device=rows.device) - rows.unsqueeze(-1)).abs()
        return (weights * away).sum(-1)
    # -log w is finite wherever the weight is not 0; a NaN weight is not 0 and stays visible.
    top, rest = (part.unsqueeze(-1) for part in normaliser)
    surprise = torch.where(weights == 0, 0.0, weights * (rest - (scores - top)))
    return surprise.sum(-1)
