"""One call of the native core as the C structures that it reads. Knows the ABI; knows nothing of autograd or masks.

`Inputs` is everything that `attention` needs, as tensors and numbers; its fields are the arguments of the operators in
`_ops.py`, in their order.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from regard._errors import NativeError
from regard.backends import _library as abi
from regard.backends import _structures as structures

_CODES = {torch.float32: abi.F32, torch.bfloat16: abi.BF16, torch.float16: abi.F16, torch.float64: abi.F64}
_ONE_THREAD = 1 << 19
"""Below so many multiply-adds one thread is done before a second one has woken."""


class Inputs(NamedTuple):
    """Everything that is computed with. Tables are over the q_len + kv_len - 1 distances, ascending.

    A mask that is not told by a band and intervals comes as `dense`, or packed: `words` alone hold one for each key of
    each block of 64 queries, and with `tile_first` those of runs of keys; they are shared by samples and heads where
    `tile_batches` and `tile_heads` are 1.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float | None = None
    before: int | None = None
    after: int | None = None
    offset: int = 0
    intervals: Tensor | None = None
    tile_first: Tensor | None = None
    tile_keys: Tensor | None = None
    tile_word: Tensor | None = None
    words: Tensor | None = None
    tile_batches: int = 1
    tile_heads: int = 1
    dense: Tensor | None = None
    bias: Tensor | None = None
    distance_offset: int = 0
    distance_bias: Tensor | None = None
    distance_query: Tensor | None = None
    distance_keys: Tensor | None = None
    distance_values: Tensor | None = None
    sink: Tensor | None = None
    seed: Tensor | None = None
    dropout_p: float = 0.0

    @property
    def working(self) -> torch.dtype:
        """The dtype that biases, tables, sinks and lse have."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def distances(self) -> int:
        """How many distances occur."""
        return self.query.shape[2] + self.key.shape[2] - 1


def with_packed_mask(inputs: Inputs, threads: int | None = None) -> Inputs:
    """The same with words in place of a dense mask, which may then change or go."""
    dense = inputs.dense
    if dense is None:
        return inputs
    batch, heads = (size if stride else 1 for size, stride in zip(dense.shape[:2], dense.stride()[:2], strict=True))
    q_len, kv_len = dense.shape[2:]
    words = torch.empty((batch, heads, (q_len + 63) // 64, kv_len), dtype=torch.int64)
    pairs = pairs_of(dense)
    threads = torch.get_num_threads() if threads is None else threads
    status = abi.loaded_core().regard_pack_mask(
        ctypes.byref(pairs), batch, heads, q_len, kv_len, words.data_ptr(), threads
    )
    checked(status)
    return inputs._replace(dense=None, words=words, tile_batches=batch, tile_heads=heads)


class ProblemStruct:
    """The C struct, and the tensors that its pointers point to.

    The struct is packed from one flat tuple: filling it field by field takes longer than a small problem does.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.kept: list[Tensor] = []
        query, key, value = (self.keep(row_major(tensor)) for tensor in inputs[:3])
        batch, heads, q_len, head_dim = query.shape
        _, kv_heads, kv_len, value_dim = value.shape
        work = batch * heads * q_len * kv_len * (head_dim + value_dim)
        self.threads = 1 if work < _ONE_THREAD else torch.get_num_threads()
        sizes = (batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim)
        rows = (*_flat_rows(query), *_flat_rows(key), *_flat_rows(value))
        numbers = (inputs.scale, inputs.softcap or 0.0)
        mask, rest = self._mask(inputs), self._rest(inputs)
        packed = _PACKED.pack(_CODES[query.dtype], self.threads, *sizes, *rows, *numbers, *mask, *rest)
        self.struct = structures.Problem.from_buffer_copy(packed)

    def keep(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        return tensor

    def _mask(self, inputs: Inputs) -> tuple[int, ...]:
        """The fields of regard_mask."""
        before = abi.UNLIMITED if inputs.before is None else inputs.before
        after = abi.UNLIMITED if inputs.after is None else inputs.after
        intervals = _NO_INTERVALS if inputs.intervals is None else self._intervals(inputs.intervals)
        inputs = with_packed_mask(inputs, self.threads)
        words = _NO_WORDS
        if inputs.words is not None:
            words = self._words(inputs, inputs.words)
        return (before, after, inputs.offset, *intervals, *words)

    def _intervals(self, intervals: Tensor) -> tuple[int, ...]:
        intervals = self.keep(intervals.contiguous())
        return (intervals.data_ptr(), intervals.shape[2], *_shared_strides(intervals))

    def _words(self, inputs: Inputs, words: Tensor) -> tuple[int, ...]:
        parts = (words, inputs.tile_first, inputs.tile_keys, inputs.tile_word)
        pointers = (0 if part is None else self.keep(part.contiguous()).data_ptr() for part in parts)
        blocks = (inputs.query.shape[2] + 63) // 64
        return (*pointers, *_block_strides(inputs.tile_batches, inputs.tile_heads, blocks))

    def _rest(self, inputs: Inputs) -> tuple[float, ...]:
        """Bias, tables, sink and dropout."""
        if all(value is None for value in inputs[_FIRST_EXTRA:_FIRST_NUMBER] if not isinstance(value, int)):
            return _NO_EXTRAS
        bias = _NO_PAIRS if inputs.bias is None else _flat_pairs(self.keep(in_memory(inputs.bias)))
        met = _NO_ROWS
        if inputs.distance_query is not None:
            met = _flat_rows(self.keep(row_major(inputs.distance_query)))
        tables = (inputs.distance_bias, inputs.distance_keys, inputs.distance_values)
        by_bias, by_keys, by_values = (self._table(table) for table in tables)
        sink = 0 if inputs.sink is None else self.keep(in_memory(inputs.sink).contiguous()).data_ptr()
        return (*bias, inputs.distance_offset, *by_bias, *met, *by_keys, *by_values, sink, *_dropout(inputs))

    def _table(self, table: Tensor | None) -> tuple[int, int, int]:
        if table is None:
            return (0, 0, 0)
        table = self.keep(in_memory(table).contiguous())
        return (table.data_ptr(), table.stride(0) if table.shape[0] > 1 else 0, table.stride(1))


_PACKED = struct.Struct(structures.flat_format(structures.Problem))
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


def row_major(tensor: Tensor) -> Tensor:
    """The numbers themselves, each row of them in one piece."""
    tensor = in_memory(tensor)
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def in_memory(tensor: Tensor) -> Tensor:
    """What torch keeps as a note beside the memory (a minus sign, zeros that take none) becomes numbers."""
    is_note = tensor.is_neg() or tensor._is_zerotensor()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return tensor.clone(memory_format=torch.contiguous_format) if is_note else tensor


def rows_of(tensor: Tensor | None) -> structures.Rows:
    return structures.Rows() if tensor is None else structures.Rows(*_flat_rows(tensor))


def pairs_of(tensor: Tensor | None) -> structures.Pairs:
    return structures.Pairs() if tensor is None else structures.Pairs(*_flat_pairs(tensor))


def _shared_strides(tensor: Tensor) -> tuple[int, int]:
    return (tensor.stride(0) if tensor.shape[0] > 1 else 0, tensor.stride(1) if tensor.shape[1] > 1 else 0)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def checked(status: int) -> int:
    if status == abi.NO_MEMORY:
        raise NativeError("the native core found no memory for its scratch space; use fewer threads or backend='sdpa'")
    if status < abi.OK:
        raise NativeError(f"the native core refused its arguments (status {status}); please report this call")
    return status
