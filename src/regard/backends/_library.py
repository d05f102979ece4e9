"""The native core as a loaded library: where it lies, whether it fits, which instruction set it uses.

`csrc/regard.h` is the definition; the structures below repeat it, and loading compares their sizes with the
library's. Nothing is loaded before `loaded_core()` is first called. By then torch is there, since
`regard.backends` imports it: the core runs its work on torch's own OpenMP threads, which it looks up by
name when it first has work.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import regard
from regard._errors import NativeError, sentence

ABI_VERSION = 1
OK, NOT_FINITE, NO_MEMORY, BAD_ARGUMENT = 0, 1, -1, -2
F32, BF16, F16, F64 = 0, 1, 2, 3
UNLIMITED = 2**63 - 1


class Rows(Structure):
    """`regard_rows`: rows of numbers; the stride of a row's numbers is 1."""

    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("row_stride", c_int64),
    )


class Pairs(Structure):
    """`regard_pairs`: a view that broadcasts to (batch, heads, q_len, kv_len)."""

    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("query_stride", c_int64),
        ("key_stride", c_int64),
    )


class Mask(Structure):
    """`regard_mask`: band, intervals and words; a pair passes all of them."""

    _fields_ = (
        ("before", c_int64),
        ("after", c_int64),
        ("offset", c_int64),
        ("intervals", c_void_p),
        ("interval_count", c_int64),
        ("interval_batch_stride", c_int64),
        ("interval_head_stride", c_int64),
        ("words", c_void_p),
        ("tile_first", c_void_p),
        ("tile_keys", c_void_p),
        ("tile_word", c_void_p),
        ("word_batch_stride", c_int64),
        ("word_head_stride", c_int64),
    )


class Table(Structure):
    """`regard_table`: one row for each distance."""

    _fields_ = (("data", c_void_p), ("head_stride", c_int64), ("row_stride", c_int64))


class Problem(Structure):
    """`regard_problem`."""

    _fields_ = (
        ("dtype", c_int32),
        ("threads", c_int32),
        ("batch", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("q_len", c_int64),
        ("kv_len", c_int64),
        ("head_dim", c_int64),
        ("value_dim", c_int64),
        ("query", Rows),
        ("key", Rows),
        ("value", Rows),
        ("scale", c_double),
        ("softcap", c_double),
        ("mask", Mask),
        ("bias", Pairs),
        ("distance_offset", c_int64),
        ("distance_bias", Table),
        ("distance_query", Rows),
        ("distance_keys", Table),
        ("distance_values", Table),
        ("sink", c_void_p),
        ("seed", c_uint64),
        ("drop_below", c_uint64),
        ("keep_scale", c_double),
    )


class ForwardResults(Structure):
    """`regard_forward_results`."""

    _fields_ = (("output", Rows), ("lse", c_void_p), ("lse_low", c_void_p))


class BackwardArguments(Structure):
    """`regard_backward_arguments`."""

    _fields_ = (
        ("output", Rows),
        ("grad_output", Rows),
        ("lse", c_void_p),
        ("lse_low", c_void_p),
        ("grad_lse", c_void_p),
        ("grad_query", Rows),
        ("grad_key", Rows),
        ("grad_value", Rows),
        ("grad_bias", Pairs),
        ("grad_distance_query", Rows),
        ("grad_distance_bias", c_void_p),
        ("grad_distance_keys", c_void_p),
        ("grad_distance_values", c_void_p),
        ("table_splits", c_int64),
    )


class WeightsArguments(Structure):
    """`regard_weights_arguments`."""

    _fields_ = (
        ("heads", c_void_p),
        ("rows", c_void_p),
        ("cols", c_void_p),
        ("head_count", c_int64),
        ("row_count", c_int64),
        ("col_count", c_int64),
        ("lse", c_void_p),
        ("lse_low", c_void_p),
        ("found_top", c_void_p),
        ("found_rest", c_void_p),
        ("weights", c_void_p),
    )


class StatisticsResults(Structure):
    """`regard_statistics_results`."""

    _fields_ = (
        ("entropy", c_void_p),
        ("max_logit", c_void_p),
        ("sink_share", c_void_p),
        ("distance", c_void_p),
        ("received", c_void_p),
        ("top_count", c_int64),
        ("top_weights", c_void_p),
        ("top_keys", c_void_p),
        ("pooled_side", c_int64),
        ("pooled", c_void_p),
    )


class Product(Structure):
    """`regard_product`."""

    _fields_ = (
        ("dtype", c_int32),
        ("threads", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("steps", c_int64),
        ("a", c_void_p),
        ("a_row", c_int64),
        ("a_step", c_int64),
        ("b", c_void_p),
        ("b_step", c_int64),
        ("b_column", c_int64),
        ("bias", c_void_p),
        ("c", c_void_p),
        ("c_row", c_int64),
    )


_LETTERS: dict[object, str] = {c_int32: "i", c_int64: "q", c_uint64: "Q", c_double: "d", c_void_p: "P"}


def flat_format(structure: type[Structure]) -> str:
    """The numbers of a structure, nested ones in their place, as a format of the module `struct`."""
    kinds: list[type] = [field[1] for field in structure._fields_]
    return "".join(flat_format(kind) if issubclass(kind, Structure) else _LETTERS[kind] for kind in kinds)


STRUCTURES: dict[str, type[Structure]] = {
    "regard_rows": Rows,
    "regard_pairs": Pairs,
    "regard_mask": Mask,
    "regard_table": Table,
    "regard_problem": Problem,
    "regard_forward_results": ForwardResults,
    "regard_backward_arguments": BackwardArguments,
    "regard_weights_arguments": WeightsArguments,
    "regard_statistics_results": StatisticsResults,
    "regard_product": Product,
}

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
