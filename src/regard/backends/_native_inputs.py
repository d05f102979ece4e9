"""A problem in the terms of the native core: masks lowered to bands, intervals and words, positions as tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard._finite import all_finite, finite_part
from regard.backends._base import Problem
from regard.backends._native_struct import Inputs
from regard.masks._lowering import lower


def inputs_of(problem: Problem) -> Inputs:
    """Rotated and lowered; biases, tables and sinks in the working dtype."""
    query, key = problem.rotated()
    working = torch.float64 if query.dtype == torch.float64 else torch.float32
    return Inputs(
        _content_query(problem, query),
        key,
        problem.value,
        problem.scale,
        problem.softcap,
        bias=None if problem.bias is None else problem.bias.to(working),
        sink=None if problem.sink is None else problem.sink.to(working),
        seed=_seed(problem),
        dropout_p=problem.dropout_p,
        **_of_mask(problem),
        **_of_position(problem, query, working),
    )


def _content_query(problem: Problem, query: Tensor) -> Tensor:
    """What meets the keys; what meets the distances is made of the query itself."""
    if problem.position is None or not problem.has_term("content"):
        return query
    return problem.position.content_query(query)


def _seed(problem: Problem) -> Tensor | None:
    if problem.dropout_p == 0.0 or problem.seed is None:
        return None
    return problem.seed if isinstance(problem.seed, Tensor) else torch.tensor(problem.seed, dtype=torch.int64)


def _of_mask(problem: Problem) -> dict[str, Any]:
    """The fields of `Inputs` that say which pairs may attend."""
    mask, sizes = problem.mask, problem.sizes
    if mask is None:
        return {}
    if torch.compiler.is_compiling():
        band = mask.band(sizes.q_len, sizes.kv_len)
        if band is not None:
            return {"before": band.before, "after": band.after, "offset": band.offset}
        dense = mask.dense(sizes.q_len, sizes.kv_len, device=problem.query.device)
        return {"dense": dense[None, None] if dense.dim() == 2 else dense}
    lowered = lower(mask, sizes.q_len, sizes.kv_len)
    fields: dict[str, Any] = {
        "before": lowered.before,
        "after": lowered.after,
        "offset": lowered.offset,
        "intervals": lowered.intervals,
        "dense": lowered.dense,
    }
    tiles = lowered.tiles
    if tiles is not None:
        fields |= {"tile_first": tiles.first, "tile_keys": tiles.keys, "tile_word": tiles.word, "words": tiles.words}
        fields |= {"tile_batches": tiles.batch, "tile_heads": tiles.heads}
    return fields


def _of_position(problem: Problem, query: Tensor, working: torch.dtype) -> dict[str, Any]:
    """The fields of `Inputs` that hold what depends on the distance."""
    position, sizes = problem.position, problem.sizes
    if position is None or position.terms <= {"rotation"} or 0 in (sizes.q_len, sizes.kv_len):
        return {}
    terms = position.terms
    shift = sizes.kv_len - sizes.q_len if position.align == "bottom_right" else 0
    # A query's position is its index + shift, so the smallest distance is -(q_len - 1 + shift).
    distances = torch.arange(sizes.q_len + sizes.kv_len - 1, device=query.device) - (sizes.q_len - 1 + shift)
    fields: dict[str, Any] = {"distance_offset": sizes.q_len - 1}
    if "bias" in terms:
        fields["distance_bias"] = position.distance_bias(distances).to(working).unsqueeze(-1)
    if "content" in terms:
        # Its NaN is in the content query already; a row that sees nothing must not spread it.
        clean = query if all_finite(query) else finite_part(query)
        fields["distance_query"] = position.distance_query(clean).to(working)
        fields["distance_keys"] = position.distance_keys(distances, dtype=working)
    if "value" in terms:
        fields["distance_values"] = position.distance_values(distances).to(working).unsqueeze(0)
    return fields
