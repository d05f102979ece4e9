"""How fast this machine multiplies and adds: what the speed of a kernel is a fraction of."""

from __future__ import annotations

import torch

from regard._errors import ArgumentError
from regard.backends import _library

_CODES = {"fp32": _library.F32, "bf16": _library.BF16, "fp64": _library.F64}


def fma_peak(dtype: str = "fp32", threads: int | None = None, *, seconds: float = 0.05) -> float:
    """Floating-point operations a second with everything in registers; torch's thread count unless given.

    The widest instruction that the native core uses for this dtype counts: for "bf16" that of bfloat16 pairs where the
    machine has it, otherwise that of float32.

    Raises:
        ArgumentError: a dtype other than "fp32", "bf16" and "fp64".
        NativeError: the native core is absent.
    """
    if dtype not in _CODES:
        raise ArgumentError(
            "dtype", expected=", ".join(_CODES), got=repr(dtype), do="float16 is computed in float32: ask for fp32."
        )
    count = torch.get_num_threads() if threads is None else threads
    return _library.loaded_core().regard_fma_peak(_CODES[dtype], count, seconds)
