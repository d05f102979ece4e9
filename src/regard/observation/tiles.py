"""Any weight of any attention, exact, without the matrix: exp(score - lse) for the tile that is asked for.

A fused kernel throws its weights away, but q, k and the log of each row's normaliser determine them. A
tile of chosen heads, queries and keys costs O(rows * cols) memory; the lse, when it is not known, is
summed up over chunks of keys. On CPU the native core computes all this where it serves; what is written here
in torch is its definition, and runs on other devices and where gradients or transforms are at work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard._front_door import Options, build_problem
from regard.backends import Problem, _native_observe
from regard.masks import Mask
from regard.positions import Position
from regard.positions._pairs import content_of_pairs, distances_of_pairs

FULL_STEP, HALF_STEP = 1e-3, 2.0**-6
"""How far a given lse may be from the one found, relative to its size where that is above 1: in float32, and where
scores were rounded to half precision."""

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
        mask: this and position, bias, scale, softcap, sink as in `regard.attention`.
        position: see mask.
        bias: see mask.
        scale: see mask.
        softcap: see mask.
        sink: see mask.
        lse: (batch, heads, q_len), as `regard.attention(..., return_lse=True)` gives it; found from the
            keys when left out. Two of the chosen rows are compared with what the keys give (FAULTS F68).
        heads: which query heads; all when left out.
        rows: which queries.
        cols: which keys.

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
    with without_autocast(query.device):
        if lse is None:
            return weights_of(problem, chosen_heads, chosen_rows, chosen_cols)
        chosen_lse = _check_lse_shape(lse, problem)[:, chosen_heads][:, :, chosen_rows]
        _check_lse_values(chosen_lse, problem, chosen_heads, chosen_rows)
        normaliser = _from_lse(chosen_lse)
        return weight_tile(problem, chosen_heads, chosen_rows, chosen_cols, normaliser)


def weights_of(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """`weights` of a problem that has been checked, for indices as `select` gives them."""
    found = _native_observe.weights(problem, heads, rows, cols)
    if found is not None:
        return found
    return _tile_by_torch(problem, heads, rows, cols, _normaliser_by_torch(problem, heads, rows))


def select(name: str, selection: Selection, length: int, device: torch.device) -> Tensor:
    """A selection as int64 indices, (n,). Raises ArgumentError when it is no selection, or out of range."""
    if selection is None:
        return torch.arange(length, device=device)
    if isinstance(selection, slice):
        return torch.arange(*selection.indices(length), device=device)
    indices = _as_indices(selection, device)
    if indices is None or bool(((indices < -length) | (indices >= length)).any()):
        raise ArgumentError(
            name,
            expected=f"indices from {-length} to {length - 1}" if length else "none, for there is nothing to choose",
            got=repr(selection),
            do="Give an int, a slice or a list of ints.",
        )
    return indices % max(length, 1)


def _as_indices(selection: object, device: torch.device) -> Tensor | None:
    try:
        indices = torch.as_tensor(selection, device=device)
    except (TypeError, ValueError, RuntimeError):
        return None
    if indices.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool or indices.dim() > 1:
        return None
    return indices.reshape(-1).to(torch.int64)


def score_tile(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scores (batch, heads, rows, cols) in float32 or better, -inf where forbidden; and which are allowed."""
    scores = _content(problem, heads, rows, cols) * problem.scale
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    if problem.position is not None and problem.has_term("bias"):
        distances, which = distances_of_pairs(_standing(problem)[rows], cols)
        table = problem.position.distance_bias(distances).to(scores.dtype)
        scores = scores + (table[heads] if table.shape[0] > 1 else table)[:, which]
    allowed: Tensor | None = None
    if problem.bias is not None:
        bias = _tile_of(problem.bias, heads, rows, cols).to(scores.dtype)
        scores, allowed = scores + bias, (bias != -math.inf).expand(scores.shape)
    if problem.mask is not None:
        kept = problem.mask.tile(rows, cols, problem.sizes.q_len, problem.sizes.kv_len)
        kept = kept[:, heads] if kept.dim() == 4 and kept.shape[1] > 1 else kept
        allowed = kept.expand(scores.shape) if allowed is None else allowed & kept
    return (scores if allowed is None else scores.masked_fill(~allowed, -math.inf)), allowed


