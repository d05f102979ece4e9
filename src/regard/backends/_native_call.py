"""One call of the native core: tensors in, tensors out. Knows the ABI; knows nothing of autograd or masks.

`Inputs` is everything that `attention` needs, as tensors and numbers; its fields are the arguments of the
operators in `_ops.py`, in their order.
"""

from __future__ import annotations

import ctypes
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from regard._errors import NativeError
from regard._finite import finite_part
from regard.backends import _library as abi

_NOT_FINITE = 1
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_ONE_THREAD = 1 << 21
"""Below so many multiply-adds one thread is done before a second one has woken."""


class Inputs(NamedTuple):
    """Everything that is computed with. Tables are over the q_len + kv_len - 1 distances, ascending."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float | None
    before: int | None
    after: int | None
    offset: int
    intervals: Tensor | None
    tile_first: Tensor | None
    tile_keys: Tensor | None
    tile_word: Tensor | None
    words: Tensor | None
    tile_batches: int
    tile_heads: int
    dense: Tensor | None
    bias: Tensor | None
    distance_offset: int
    distance_bias: Tensor | None
    distance_query: Tensor | None
    distance_keys: Tensor | None
    distance_values: Tensor | None
    sink: Tensor | None
    seed: Tensor | None
    dropout_p: float

    @property
    def working(self) -> torch.dtype:
        """The dtype that biases, tables, sinks and lse have."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def distances(self) -> int:
        """How many distances occur."""
        return self.query.shape[2] + self.key.shape[2] - 1


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
    if status == _NOT_FINITE and not bool(inputs.value.isfinite().all()):
        output, lse, low, _ = _forward(inputs._replace(value=finite_part(inputs.value)), with_lse=with_lse)
        output = _with_value_faults(inputs, output)
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
    problem = _Problem(inputs)
    results = abi.ForwardResults(_rows(output), _address(lse), _address(low))
    status = abi.library().regard_forward(ctypes.byref(problem.struct), ctypes.byref(results))
    return output, lse, low, _checked(status)


def new_output(query: Tensor, value: Tensor) -> Tensor:
    """Uninitialised, laid out like the query where it can be: what a model reshapes next then needs no copy."""
    if query.shape[3] == value.shape[3]:
        return like_rows(query)
    return query.new_empty((*query.shape[:3], value.shape[3]))


def like_rows(tensor: Tensor) -> Tensor:
    """Uninitialised, of the same layout unless its rows are not contiguous."""
    return torch.empty_like(tensor) if tensor.stride(3) == 1 else tensor.new_empty(tensor.shape)


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
    results = (_row_major(results[0]), results[1].contiguous(), results[2].contiguous())
    gradients, status = _backward(inputs, grad_output, grad_lse, results, wanted)
    if status == _NOT_FINITE and not all(bool(t.isfinite().all()) for t in inputs[:3]):
        # A pair without weight must add nothing, and 0 times NaN would: what is not finite shows in output and lse.
        query, key, value = (finite_part(t) for t in inputs[:3])
        cleaned = inputs._replace(query=query, key=key, value=value)
        gradients, _ = _backward(cleaned, grad_output, grad_lse, results, wanted)
    return gradients


def _backward(
    inputs: Inputs,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor],
    wanted: tuple[bool, ...],
) -> tuple[Gradients, int]:
    want = dict(zip(DIFFERENTIABLE, wanted, strict=True))
    output, lse, low = results
    made = {name: _new_gradient(inputs, name) for name in DIFFERENTIABLE[:3] if want[name]}
    empty = 0 in inputs.query.shape or 0 in inputs.key.shape or 0 in inputs.value.shape
    problem = None if empty else _Problem(inputs)
    splits = 1 if problem is None else abi.library().regard_backward_splits(ctypes.byref(problem.struct))
    made |= {name: _new_sums(inputs, name, splits) for name in DIFFERENTIABLE[3:8] if want[name]}
    grad_output = _row_major(grad_output)
    grad_lse = None if grad_lse is None else grad_lse.to(inputs.working).contiguous()
    status = 0
    if problem is not None:
        arguments = abi.BackwardArguments(
            output=_rows(output), grad_output=_rows(grad_output), lse=_address(lse), lse_low=_address(low),
            grad_lse=_address(grad_lse), grad_query=_rows(made.get("query")), grad_key=_rows(made.get("key")),
            grad_value=_rows(made.get("value")), grad_bias=_pairs(made.get("bias")),
            grad_distance_query=_rows(made.get("distance_query")),
            grad_distance_bias=_address(made.get("distance_bias")), grad_distance_keys=_address(made.get("distance_keys")),
            grad_distance_values=_address(made.get("distance_values")), table_splits=splits,
        )  # fmt: skip
        status = _checked(abi.library().regard_backward(ctypes.byref(problem.struct), ctypes.byref(arguments)))
    for name in ("distance_bias", "distance_keys", "distance_values"):
        if name in made:
            made[name] = _summed_to(made[name], getattr(inputs, name))
    if want["sink"] and inputs.sink is not None:
        made["sink"] = _grad_sink(inputs.sink, grad_output, grad_lse, output, lse)
    return Gradients(**made), status


