"""From a table over distances to the pairs of one tile."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.positions._base import Position


def distances_of_pairs(rows: Tensor, cols: Tensor, *, count: int | None = None) -> tuple[Tensor, Tensor]:
    """All distances between the positions of these queries and keys, and which one each pair has.

    Args:
        rows: positions of the queries, int64 (rows,).
        cols: positions of the keys, int64 (cols,).
        count: how many distances there are, where the caller knows; torch.compile cannot read it from the tensors.

    Returns:
        The distances key - query from the smallest to the largest, (n,), and an index into them, (rows, cols).
    """
    if rows.numel() == 0 or cols.numel() == 0:
        return torch.zeros(1, dtype=torch.int64, device=rows.device), cols.unsqueeze(0) - rows.unsqueeze(1)
    first = cols.min() - rows.max()
    if count is None:
        count = int(cols.max() - cols.min() + rows.max() - rows.min()) + 1
    return torch.arange(count, device=rows.device) + first, cols.unsqueeze(0) - rows.unsqueeze(1) - first


def bias_of_pairs(position: Position, rows: Tensor, cols: Tensor, *, count: int | None = None) -> Tensor:
    """The position's bias for these query and key positions, (heads or 1, rows, cols); `count` as above."""
    distances, which = distances_of_pairs(rows, cols, count=count)
    return position.distance_bias(distances)[:, which]


def content_of_pairs(position: Position, query: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The position's content scores, before the scale, (batch, heads, rows, cols); query is (batch, heads, rows, d)."""
    distances, which = distances_of_pairs(rows, cols)
    by_distance = position.distance_scores(query, distances)
    return by_distance.gather(-1, which.expand(*query.shape[:2], *which.shape))
