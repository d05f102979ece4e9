"""The causal sum of features on the native core: one call forward, one backward (`csrc/causal_*.inl`)."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from regard.backends import _library as abi
from regard.backends import _structures as structures
from regard.backends._native_struct import address, checked, in_memory, row_major, rows_of

_ONE_THREAD = 1 << 17
"""Below so many multiply-adds one thread is done before a second one has woken."""


class Scan(NamedTuple):
    """The tensors of `regard::causal_scan`, in its order."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_weight: Tensor | None
    projection: Tensor | None
    values: Tensor
    keys: Tensor
    scale: Tensor
    opposites: bool

    @property
    def features(self) -> int:
        return self.keys.shape[2]


def serves(scan: Scan) -> bool:
    """Is there a native core, and does it compute this: float32 on CPU?"""
    tensors = [tensor for tensor in scan[:-1] if isinstance(tensor, Tensor)]
    fits = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    weighted = scan.projection is None or scan.log_weight is not None
    some = min(scan.features, scan.value.shape[3], scan.query.shape[3]) > 0
    return fits and weighted and some and abi.why_absent() is None


def forward(scan: Scan, output: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill output (batch, heads, length, value_dim) and normaliser (batch, heads, length); gives the state after."""
    struct = _Struct(scan)
    values, keys, scale = (torch.empty(tensor.shape) for tensor in (scan.values, scan.keys, scan.scale))
    results = structures.CausalScanResults(rows_of(output), *map(address, (normaliser, values, keys, scale)))
    checked(abi.loaded_core().regard_causal_scan_forward(ctypes.byref(struct.scan), ctypes.byref(results)))
    return values, keys, scale


def backward(
    scan: Scan, output: Tensor, normaliser: Tensor, grad_output: Tensor, grad_state: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Gradients of query, key, value, log weight (empty where there is none), and the state's values and keys."""
    struct = _Struct(scan)
    output, grad_output, normaliser = row_major(output), row_major(grad_output), normaliser.contiguous()
    grads = [torch.empty_like(tensor) for tensor in scan[:3]]
    written = [row_major(tensor) for tensor in grads]  # itself, or a copy where its rows are not in one piece
    grad_log = torch.empty((0,) if scan.log_weight is None else scan.log_weight.shape)
    above = [in_memory(tensor).contiguous() for tensor in grad_state]
    before = [torch.empty(tensor.shape) for tensor in (scan.values, scan.keys)]
    arguments = structures.CausalScanGradients(
        rows_of(output), rows_of(grad_output), *map(address, (normaliser, *above)), *map(rows_of, written),
        *map(address, (grad_log, *before)),
    )  # fmt: skip
    checked(abi.loaded_core().regard_causal_scan_backward(ctypes.byref(struct.scan), ctypes.byref(arguments)))
    for grad, found in zip(grads, written, strict=True):
        if found is not grad:
            grad.copy_(found)
    return [*grads, grad_log, *before]


class _Struct:
    """The C struct, and the tensors that its pointers point to."""

    def __init__(self, scan: Scan) -> None:
        query, key, value = (row_major(tensor) for tensor in scan[:3])
        state = [in_memory(tensor).contiguous() for tensor in (scan.values, scan.keys, scan.scale)]
        log = None if scan.log_weight is None else in_memory(scan.log_weight).unsqueeze(-1)
        projection = None if scan.projection is None else in_memory(scan.projection).contiguous()
        self.kept = (query, key, value, state, log, projection)
        batch, heads, length, width = query.shape
        work = batch * heads * length * scan.features * value.shape[3]
        self.scan = structures.CausalScan(
            1 if work < _ONE_THREAD else torch.get_num_threads(), scan.projection is not None and scan.opposites,
            batch, heads, length, width, scan.features, value.shape[3],
            *map(rows_of, (query, key, value, log)), address(projection), *map(address, state),
        )  # fmt: skip