class Normaliser(NamedTuple):
    """What each row is divided by, as exp(top + rest), (batch, heads, rows).

    Two numbers, because models write the lowest float32 for "forbidden": in a row of nothing else the log of the
    number of keys would be lost beside it. `top` is finite or NaN; `rest` is -inf where nothing is attended to.
    """

    top: Tensor
    rest: Tensor

    @property
    def lse(self) -> Tensor:
        """In one number."""
        return self.top + self.rest


def weight_tile(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor, normaliser: Normaliser) -> Tensor:
    """The weights of a tile whose normaliser is known."""
    found = _native_observe.weights(problem, heads, rows, cols, normaliser)
    return _tile_by_torch(problem, heads, rows, cols, normaliser) if found is None else found


def _tile_by_torch(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor, normaliser: Normaliser) -> Tensor:
    parts: list[Tensor] = []
    for at in row_blocks(problem, rows):
        scores, allowed = score_tile(problem, heads, rows[at], cols)
        parts.append(softmax(scores, allowed, Normaliser(*(part[:, :, at] for part in normaliser))))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def softmax(scores: Tensor, allowed: Tensor | None, normaliser: Normaliser) -> Tensor:
    """The weights, 0 where a pair may not attend; a row that holds +inf is NaN, as in any softmax."""
    top, rest = (part.to(scores.dtype).unsqueeze(-1) for part in normaliser)
    weights = torch.exp((scores - top) - rest.masked_fill(rest == math.inf, math.nan))
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def row_normaliser(problem: Problem, heads: Tensor, rows: Tensor) -> Normaliser:
    """Each row's normaliser, sink included."""
    found = _native_observe.normaliser(problem, heads, rows)
    return _normaliser_by_torch(problem, heads, rows) if found is None else Normaliser(*found)


def _normaliser_by_torch(problem: Problem, heads: Tensor, rows: Tensor) -> Normaliser:
    """From chunks of keys."""
    parts = [_block_normaliser(problem, heads, rows[at]) for at in row_blocks(problem, rows)]
    return parts[0] if len(parts) == 1 else Normaliser(*(torch.cat(part, dim=2) for part in zip(*parts, strict=True)))


def _block_normaliser(problem: Problem, heads: Tensor, rows: Tensor) -> Normaliser:
    shape = (problem.sizes.batch, heads.numel(), rows.numel())
    device, dtype = problem.query.device, working_dtype(problem.query)
    visible = torch.zeros(shape, dtype=torch.bool, device=device)
    lowest = torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    total = Normaliser(lowest, torch.full_like(lowest, -math.inf))
    for cols in chunks(problem.sizes.kv_len, math.prod(shape), device):
        scores, allowed = score_tile(problem, heads, rows, cols)
        total = _together(total, normaliser_of(scores))
        visible |= torch.ones_like(visible) if allowed is None else allowed.any(-1)
    return with_sink(problem, heads, total, visible)


def normaliser_of(scores: Tensor) -> Normaliser:
    """That of scores (..., keys), at least one key."""
    finite = torch.finfo(scores.dtype)
    top = scores.amax(-1).clamp(finite.min, finite.max)
    return Normaliser(top, torch.logsumexp(scores - top.unsqueeze(-1), dim=-1))


def _together(first: Normaliser, second: Normaliser) -> Normaliser:
    top = torch.maximum(first.top, second.top)
    return Normaliser(top, torch.logaddexp(first.rest + (first.top - top), second.rest + (second.top - top)))


def with_sink(problem: Problem, heads: Tensor, normaliser: Normaliser, visible: Tensor) -> Normaliser:
    """The normaliser with the sink's part, in the rows that see anything at all; `visible` is (batch, heads, rows)."""
    if problem.sink is None:
        return normaliser
    sink = problem.sink[heads].to(normaliser.top.dtype).view(1, -1, 1).expand(normaliser.top.shape)
    joined = _together(normaliser, Normaliser(sink, torch.zeros_like(sink)))
    return Normaliser(joined.top, joined.rest.masked_fill(~visible, -math.inf))


