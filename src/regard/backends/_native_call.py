"""One call of the native core: tensors in, tensors out. NaN and Inf are put where they belong after the fact."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from regard._finite import finite_part
from regard.backends import _library as abi
from regard.backends._native_struct import Inputs, ProblemStruct, address, checked, pairs_of, row_major, rows_of

DIFFERENTIABLE = (
    "query", "key", "value", "bias", "distance_bias", "distance_query", "distance_keys", "distance_values", "sink",
)  # fmt: skip
"""The inputs that have a gradient, in the order in which `backward` gives them."""


class Gradients(NamedTuple):
    """One for each of DIFFERENTIABLE, None where it was not asked for."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    bias: Tensor | None = None
    distance_bias: Tensor | None = None
    distance_query: Tensor | None = None
    distance_keys: Tensor | None = None
    distance_values: Tensor | None = None
    sink: Tensor | None = None


# ---------------------------------------------------------------------------------------------- forward


def forward(inputs: Inputs, *, with_lse: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output (batch, heads, q_len, value_dim); lse, and what rounding took from it, both (batch, heads, q_len)."""
    output, lse, low, status = _forward(inputs, with_lse=with_lse)
    if status == abi.NOT_FINITE:
        if not bool(inputs.value.isfinite().all()):
            output, lse, low, _ = _forward(inputs._replace(value=finite_part(inputs.value)), with_lse=with_lse)
            output = _with_value_faults(inputs, output)
        if lse is not None and any(bool(tensor.isinf().any()) for tensor in inputs[:2]):
            lse = _with_infinite_scores(inputs, lse)
    return output, lse, low


def _forward(inputs: Inputs, *, with_lse: bool) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    query = inputs.query
    shape = query.shape[:3]
    output = new_output(query, inputs.value)
    lse = query.new_empty(shape, dtype=inputs.working) if with_lse else None
    low = query.new_empty(shape, dtype=inputs.working) if with_lse else None
    if output.numel() == 0 and not (with_lse and query.shape[2]):
        return output, lse, low, 0
    if inputs.key.shape[2] == 0 or 0 in shape:
        return output.zero_(), None if lse is None else lse.fill_(-math.inf), None if low is None else low.zero_(), 0
    problem = ProblemStruct(inputs)
    results = abi.ForwardResults(rows_of(output), address(lse), address(low))
    status = abi.loaded_core().regard_forward(ctypes.byref(problem.struct), ctypes.byref(results))
    return output, lse, low, checked(status)


def new_output(query: Tensor, value: Tensor) -> Tensor:
    """Uninitialised, laid out like the query where it can be: what a model reshapes next then needs no copy."""
    if query.shape[3] == value.shape[3]:
        return like_rows(query)
    return query.new_empty((*query.shape[:3], value.shape[3]))


def like_rows(tensor: Tensor) -> Tensor:
    """Uninitialised, of the same layout unless its rows are not contiguous."""
    like = torch.empty_like(tensor)  # of a view that overlaps itself the layout is torch's to choose
    return like if like.stride(3) == 1 or like.shape[3] == 1 else tensor.new_empty(tensor.shape)


def _saturating(inputs: Inputs) -> Inputs:
    """Query and key with 0 for NaN, and for Inf a number so large that its scores are as good as infinite.

    A product of it with 0, which a pair without weight has, is 0 and not NaN.
    """
    large = torch.finfo(inputs.working).max ** 0.8
    query, key = (torch.nan_to_num(t.to(inputs.working), 0.0, large, -large) for t in inputs[:2])
    return inputs._replace(query=query, key=key, value=finite_part(inputs.value).to(inputs.working))


def _with_infinite_scores(inputs: Inputs, lse: Tensor) -> Tensor:
    """The lse with +inf, which the core leaves as NaN, for rows that may attend to a score of +inf."""
    _, large, _, _ = _forward(_saturating(inputs), with_lse=True)
    if large is None:
        raise AssertionError("forward gives the lse unless told not to")
    return torch.where(lse.isnan() & ~(large < torch.finfo(inputs.working).max ** 0.4), math.inf, lse)


def _with_value_faults(inputs: Inputs, output: Tensor) -> Tensor:
    """NaN and Inf of the values that may be attended to, put where they belong.

    Which outputs those are is attention too: with all scores equal, an output is above zero exactly when some
    key that may be attended to is flagged.
    """
    value = inputs.value
    flags = [value.isnan(), value == math.inf, value == -math.inf]
    bias = inputs.bias if inputs.bias is None else torch.where(inputs.bias == -math.inf, -math.inf, 0.0)
    even = inputs._replace(
        query=torch.zeros_like(inputs.query, dtype=inputs.working),
        key=torch.zeros_like(inputs.key, dtype=inputs.working),
        softcap=None, bias=None if bias is None else bias.to(inputs.working), distance_bias=None, distance_query=None,
        distance_keys=None, distance_values=None, sink=None, seed=None, dropout_p=0.0,
    )  # fmt: skip
    has_nan, has_plus, has_minus = (
        _forward(even._replace(value=flag.to(inputs.working)), with_lse=False)[0] > 0 for flag in flags
    )
    has_nan = has_nan | (has_plus & has_minus)
    infinite = torch.where(has_plus, math.inf, torch.where(has_minus, -math.inf, 0.0))
    return (output * torch.where(has_nan, math.nan, 1.0) + infinite).to(output.dtype)


# --------------------------------------------------------------------------------------------- backward


def backward(
    inputs: Inputs,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor],
    wanted: tuple[bool, ...],
) -> Gradients:
    """The gradients of those of DIFFERENTIABLE that are `wanted`; `results` is what `forward` gave."""
    results = (row_major(results[0]), results[1].contiguous(), results[2].contiguous())
    gradients, status = _backward(inputs, grad_output, grad_lse, results, wanted)
    if status == abi.NOT_FINITE and not all(bool(t.isfinite().all()) for t in inputs[:3]):
        gradients = _backward_of_what_is_finite(inputs, grad_output, grad_lse, results, wanted)
    return gradients


def _backward_of_what_is_finite(
    inputs: Inputs,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor],
    wanted: tuple[bool, ...],
) -> Gradients:
    """A pair without weight must add nothing, and 0 times NaN would: what is not finite shows in output and lse."""
    cleaned = _saturating(inputs)
    output, lse, low = results
    if bool(output.isinf().any()):  # an infinite value is added to the output, and has no part in its gradient
        without, _, _, _ = _forward(inputs._replace(value=finite_part(inputs.value)), with_lse=False)
        output = torch.where(output.isinf(), without, output)
    lse = torch.where(lse == math.inf, math.nan, lse)
    results = (output.to(inputs.working), lse, low)
    gradients, _ = _backward(cleaned, grad_output.to(inputs.working), grad_lse, results, wanted)
    query, key, value = (_where_finite(*each) for each in zip(inputs[:3], gradients[:3], strict=True))
    return gradients._replace(query=query, key=key, value=value)


def _where_finite(tensor: Tensor, gradient: Tensor | None) -> Tensor | None:
    """What is not finite was replaced by a number, and that one has no gradient."""
    return None if gradient is None else torch.where(tensor.isfinite(), gradient, 0.0).to(tensor.dtype)


def _backward(
    inputs: Inputs,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor],
    wanted: tuple[bool, ...],
) -> tuple[Gradients, int]:
    want = dict(zip(DIFFERENTIABLE, wanted, strict=True))
    output, lse, low = results
    empty = 0 in inputs.query.shape or 0 in inputs.key.shape or 0 in inputs.value.shape
    made = _new_gradients(inputs, [name for name in DIFFERENTIABLE[:3] if want[name]], zero=empty)
    problem = None if empty else ProblemStruct(inputs)
    splits = 1 if problem is None else abi.loaded_core().regard_backward_splits(ctypes.byref(problem.struct))
    made |= {name: _new_sums(inputs, name, splits) for name in DIFFERENTIABLE[3:8] if want[name]}
    grad_output = row_major(grad_output)
    grad_lse = None if grad_lse is None else grad_lse.to(inputs.working).contiguous()
    status = 0
    if problem is not None:
        arguments = abi.BackwardArguments(
            output=rows_of(output), grad_output=rows_of(grad_output), lse=address(lse), lse_low=address(low),
            grad_lse=address(grad_lse), grad_query=rows_of(made.get("query")), grad_key=rows_of(made.get("key")),
            grad_value=rows_of(made.get("value")), grad_bias=pairs_of(made.get("bias")),
            grad_distance_query=rows_of(made.get("distance_query")),
            grad_distance_bias=address(made.get("distance_bias")),
            grad_distance_keys=address(made.get("distance_keys")),
            grad_distance_values=address(made.get("distance_values")), table_splits=splits,
        )  # fmt: skip
        status = checked(abi.loaded_core().regard_backward(ctypes.byref(problem.struct), ctypes.byref(arguments)))
    for name in ("distance_bias", "distance_keys", "distance_values"):
        if name in made:
            made[name] = _summed_to(made[name], getattr(inputs, name))
    if want["sink"] and inputs.sink is not None:
        made["sink"] = _grad_sink(inputs.sink, grad_output, grad_lse, results)
    return Gradients(**made), status


def _new_gradients(inputs: Inputs, names: list[str], *, zero: bool) -> dict[str, Tensor]:
    """Of query, key and value. Where all three are parts of one projection, theirs are parts of one tensor too."""
    if zero:
        return {name: torch.zeros_like(getattr(inputs, name)) for name in names}
    parts = _like_parts(*inputs[:3]) if len(names) == 3 else None
    if parts is None:
        return {name: like_rows(getattr(inputs, name)) for name in names}
    return dict(zip(names, parts, strict=True))


def _like_parts(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...] | None:
    """Uninitialised, three views of memory of (batch, length, 3, heads, head_dim); None unless the given are that."""
    batch, heads, length, head_dim = query.shape
    width, first = heads * head_dim, query.data_ptr()
    strides, step = (3 * length * width, head_dim, 3 * width, 1), width * query.element_size()
    for place, part in enumerate((query, key, value)):
        if part.shape != query.shape or part.stride() != strides or part.data_ptr() != first + place * step:
            return None
    made = query.new_empty(batch, length, 3, heads, head_dim)
    return tuple(part.transpose(1, 2) for part in made.unbind(2))


def _new_sums(inputs: Inputs, name: str, splits: int) -> Tensor:
    like: Tensor = getattr(inputs, name)
    if name in ("bias", "distance_query"):
        return like.new_zeros(like.shape)
    batch, heads = inputs.query.shape[:2]
    dtype = torch.float64 if name == "distance_bias" else like.dtype
    return torch.zeros((batch, heads, splits, *like.shape[1:]), dtype=dtype)


def _summed_to(sums: Tensor, table: Tensor) -> Tensor:
    """(batch, heads, splits, ...) to (heads or 1, ...)."""
    total = sums.sum((0, 2))
    return (total if table.shape[0] == total.shape[0] else total.sum(0, keepdim=True)).to(table.dtype)


def _grad_sink(
    sink: Tensor, grad_output: Tensor, grad_lse: Tensor | None, results: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """A sink takes weight exp(sink - lse) from every row that sees something."""
    output, lse, low = results
    weight = torch.where(lse == -math.inf, 0.0, torch.exp((sink.view(1, -1, 1) - lse) - low))
    means = (grad_output.to(lse.dtype) * output.to(lse.dtype)).sum(-1)
    if grad_lse is not None:
        means = means - grad_lse
    return -(weight * means).sum((0, 2))
