"""`native`: the compiled core. Fused on CPU forward and backward, every option, memory that grows with length."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard._finite import all_finite, finite_part
from regard.backends import (
    _library,
    _ops,  # noqa: F401  # pyright: ignore[reportUnusedImport] - registers the operators: a compiled graph names them
)
from regard.backends._base import Backend, Problem, Support
from regard.backends._direct import attend, has_tangent, is_transformed
from regard.backends._native_call import Inputs
from regard.masks._lowering import lower

_compiler: Any = torch.compiler  # whose decorators have no types


# The compiler cannot trace a call of the library; the answer stays what it is while it compiles.
@_compiler.assume_constant_result
def _why_absent() -> str | None:
    return _library.why_absent()


class Native(Backend):
    """regard's own CPU kernels (csrc/)."""

    name: ClassVar[str] = "native"

    def support(self, problem: Problem) -> Support:
        """Yes on CPU, unless the library is absent or a transform of torch.func is at work."""
        absent = _why_absent()
        for refused, reason in (
            (problem.query.device.type != "cpu", f"it runs on cpu, not on {problem.query.device.type}"),
            (absent is not None, f"it is absent: {absent}"),
            (is_transformed(), "it has no rule for torch.func's transforms (vmap, grad, jvp)"),
            (_has_tangent(problem), "it has no forward-mode derivative"),
            (_differentiates_infinity(problem), "it has no gradient through an Inf in query, key or value"),
            (max(problem.sizes.q_len, problem.sizes.kv_len) >= 2**31, "its indices are 32 bits wide"),
        ):
            if refused:
                return Support(ok=False, reason=reason)
        return Support(ok=True, reason="fused kernel that skips masked blocks; memory grows with length")

    def run(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """See `Backend.run`."""
        output, lse = attend(Inputs(*_arguments(problem)), with_lse=problem.return_lse)
        return output, None if lse is None else lse.to(torch.float32)


def _differentiates_infinity(problem: Problem) -> bool:
    if not problem.wants_gradient or problem.finite is not False:
        return False
    return any(bool(tensor.isinf().any()) for tensor in (problem.query, problem.key, problem.value))


def _has_tangent(problem: Problem) -> bool:
    learned = () if problem.position is None else problem.position.parameters()
    return has_tangent(problem.query, problem.key, problem.value, problem.bias, problem.sink, *learned)


def _arguments(problem: Problem) -> tuple[Any, ...]:
    """The arguments of the operator, in the order of `Inputs`."""
    query, key = problem.rotated()
    working = torch.float64 if query.dtype == torch.float64 else torch.float32
    return (
        *_of_content(problem, query, key),
        problem.value,
        problem.scale,
        problem.softcap,
        *_of_mask(problem),
        None if problem.bias is None else problem.bias.to(working),
        *_of_position(problem, query, working),
        None if problem.sink is None else problem.sink.to(working),
        _seed(problem),
        problem.dropout_p,
    )


def _of_content(problem: Problem, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    if problem.position is None or not problem.has_term("content"):
        return query, key
    return problem.position.content_query(query), key


def _seed(problem: Problem) -> Tensor | None:
    if problem.dropout_p == 0.0 or problem.seed is None:
        return None
    return problem.seed if isinstance(problem.seed, Tensor) else torch.tensor(problem.seed, dtype=torch.int64)


_NO_TILES = (None, None, None, None, 1, 1)


def _of_mask(problem: Problem) -> tuple[object, ...]:
    """before, after, offset, intervals, tile_first, tile_keys, tile_word, words, tile_batches, tile_heads, dense."""
    mask, sizes = problem.mask, problem.sizes
    if mask is None:
        return (None, None, 0, None, *_NO_TILES, None)
    if torch.compiler.is_compiling():
        band = mask.band(sizes.q_len, sizes.kv_len)
        if band is not None:
            return (band.before, band.after, band.offset, None, *_NO_TILES, None)
        dense = mask.dense(sizes.q_len, sizes.kv_len, device=problem.query.device)
        return (None, None, 0, None, *_NO_TILES, dense[None, None] if dense.dim() == 2 else dense)
    lowered = lower(mask, sizes.q_len, sizes.kv_len)
    tiles = lowered.tiles
    bits = _NO_TILES
    if tiles is not None:
        bits = (tiles.first, tiles.keys, tiles.word, tiles.words, tiles.batch, tiles.heads)
    return (lowered.before, lowered.after, lowered.offset, lowered.intervals, *bits, lowered.dense)


def _of_position(problem: Problem, query: Tensor, working: torch.dtype) -> tuple[object, ...]:
    """distance_offset, distance_bias, distance_query, distance_keys, distance_values."""
    position, sizes = problem.position, problem.sizes
    if position is None or position.terms <= {"rotation"} or 0 in (sizes.q_len, sizes.kv_len):
        return (0, None, None, None, None)
    terms = position.terms
    shift = sizes.kv_len - sizes.q_len if position.align == "bottom_right" else 0
    # A query's position is its index + shift, so the smallest distance is -(q_len - 1 + shift).
    distances = torch.arange(sizes.q_len + sizes.kv_len - 1, device=query.device) - (sizes.q_len - 1 + shift)
    content = "content" in terms
    if content and not all_finite(query):
        query = finite_part(
            query
        )  # its NaN is in the content query already; a row that sees nothing must not spread it
    return (
        sizes.q_len - 1,
        position.distance_bias(distances).to(working).unsqueeze(-1) if "bias" in terms else None,
        position.distance_query(query).to(working) if content else None,
        position.distance_keys(distances, dtype=working) if content else None,
        position.distance_values(distances).to(working).unsqueeze(0) if "value" in terms else None,
    )