def _new_gradient(inputs: Inputs, name: str) -> Tensor:
    like: Tensor = getattr(inputs, name)
    return like.new_zeros(like.shape) if inputs.query.numel() == 0 else like_rows(like)


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


def _grad_sink(sink: Tensor, grad_output: Tensor, grad_lse: Tensor | None, output: Tensor, lse: Tensor) -> Tensor:
    """A sink takes weight exp(sink - lse) from every row that sees something."""
    weight = torch.where(lse == -math.inf, 0.0, torch.exp(sink.view(1, -1, 1) - lse))
    means = (grad_output.to(lse.dtype) * output.to(lse.dtype)).sum(-1)
    if grad_lse is not None:
        means = means - grad_lse
    return -(weight * means).sum((0, 2))


# ------------------------------------------------------------------------------------------------ structs


class _Problem:
    """The C struct, and the tensors that its pointers point to.

    The struct is packed from one flat tuple: filling it field by field takes longer than a small problem does.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.kept: list[Tensor] = []
        query, key, value = (self.keep(_row_major(tensor)) for tensor in inputs[:3])
        batch, heads, q_len, head_dim = query.shape
        _, kv_heads, kv_len, value_dim = value.shape
        work = batch * heads * q_len * kv_len * (head_dim + value_dim)
        self.threads = 1 if work < _ONE_THREAD else torch.get_num_threads()
        sizes = (batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim)
        rows = (*_flat_rows(query), *_flat_rows(key), *_flat_rows(value))
        numbers = (inputs.scale, inputs.softcap or 0.0)
        mask, rest = self._mask(inputs), self._rest(inputs)
        packed = _PACKED.pack(_CODES[query.dtype], self.threads, *sizes, *rows, *numbers, *mask, *rest)
        self.struct = abi.Problem.from_buffer_copy(packed)

    def keep(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        return tensor

    def _mask(self, inputs: Inputs) -> tuple[int, ...]:
        """The fields of regard_mask."""
        before = abi.UNLIMITED if inputs.before is None else inputs.before
        after = abi.UNLIMITED if inputs.after is None else inputs.after
        intervals = _NO_INTERVALS if inputs.intervals is None else self._intervals(inputs.intervals)
        words = _NO_WORDS
        if inputs.dense is not None:
            words = self._packed_words(inputs.dense)
        elif inputs.tile_first is not None:
            words = self._tiles(inputs)
        return (before, after, inputs.offset, *intervals, *words)

    def _intervals(self, intervals: Tensor) -> tuple[int, ...]:
        intervals = self.keep(intervals.contiguous())
        return (intervals.data_ptr(), intervals.shape[2], *_shared_strides(intervals))

    def _packed_words(self, dense: Tensor) -> tuple[int, ...]:
        batch, heads = (size if stride else 1 for size, stride in zip(dense.shape[:2], dense.stride()[:2], strict=True))
        q_len, kv_len = dense.shape[2:]
        blocks = (q_len + 63) // 64
        words = self.keep(torch.empty((batch, heads, blocks, kv_len), dtype=torch.int64))
        pairs = _pairs(dense)
        status = abi.library().regard_pack_mask(
            ctypes.byref(pairs), batch, heads, q_len, kv_len, words.data_ptr(), self.threads
        )
        _checked(status)
        return (words.data_ptr(), 0, 0, 0, *_block_strides(batch, heads, blocks))

    def _tiles(self, inputs: Inputs) -> tuple[int, ...]:
        pointers: list[int] = []
        for tensor in (inputs.words, inputs.tile_first, inputs.tile_keys, inputs.tile_word):
            if tensor is None:
                raise AssertionError("bit tiles come as four tensors")
            pointers.append(self.keep(tensor.contiguous()).data_ptr())
        blocks = (inputs.query.shape[2] + 63) // 64
        return (*pointers, *_block_strides(inputs.tile_batches, inputs.tile_heads, blocks))

    def _rest(self, inputs: Inputs) -> tuple[float, ...]:
        """Bias, tables, sink and dropout."""
        if all(value is None for value in inputs[_FIRST_EXTRA:_FIRST_NUMBER] if not isinstance(value, int)):
            return _NO_EXTRAS
        bias = _NO_PAIRS if inputs.bias is None else _flat_pairs(self.keep(inputs.bias))
        met = _NO_ROWS
        if inputs.distance_query is not None:
            met = _flat_rows(self.keep(_row_major(inputs.distance_query)))
        tables = (inputs.distance_bias, inputs.distance_keys, inputs.distance_values)
        by_bias, by_keys, by_values = (self._table(table) for table in tables)
        sink = 0 if inputs.sink is None else self.keep(inputs.sink.contiguous()).data_ptr()
        return (*bias, inputs.distance_offset, *by_bias, *met, *by_keys, *by_values, sink, *_dropout(inputs))

    def _table(self, table: Tensor | None) -> tuple[int, int, int]:
        if table is None:
            return (0, 0, 0)
        table = self.keep(table.contiguous())
        return (table.data_ptr(), table.stride(0) if table.shape[0] > 1 else 0, table.stride(1))


_PACKED = struct.Struct(abi.flat_format(abi.Problem))
_NO_INTERVALS, _NO_WORDS, _NO_PAIRS, _NO_ROWS = (0,) * 4, (0,) * 6, (0,) * 5, (0,) * 4
_FIRST_EXTRA, _FIRST_NUMBER = Inputs._fields.index("bias"), Inputs._fields.index("dropout_p")
_NO_EXTRAS = (*_NO_PAIRS, 0, *(0,) * 3, *_NO_ROWS, *(0,) * 6, 0, 0, 0, 0.0)


def _dropout(inputs: Inputs) -> tuple[int, int, float]:
    """seed, drop_below and keep_scale."""
    if inputs.dropout_p == 0.0 or inputs.seed is None:
        return (0, 0, 0.0)
    grown = 0.0 if inputs.dropout_p == 1.0 else 1.0 / (1.0 - inputs.dropout_p)
    return (int(inputs.seed), round(inputs.dropout_p * 2**32), grown)


def _block_strides(batch: int, heads: int, blocks: int) -> tuple[int, int]:
    return (heads * blocks if batch > 1 else 0, blocks if heads > 1 else 0)


def _flat_rows(tensor: Tensor) -> tuple[int, int, int, int]:
    batch, head, row, _ = tensor.stride()
    return (tensor.data_ptr(), batch, head, row)


def _flat_pairs(tensor: Tensor) -> tuple[int, ...]:
    """A tensor that broadcasts to the scores: a dimension of one is shared."""
    strides = (0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.data_ptr(), *strides)


def _row_major(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _rows(tensor: Tensor | None) -> abi.Rows:
    return abi.Rows() if tensor is None else abi.Rows(*_flat_rows(tensor))


def _pairs(tensor: Tensor | None) -> abi.Pairs:
    return abi.Pairs() if tensor is None else abi.Pairs(*_flat_pairs(tensor))


def _shared_strides(tensor: Tensor) -> tuple[int, int]:
    return (tensor.stride(0) if tensor.shape[0] > 1 else 0, tensor.stride(1) if tensor.shape[1] > 1 else 0)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _checked(status: int) -> int:
    if status == -1:
        raise NativeError("the native core found no memory for its scratch space; use fewer threads or backend='sdpa'")
    if status < 0:
        raise NativeError(f"the native core refused its arguments (status {status}); please report this call")
    return status
