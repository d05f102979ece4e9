"""torch's fused attention operators on CPU, `aten::_scaled_dot_product_flash_attention_for_cpu` and its backward, as
kernels of the native core.

Where torch's library has the stable C interface of 2.13 they are C functions (csrc/torch_kernels.cpp) that torch's
dispatcher calls by itself, with no Python and no interpreter lock; what these do not serve (NaN and Inf, memory laid
out oddly, arguments that do not fit) they pass on to the Python functions below, which also complain. Elsewhere the
Python functions are the kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import library as operator_library

from regard.backends import _library
from regard.backends._native_call import backward, forward
from regard.integrations._torch_arguments import check_fused, check_fused_backward, inputs_of

FUSED = "_scaled_dot_product_flash_attention_for_cpu"


class FusedKernels:
    """The registration; `remove` restores torch's own kernels."""

    def __init__(self) -> None:
        fragment: Any = operator_library.Library("regard", "FRAGMENT")
        kernels: Any = operator_library.Library("aten", "IMPL")
        self._libraries = [fragment, kernels]
        for replaced, name, function in _IN_PYTHON:
            schema = str(getattr(torch.ops.aten, replaced).default._schema)  # noqa: SLF001 - torch has no public way
            fragment.define(name + schema[schema.index("(") :])
            fragment.impl(name, function, "CPU")
            kernels.impl(replaced, function, "CPU", allow_override=True)
        # Over the Python kernels: torch warns of the first one that is replaced, and can be hushed only in Python.
        self._handle = _registered_in_c()

    def remove(self) -> None:
        """torch's own kernels are back; nothing happens the second time."""
        if self._handle is not None:
            _library.loaded_core().regard_torch_unregister(self._handle)
            self._handle = None
        while self._libraries:
            self._libraries.pop()._destroy()  # noqa: SLF001 - what torch's own implementations do


def _registered_in_c() -> int | None:
    """A handle, or None where torch has not the functions that it takes."""
    core = _library.loaded_core()
    addresses = _addresses(core.regard_torch_function)
    return None if addresses is None else core.regard_torch_register(addresses)


def _addresses(name_of: Callable[[int], bytes | None]) -> Any:
    """Of torch's functions, in the order of their names."""
    torch_library = _torch_library()
    found: list[int] = []
    while (name := name_of(len(found))) is not None:
        function = None if torch_library is None else getattr(torch_library, name.decode(), None)
        address = None if function is None else ctypes.cast(function, ctypes.c_void_p).value
        if address is None:
            return None
        found.append(address)
    return (ctypes.c_void_p * len(found))(*found)


def _torch_library() -> ctypes.CDLL | None:
    """torch's own library, which is loaded already."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).is_file():
            try:
                return ctypes.CDLL(str(folder / name))
            except OSError:
                return None
    return None


# ---------------------------------------------------------------------------------- the same in Python


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    check_fused(query, key, value, attn_mask, dropout_p)
    output, lse, _ = forward(inputs_of(query, key, value, attn_mask, 0.0, is_causal, scale))
    if lse is None:
        raise AssertionError("forward gives the lse unless told not to")
    if query.stride(3) != 1:  # the compiler expects the layout of the query, whatever it is
        output = torch.empty_like(query).copy_(output)
    return output, _length_before_heads(lse)


def _length_before_heads(tensor: Tensor) -> Tensor:
    """The same numbers in the layout (batch, length, heads, ...), which compiled graphs expect of these kernels."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _flash_backward(
    grad_out: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Any, ...]:
    if grad_out is None:  # nothing depends on the output
        return None, None, None
    check_fused(query, key, value, attn_mask, dropout_p)
    check_fused_backward(grad_out, query, value, out, logsumexp)
    inputs = inputs_of(query, key, value, attn_mask, 0.0, is_causal, scale)
    wanted = (True, True, True, *[False] * 6)
    gradients = backward(inputs, grad_out, None, (out, logsumexp, torch.zeros_like(logsumexp)), wanted)
    return tuple(None if gradient is None else _length_before_heads(gradient) for gradient in gradients[:3])


_IN_PYTHON: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    (FUSED, "flash_attention_for_cpu", _flash),
    (f"{FUSED}_backward", "flash_attention_for_cpu_backward", _flash_backward),
)
