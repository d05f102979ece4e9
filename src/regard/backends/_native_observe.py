"""What `observation` asks of the native core: tiles of weights, normalisers of rows, statistics.

Every function gives None where the core does not serve: no library, another device, an open transform or gradient,
NaN or Inf in what was asked for. Whoever asks then computes with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.backends import _library, native
from regard.backends._base import Problem
from regard.backends._library import StatisticsResults, WeightsArguments
from regard.backends._native_inputs import inputs_of
from regard.backends._native_struct import Inputs, ProblemStruct, checked

MOST_TOP = 64
"""More of a row's largest weights than this are for torch to sort."""

ROW_STATISTICS = ("entropy", "max_logit", "sink_share", "distance")
"""One number for each query."""

_NATIVE = native.Native()


def serves(problem: Problem) -> bool:
    """Whether the native core is asked at all. A gradient or a transform is for torch, which follows its own steps."""
    sizes = problem.sizes
    tensors = [problem.query, problem.key, problem.bias, problem.sink]
    return (
        0 not in (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len, sizes.head_dim)
        and all(t is None or type(t) in {Tensor, torch.nn.Parameter} for t in tensors)
        and not torch.compiler.is_compiling()
        and not problem.wants_gradient
        and _NATIVE.support(problem).ok
    )


def weights(
    problem: Problem, heads: Tensor, rows: Tensor, cols: Tensor, normaliser: tuple[Tensor, Tensor] | None = None
) -> Tensor | None:
    """The weights of chosen heads, rows and cols, (batch, heads, rows, cols), in the working dtype.

    `normaliser` is that of the rows, as two numbers whose sum is its log; found from all keys when left out.
    """
    if not serves(problem) or (normaliser is not None and not _is_usable(*normaliser)):
        return None
    sorted_rows, back_to_rows = _ascending(rows)
    sorted_cols, back_to_cols = _ascending(cols)
    inputs = _inputs(problem)
    shape = (problem.sizes.batch, heads.numel(), sorted_rows.numel())
    found = torch.empty((*shape, sorted_cols.numel()), dtype=inputs.working)
    if found.numel() > 0:
        given = () if normaliser is None else tuple(_of_rows(part, inputs, shape, back_to_rows) for part in normaliser)
        if not _run_weights(inputs, heads, sorted_rows, sorted_cols, lse=given, weights=found):
            return None
    found = found if back_to_rows is None else found[:, :, back_to_rows]
    return found if back_to_cols is None else found[..., back_to_cols]


def normaliser(problem: Problem, heads: Tensor, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Top and rest of chosen rows, (batch, heads, rows): their sum is the log of what the row is divided by.

    top is finite; rest is -inf where nothing is attended to.
    """
    if not serves(problem):
        return None
    sorted_rows, back = _ascending(rows)
    inputs = _inputs(problem)
    top, rest = torch.empty((2, problem.sizes.batch, heads.numel(), sorted_rows.numel()), dtype=inputs.working)
    if top.numel() > 0 and not _run_weights(inputs, heads, sorted_rows, rows[:0], found=(top, rest)):
        return None
    return (top, rest) if back is None else (top[..., back], rest[..., back])


def statistics(problem: Problem, want: Sequence[str], *, topk: int, pooled: int | None) -> dict[str, Tensor] | None:
    """What of `want` is a statistic of weights alone, top_weights, top_keys and pooled, as `Statistics` names them."""
    if topk > MOST_TOP or not serves(problem):
        return None
    sizes, inputs = problem.sizes, _inputs(problem)
    heads = (sizes.batch, sizes.heads)
    count = min(topk, sizes.kv_len)
    found: dict[str, Tensor] = {}
    for name in ROW_STATISTICS:
        if name in want:
            found[name] = torch.empty((*heads, sizes.q_len), dtype=inputs.working)
    if "received" in want:
        found["received"] = torch.empty((*heads, sizes.kv_len), dtype=inputs.working)
    if count:
        found["top_weights"] = torch.empty((*heads, sizes.q_len, count), dtype=inputs.working)
        found["top_keys"] = torch.empty((*heads, sizes.q_len, count), dtype=torch.int64)
    if pooled is not None:
        found["pooled"] = torch.empty((*heads, pooled, pooled), dtype=inputs.working)
    struct = ProblemStruct(inputs)
    addresses = {name: tensor.data_ptr() for name, tensor in found.items()}
    results = StatisticsResults(top_count=count, pooled_side=pooled or 0, **addresses)
    status = _library.loaded_core().regard_statistics(ctypes.byref(struct.struct), ctypes.byref(results))
    return found if checked(status) == _library.OK else None


def _run_weights(
    inputs: Inputs,
    heads: Tensor,
    rows: Tensor,
    cols: Tensor,
    *,
    lse: tuple[Tensor, ...] = (),
    found: tuple[Tensor, ...] = (),
    weights: Tensor | None = None,
) -> bool:
    struct = ProblemStruct(inputs)
    chosen = [indices.contiguous() for indices in (heads, rows, cols)]
    arguments = WeightsArguments(
        *(indices.data_ptr() for indices in chosen), *(indices.numel() for indices in chosen),
        *_addresses(lse), *_addresses(found), None if weights is None else weights.data_ptr(),
    )  # fmt: skip
    status = _library.loaded_core().regard_weights(ctypes.byref(struct.struct), ctypes.byref(arguments))
    return checked(status) == _library.OK


def _addresses(pair: tuple[Tensor, ...]) -> tuple[int | None, int | None]:
    return (pair[0].data_ptr(), pair[1].data_ptr()) if pair else (None, None)


def _inputs(problem: Problem) -> Inputs:
    """The problem without values and dropout; half precision is turned by its position in float32, as tiles do it."""
    query, key = problem.query.detach(), problem.key.detach()
    if problem.has_term("rotation") or problem.has_term("content"):
        working = torch.float64 if query.dtype == torch.float64 else torch.float32
        query, key = query.to(working), key.to(working)
    plain = replace(problem, query=query, key=key, value=key, dropout_p=0.0, seed=None)
    return inputs_of(plain)


def _ascending(indices: Tensor) -> tuple[Tensor, Tensor | None]:
    """The indices ascending, none twice; and which of these each of them is, None where nothing moved."""
    if indices.numel() < 2 or bool((indices[1:] > indices[:-1]).all()):
        return indices, None
    ordered = torch.sort(indices).values
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    found = ordered[is_new]
    return found, torch.searchsorted(found, indices)


def _of_rows(part: Tensor, inputs: Inputs, shape: tuple[int, ...], back: Tensor | None) -> Tensor:
    part = part.detach().to(inputs.working)
    if back is not None:
        part = part.new_empty(shape).index_copy_(2, back, part)
    return part.contiguous()


def _is_usable(top: Tensor, rest: Tensor) -> bool:
    return bool(top.isfinite().all()) and bool((rest < torch.inf).all())
