"""The native core as a loaded library: where it lies, whether it fits, which instruction set it uses.

`csrc/regard.h` is the definition; `_structures.py` and the functions below repeat it, and loading compares the sizes
of structures with the library's. Nothing is loaded before `loaded_core()` is first called. By then torch is there,
since `regard.backends` imports it: the core runs its work on torch's own OpenMP threads, which it looks up by name
when it first has work.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import regard
from regard._errors import NativeError, sentence
from regard.backends._structures import (
    STRUCTURES,
    BackwardArguments,
    CausalScan,
    CausalScanGradients,
    CausalScanResults,
    ForwardResults,
    Pairs,
    Problem,
    Product,
    SelectiveScan,
    SelectiveScanGradients,
    SelectiveScanResults,
    StatisticsResults,
    WeightsArguments,
)

ABI_VERSION = 1
OK, NOT_FINITE, NO_MEMORY, BAD_ARGUMENT = 0, 1, -1, -2
F32, BF16, F16, F64 = 0, 1, 2, 3
UNLIMITED = 2**63 - 1

FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "regard_abi_version": (c_int32, []),
    "regard_struct_size": (c_int64, [c_char_p]),
    "regard_isa": (c_char_p, []),
    "regard_set_isa": (c_int, [c_char_p]),
    "regard_available_isa": (c_char_p, [c_int32]),
    "regard_isa_request_error": (c_char_p, []),
    "regard_calls": (None, [POINTER(c_int64), POINTER(c_int64)]),
    "regard_forward": (c_int, [POINTER(Problem), POINTER(ForwardResults)]),
    "regard_backward": (c_int, [POINTER(Problem), POINTER(BackwardArguments)]),
    "regard_backward_splits": (c_int64, [POINTER(Problem)]),
    "regard_weights": (c_int, [POINTER(Problem), POINTER(WeightsArguments)]),
    "regard_statistics": (c_int, [POINTER(Problem), POINTER(StatisticsResults)]),
    "regard_multiply": (c_int, [POINTER(Product)]),
    "regard_causal_scan_forward": (c_int, [POINTER(CausalScan), POINTER(CausalScanResults)]),
    "regard_causal_scan_backward": (c_int, [POINTER(CausalScan), POINTER(CausalScanGradients)]),
    "regard_selective_scan_forward": (c_int, [POINTER(SelectiveScan), POINTER(SelectiveScanResults)]),
    "regard_selective_scan_backward": (c_int, [POINTER(SelectiveScan), POINTER(SelectiveScanGradients)]),
    "regard_fma_peak": (c_double, [c_int32, c_int32, c_double]),
    "regard_pack_mask": (c_int, [POINTER(Pairs), c_int64, c_int64, c_int64, c_int64, c_void_p, c_int32]),
    "regard_torch_function": (c_char_p, [c_int32]),
    "regard_torch_register": (c_void_p, [POINTER(c_void_p)]),
    "regard_torch_unregister": (None, [c_void_p]),
}
"""What each function returns and takes. The first two are asked before anything else is."""

_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None
_absent: str | None = None


def loaded_core() -> ctypes.CDLL:
    """The native core, loaded once; `NativeError` says why when there is none that fits."""
    global _loaded, _absent  # noqa: PLW0603 - one library in a process
    if _loaded is not None:
        return _loaded
    with _lock:
        if _loaded is None:
            if _absent is None:
                try:
                    _loaded = load(find())
                except NativeError as error:
                    _absent = str(error)
            if _loaded is None:
                raise NativeError(_absent)
    return _loaded


def why_absent() -> str | None:
    """None when the native core can be used, or the reason why not."""
    try:
        loaded_core()
    except NativeError as error:
        return str(error)
    return None


def isa() -> str:
    """The instruction set that the native core uses."""
    return loaded_core().regard_isa().decode()


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine and this build have, best first."""
    return _isas(loaded_core())


def calls() -> tuple[int, int]:
    """How often the native core computed an attention, and its gradients, since it was loaded."""
    counts = c_int64(), c_int64()
    loaded_core().regard_calls(*map(ctypes.byref, counts))
    return counts[0].value, counts[1].value


def set_isa(name: str | None) -> None:
    """Use this instruction set from now on, in every thread; None takes the best."""
    core = loaded_core()
    if core.regard_set_isa(None if name is None else name.encode()) != OK:
        raise _unknown_isa("set_isa", name, core)


def find() -> Path:
    """The library's file; `NativeError` quotes what the build said when it made none."""
    # An editable installation has the sources in one folder and what was built in another.
    folders = [Path(folder) / "_native" for folder in regard.__path__]
    for folder in folders:
        if (path := folder / "libregard.so").is_file():
            return path
    reasons = [path.read_text(encoding="utf-8").strip() for f in folders if (path := f / "absent.txt").is_file()]
    raise NativeError(
        sentence(
            "the native core is absent",
            expected=f"libregard.so in {' or '.join(str(folder) for folder in folders)}",
            got=reasons[0] if reasons else "no such file, and no word of the build about it",
            do="Install a C++ compiler (g++ or clang++) and then regard again; the other backends work without.",
        )
    )


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`, if it is what this module was written for."""
    try:
        core = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise NativeError(
            sentence("the native core", expected="a library that loads", got=str(error), do=_AGAIN)
        ) from error
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(core, name, None)
        if function is None:
            raise NativeError(
                sentence(f"{path}", expected=f"the function {name}", got="a library without it", do=_AGAIN)
            )
        function.restype, function.argtypes = result, arguments
        if name == "regard_abi_version" and (version := function()) != ABI_VERSION:
            raise NativeError(
                sentence(f"{path}", expected=f"ABI version {ABI_VERSION}", got=f"version {version}", do=_AGAIN)
            )
    for name, structure in STRUCTURES.items():
        size = core.regard_struct_size(name.encode())
        if size != ctypes.sizeof(structure):
            expected = f"{name} of {ctypes.sizeof(structure)} bytes"
            raise NativeError(sentence(f"{path}", expected=expected, got=f"{size} bytes", do=_AGAIN))
    if (request := core.regard_isa_request_error()) is not None:
        raise _unknown_isa("REGARD_ISA in the environment", request.decode(), core)
    return core


_AGAIN = "Install regard again, so that library and package are of one version."


def _isas(core: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while (name := core.regard_available_isa(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def _unknown_isa(what: str, name: str | None, core: ctypes.CDLL) -> NativeError:
    expected = f"an instruction set of this machine and build ({', '.join(_isas(core))})"
    return NativeError(sentence(what, expected=expected, got=repr(name), do="Take one of these, or none for the best."))