def row_blocks(problem: Problem, rows: Tensor) -> Iterator[slice]:
    """Parts of `rows` whose scores by distance stay under CHUNK; all rows at once without a content term.

    A content term is matched with every distance between the first row and the last key, so that without this
    a narrow tile of many rows would take as much memory as the whole map.
    """
    count, sizes = rows.numel(), problem.sizes
    if not problem.has_term("content") or count == 0:
        yield slice(0, count)
        return
    size = max(1, CHUNK // max(1, sizes.batch * sizes.heads * (sizes.q_len + sizes.kv_len)))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def chunks(length: int, per_index: int, device: torch.device) -> Iterator[Tensor]:
    """Consecutive indices, few enough that `per_index` numbers for each of them stay under CHUNK."""
    size = max(1, CHUNK // max(1, per_index))
    for start in range(0, length, size):
        yield torch.arange(start, min(start + size, length), device=device)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Weights are computed in the precision said, also when they are asked for inside torch.autocast."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _standing(problem: Problem) -> Tensor:
    """Where each query stands, (q_len,)."""
    if problem.position is None:
        return torch.arange(problem.sizes.q_len, device=problem.query.device)
    return problem.position.query_positions(problem.sizes.q_len, problem.sizes.kv_len, device=problem.query.device)


def _content(problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The products query . key of a tile, with the position's rotation and content terms, before the scale."""
    dtype = working_dtype(problem.query)
    key = problem.key[:, heads // problem.sizes.group][:, :, cols].to(dtype)
    if problem.position is None:
        return problem.query[:, heads][:, :, rows].to(dtype) @ key.transpose(-2, -1)
    query, standing = problem.query[:, :, rows].to(dtype), _standing(problem)[rows]
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


def _from_lse(lse: Tensor) -> Normaliser:
    return Normaliser(lse.masked_fill(lse == math.inf, math.nan), torch.zeros_like(lse))


def _check_lse_shape(lse: Tensor, problem: Problem) -> Tensor:
    want = (problem.sizes.batch, problem.sizes.heads, problem.sizes.q_len)
    if tuple(lse.shape) != want:
        raise ShapeError(
            "lse",
            expected=f"(batch, heads, q_len) = {want}",
            got=str(tuple(lse.shape)),
            do="Take it from regard.attention(..., return_lse=True), or leave it out.",
        )
    return lse


def _check_lse_values(lse: Tensor, problem: Problem, heads: Tensor, rows: Tensor) -> None:
    """The first and the last chosen row, from the keys: an lse in base 2, or of another mask, makes wrong weights."""
    if 0 in (*lse.shape, problem.sizes.kv_len):
        return
    ends = torch.tensor([0, rows.numel() - 1], device=rows.device)
    with torch.no_grad():
        found = row_normaliser(problem, heads, rows[ends]).lse
        given = lse[:, :, ends].to(found.dtype)
        step = HALF_STEP if problem.query.dtype in (torch.float16, torch.bfloat16) else FULL_STEP
        away = (given - found).abs() > step * found.abs().clamp_min(1.0)
        # inf - inf is NaN, which is not away; one infinity alone is. What is NaN by itself is none of ours.
        wrong = (away | (given.isfinite() != found.isfinite())) & ~found.isnan()
    if not bool(wrong.any()):
        return
    sample, head, end = (int(place) for place in wrong.nonzero()[0])
    raise ArgumentError(
        "lse",
        expected=f"{float(found[sample, head, end]):.5g} for query {int(rows[ends[end]])} of sample {sample}, head "
        f"{int(heads[head])}: the natural logarithm of its sum",
        got=f"{float(given[sample, head, end]):.5g}",
        do="Take it from regard.attention(..., return_lse=True) with these options; one in base 2 times 0.6931 is one.",
    )
