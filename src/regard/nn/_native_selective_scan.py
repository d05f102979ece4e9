"""The selective scan on the native core: one call forward, one backward (`csrc/selective_scan.inl`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from regard.backends import _library as abi
from regard.backends import _structures as structures
from regard.backends._native_struct import checked, in_memory

CHUNK = 32
"""Tokens between two states that backward is given."""

_ONE_THREAD = 1 << 14
"""Below so many numbers of state, over all tokens, one thread is done before a second one has woken."""


def serves(tensors: Sequence[Tensor]) -> bool:
    """Is there a native core, and does it compute this: float32 on CPU?"""
    fits = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return fits and abi.why_absent() is None


def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, length, channels), last state (batch, n, channels), and the states at the begins of chunks."""
    struct = _Struct(tensors)
    inputs, state = tensors[0], tensors[5]
    results = [torch.empty_like(inputs), torch.empty_like(state)]
    begins = state.new_empty(-(-inputs.shape[1] // CHUNK), *state.shape)
    output, last = written = [_row_major(results[0]), results[1].contiguous()]
    arguments = structures.SelectiveScanResults(_rows(output), last.data_ptr(), begins.data_ptr())
    checked(abi.loaded_core().regard_selective_scan_forward(ctypes.byref(struct.scan), ctypes.byref(arguments)))
    _settle(results, written)
    return results[0], results[1], begins


def backward(
    tensors: Sequence[Tensor], grad_output: Tensor, grad_last: Tensor, begins: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of each of the tensors."""
    struct = _Struct(tensors)
    grad_output, grad_last, begins = _row_major(grad_output), _contiguous(grad_last), begins.contiguous()
    results = [torch.empty_like(tensor) for tensor in tensors]
    written = [*map(_row_major, results[:2]), *(result.contiguous() for result in results[2:])]
    arguments = structures.SelectiveScanGradients(
        _rows(grad_output), grad_last.data_ptr(), begins.data_ptr(), *map(_rows, written[:2]),
        *(tensor.data_ptr() for tensor in written[2:]),
    )  # fmt: skip
    checked(abi.loaded_core().regard_selective_scan_backward(ctypes.byref(struct.scan), ctypes.byref(arguments)))
    _settle(results, written)
    inputs, step, decay, write, read, state = results
    return inputs, step, decay, write, read, state


def _settle(results: Sequence[Tensor], written: Sequence[Tensor]) -> None:
    """Copy what was written to where it belongs, where the core could not write there."""
    for result, found in zip(results, written, strict=True):
        if found is not result:
            result.copy_(found)


class _Struct:
    """The C struct, and the tensors that its pointers point to."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        inputs, step, decay, write, read, state = tensors
        rows = tuple(_row_major(tensor) for tensor in (inputs, step, write, read))
        whole = tuple(_contiguous(tensor) for tensor in (decay, state))
        self.kept = (rows, whole)
        batch, length, channels = inputs.shape
        work = batch * length * channels * decay.shape[0]
        self.scan = structures.SelectiveScan(
            1 if work < _ONE_THREAD else torch.get_num_threads(), batch, length, channels, decay.shape[0],
            *map(_rows, rows), *(tensor.data_ptr() for tensor in whole),
        )  # fmt: skip


def _contiguous(tensor: Tensor) -> Tensor:
    return in_memory(tensor).contiguous()


def _row_major(tensor: Tensor) -> Tensor:
    tensor = in_memory(tensor)
    return tensor if tensor.stride(2) == 1 or tensor.shape[2] == 1 else tensor.contiguous()


def _rows(tensor: Tensor) -> structures.Rows:
    """(batch, length, width), in one head."""
    return structures.Rows(tensor.data_ptr(), tensor.stride(0), 0, tensor.stride(1))
