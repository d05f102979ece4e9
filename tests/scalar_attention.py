"""Attention in plain Python: loops over numbers, no tensor operation that could share a fault with the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.masks import Mask
from regard.positions import Position


@dataclass(frozen=True)
class Row:
    """What one query gets."""

    output: list[float]
    weights: list[float]
    lse: float


def scalar_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, weights and lse in float64, computed pair by pair."""
    batch, heads, q_len, _ = query.shape
    rows = [
        [[_row(query, key, value, (b, h, i), options) for i in range(q_len)] for h in range(heads)]
        for b in range(batch)
    ]

    def gather(name: str) -> Tensor:
        numbers = [[[getattr(row, name) for row in head] for head in sample] for sample in rows]
        return torch.tensor(numbers, dtype=torch.float64)

    return gather("output"), gather("weights"), gather("lse")


def _row(query: Tensor, key: Tensor, value: Tensor, at: tuple[int, int, int], options: dict[str, Any]) -> Row:
    b, h, i = at
    shared = h // (query.shape[1] // key.shape[1])
    kept = options.get("kept")  # the dropout mask, (batch, heads, q_len, kv_len)
    scores = [_score(query, key, (b, h, i, j), shared, options) for j in range(key.shape[2])]
    seen = [score for score in scores if score != -math.inf]
    width = value.shape[3]
    if not seen:
        return Row([0.0] * width, [0.0] * len(scores), -math.inf)
    sink = [] if options.get("sink") is None else [float(options["sink"][h])]
    largest = max(seen + sink)
    total = sum(math.exp(score - largest) for score in seen + sink)
    weights = [math.exp(score - largest) / total for score in scores]
    output = [0.0] * width
    for j, weight in enumerate(weights):
        if kept is not None:
            weight = weight / (1.0 - options["dropout_p"]) if bool(kept[b, h, i, j]) else 0.0  # noqa: PLW2901
        vector = _value(value, (b, shared, i, j), query.shape[2], options)
        output = [have + weight * channel for have, channel in zip(output, vector, strict=True)]
    return Row(output, weights, largest + math.log(total))


def _score(query: Tensor, key: Tensor, at: tuple[int, int, int, int], shared: int, options: dict[str, Any]) -> float:
    _, h, i, j = at
    mask, bias, softcap = options.get("mask"), options.get("bias"), options.get("softcap")
    if mask is not None and not _may_attend(mask, at, query.shape[2], key.shape[2]):
        return -math.inf
    scale = 1.0 / math.sqrt(query.shape[3]) if options.get("scale") is None else options["scale"]
    score = scale * _match(query, key, at, shared, options.get("position"))
    if softcap is not None:
        score = softcap * math.tanh(score / softcap)
    position = options.get("position")
    if position is not None and "bias" in position.terms:
        table = position.distance_bias(_distance(position, i, j, query.shape[2], key.shape[2]))
        score += float(table[h if table.shape[0] > 1 else 0, 0])
    return (
        score if bias is None else score + float(bias.expand(query.shape[0], query.shape[1], -1, -1)[_cell(bias, at)])
    )


def _cell(bias: Tensor, at: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    b, h, i, j = at
    return b, h, i if bias.shape[-2] > 1 else 0, j if bias.shape[-1] > 1 else 0


def _match(query: Tensor, key: Tensor, at: tuple[int, int, int, int], shared: int, position: Position | None) -> float:
    b, h, i, j = at
    left, right = query[b, h, i], key[b, shared, j]
    if position is None:
        return _dot(left, right)
    if "rotation" in position.terms:
        where = position.query_positions(query.shape[2], key.shape[2])[i : i + 1]
        left = position.rotate(left.view(1, 1, 1, -1), where, length=key.shape[2]).flatten()
        right = position.rotate(right.view(1, 1, 1, -1), torch.tensor([j]), length=key.shape[2]).flatten()
    if "content" not in position.terms:
        return _dot(left, right)
    every_head = torch.zeros(1, query.shape[1], 1, query.shape[3], dtype=query.dtype)
    every_head[0, h, 0] = left
    distance = _distance(position, i, j, query.shape[2], key.shape[2])
    matched = _dot(position.content_query(every_head)[0, h, 0], right)
    return matched + float(position.distance_scores(every_head, distance)[0, h, 0, 0])


def _value(value: Tensor, at: tuple[int, int, int, int], q_len: int, options: dict[str, Any]) -> list[float]:
    b, shared, i, j = at
    position: Position | None = options.get("position")
    numbers = [float(number) for number in value[b, shared, j]]
    if position is None or "value" not in position.terms:
        return numbers
    added = position.distance_values(_distance(position, i, j, q_len, value.shape[2]))[0]
    return [number + float(more) for number, more in zip(numbers, added, strict=True)]


def _distance(position: Position, i: int, j: int, q_len: int, kv_len: int) -> Tensor:
    offset = kv_len - q_len if position.align == "bottom_right" else 0
    return torch.tensor([j - (i + offset)])


def _dot(left: Tensor, right: Tensor) -> float:
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def _may_attend(mask: Mask | Tensor, at: tuple[int, int, int, int], q_len: int, kv_len: int) -> bool:
    b, h, i, j = at
    dense = mask if isinstance(mask, Tensor) else mask.dense(q_len, kv_len)
    if dense.dim() == 2:
        return bool(dense[i, j])
    return bool(dense[b if dense.shape[0] > 1 else 0, h if dense.shape[1] > 1 else 0, i, j])
