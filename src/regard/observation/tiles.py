"""Any weight of any attention, exact, without the matrix: exp(score - lse) for the tile that is asked for.

A fused kernel throws its weights away, but q, k and the log of each row's normaliser determine them. A
tile of chosen heads, queries and keys costs O(rows * cols) memory; the lse, when it is not known, is
summed up over chunks of keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard._front_door import Options, build_problem
from regard.backends import Problem
from regard.masks import Mask
from regard.positions import Position
from regard.positions._pairs import bias_of_pairs, content_of_pairs

Selection = int | slice | Sequence[int] | Tensor | None
"""Which heads, queries or keys: all (None), one, a slice, or a list; negative numbers count from the end."""

CHUNK = 2**22
"""Scores held at once while a row's normaliser is summed up or statistics are taken (16 MiB in float32)."""


def weights(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    position: Position | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    lse: Tensor | None = None,
    heads: Selection = None,
    rows: Selection = None,
    cols: Selection = None,
) -> Tensor:
    """The attention weights of chosen heads, queries and keys, (batch, heads, rows, cols), exact.

    Memory is O(batch * heads * rows * cols) plus a chunk of fixed size. Half precision is computed in
    float32. Key heads may be fewer than query heads (GQA); heads are query heads.

    Args:
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        mask, position, bias, scale, softcap, sink: as in `regard.attention`.
        lse: (batch, heads, q_len), as `regard.attention(..., return_lse=True)` gives it; found from the
            keys when left out.
        heads, rows, cols: which query heads, queries and keys; all when left out.

    Raises:
        ShapeError, MaskError, ArgumentError: as `regard.attention`; also for an index out of range.
    """
    options: Options = {
        "mask": mask,
        "position": position,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sink": sink,
        "enable_gqa": True,
        "additive": True,
    }
    problem = build_problem(query, key, key, **options)
    sizes = problem.sizes
    chosen_heads = select("heads", heads, sizes.heads, query.device)
    chosen_rows = select("rows", rows, sizes.q_len, query.device)
    chosen_cols = select("cols", cols, sizes.kv_len, query.device)
    if lse is None:
        normaliser = row_lse(problem, chosen_heads, chosen_rows)
    else:
        normaliser = _check_lse(lse, problem)[:, chosen_heads][:, :, chosen_rows]
    return weight_tile(problem, chosen_heads, chosen_rows, chosen_cols, normaliser)


def select(name: str, selection: Selection, length: int, device: torch.device) -> Tensor:
    """A selection as int64 indices, (n,). Raises ArgumentError when one is out of range."""
    if selection is None:
        return torch.arange(length, device=device)
    if isinstance(selection, slice):
        return torch.arange(*selection.indices(length), device=device)
    indices = torch.as_tensor(selection, device=device)
    outside = (indices < -length) | (indices >= length)
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.dim() > 1 or bool(outside.any()):
        raise ArgumentError(
            name,
            expected=f"indices from {-length} to {length - 1}",
            got=repr(selection),
            do="Give an int, a slice or a list of ints.",
        )
    return indices.reshape(-1).to(torch.int64) % max(length, 1)


def score_tile(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scores (batch, heads, rows, cols) in float32 or better, -inf where forbidden; and which are allowed."""
    scores = _content(problem, heads, rows, cols) * problem.scale
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    if problem.position is not None and problem.has_term("bias"):
        placed = bias_of_pairs(problem.position, _positions(problem)[rows], cols).to(scores.dtype)
        scores = scores + (placed[heads] if placed.shape[0] > 1 else placed)
    allowed = None
    if problem.bias is not None:
        bias = _tile_of(problem.bias, heads, rows, cols).to(scores.dtype)
        scores, allowed = scores + bias, (bias != -math.inf).expand(scores.shape)
    if problem.mask is not None:
        kept = problem.mask.tile(rows, cols, problem.sizes.q_len, problem.sizes.kv_len)
        kept = kept[:, heads] if kept.dim() == 4 and kept.shape[1] > 1 else kept
        allowed = kept.expand(scores.shape) if allowed is None else allowed & kept
    return (scores if allowed is None else scores.masked_fill(~allowed, -math.inf)), allowed


def weight_tile(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor, lse: Tensor) -> Tensor:
    """exp(score - lse), 0 where a pair may not attend; lse is (batch, heads, rows)."""
    scores, allowed = score_tile(problem, heads, rows, cols)
    weights = torch.exp(scores - lse.to(scores.dtype).unsqueeze(-1))
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def row_lse(problem: Problem, heads: Tensor, rows: Tensor) -> Tensor:
    """The log of each row's normaliser, sink included, (batch, heads, rows), from chunks of keys."""
    count = problem.query.shape[0] * heads.numel() * rows.numel()
    parts = [
        torch.logsumexp(score_tile(problem, heads, rows, cols)[0], dim=-1)
        for cols in chunks(problem.sizes.kv_len, count, problem.query.device)
    ]
    dtype = working_dtype(problem.query)
    empty = torch.full((problem.sizes.batch, heads.numel(), rows.numel()), -math.inf, dtype=dtype)
    total = torch.logsumexp(torch.stack(parts), dim=0) if parts else empty.to(problem.query.device)
    if problem.sink is None:
        return total
    sink = problem.sink[heads].to(total.dtype).view(1, -1, 1)
    return torch.where(total == -math.inf, total, torch.logaddexp(total, sink))


def chunks(length: int, per_index: int, device: torch.device) -> Iterator[Tensor]:
    """Consecutive indices, few enough that `per_index` numbers for each of them stay under CHUNK."""
    size = max(1, CHUNK // max(1, per_index))
    for start in range(0, length, size):
        yield torch.arange(start, min(start + size, length), device=device)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _positions(problem: Problem) -> Tensor:
    """Where each query stands, (q_len,)."""
    if problem.position is None:
        return torch.arange(problem.sizes.q_len, device=problem.query.device)
    return problem.position.query_positions(problem.sizes.q_len, problem.sizes.kv_len, device=problem.query.device)


def _content(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """query . key for the tile, with the position's rotation and content terms, before the scale."""
    dtype = working_dtype(problem.query)
    query = problem.query[:, :, rows].to(dtype)
    key = problem.key[:, heads // problem.sizes.group][:, :, cols].to(dtype)
    if problem.position is None:
        return query[:, heads] @ key.transpose(-2, -1)
    standing = _positions(problem)[rows]
    if problem.has_term("rotation"):
        length = problem.sizes.kv_len  # scalings that depend on the text's length must not see the tile's
        query = problem.position.rotate(query, standing, length=length)
        key = problem.position.rotate(key, cols, length=length)
    if not problem.has_term("content"):
        return query[:, heads] @ key.transpose(-2, -1)
    matched = problem.position.content_query(query)[:, heads] @ key.transpose(-2, -1)
    return matched + content_of_pairs(problem.position, query, standing, cols)[:, heads].to(dtype)


def _tile_of(bias: Tensor, heads: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    for dim, chosen in ((1, heads), (2, rows), (3, cols)):
        if bias.shape[dim] > 1:
            bias = bias.index_select(dim, chosen)
    return bias


def _check_lse(lse: Tensor, problem: Problem) -> Tensor:
    want = (problem.sizes.batch, problem.sizes.heads, problem.sizes.q_len)
    if tuple(lse.shape) != want:
        raise ShapeError(
            "lse",
            expected=f"(batch, heads, q_len) = {want}",
            got=str(tuple(lse.shape)),
            do="Take it from regard.attention(..., return_lse=True), or leave it out.",
        )
    return lse
