"""The native core as Python meets it: loaded once, beside torch, with its own reasons when it cannot be."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regard import NativeError
from regard.backends import _library, _structures

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc" / "regard.h"

if _library.why_absent() and shutil.which("c++") is None:
    pytest.skip(_library.why_absent(), allow_module_level=True)


def run(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_is_a_core_where_there_is_a_compiler():
    assert _library.why_absent() is None
    assert _library.isa() in _library.available_isas()


def test_it_is_loaded_once_whoever_asks():
    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(lambda _: _library.loaded_core(), range(64))))) == 1


# ---------------------------------------------------------------------------------- the header and its mirrors


def header_structs() -> dict[str, list[tuple[str, str]]]:
    """Every struct of the header as (type, name) of its fields."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found: dict[str, list[tuple[str, str]]] = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, flags=re.DOTALL):
        fields: list[tuple[str, str]] = []
        for line in body.split(";")[:-1]:
            kind, names = re.fullmatch(r"\s*(?:const )?(\w+) (.*)", line.strip(), flags=re.DOTALL).groups()
            fields += [("*" if "*" in one else kind, one.strip(" *\n")) for one in names.split(",")]
        found[name] = fields
    return found


C_TYPES = {
    "*": ctypes.c_void_p,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
    **_library.STRUCTURES,
}


def test_structures_repeat_the_header_field_for_field():
    structs = header_structs()
    assert structs.keys() == _library.STRUCTURES.keys()
    for name, fields in structs.items():
        assert list(_library.STRUCTURES[name]._fields_) == [(field, C_TYPES[kind]) for kind, field in fields], name


def test_functions_are_those_of_the_header():
    declared = re.findall(r"REGARD_EXPORT [^;(]*?\b(regard_\w+)\(", HEADER.read_text())
    assert sorted(declared) == sorted(_library.FUNCTIONS)


@pytest.mark.parametrize("name", ["ABI_VERSION", "OK", "NOT_FINITE", "NO_MEMORY", "BAD_ARGUMENT", "F32", "F64", "BF16"])
def test_numbers_are_those_of_the_header(name: str):
    defined = re.search(rf"#define REGARD_{name} \(?(-?\d+)\)?", HEADER.read_text())
    assert int(defined[1]) == getattr(_library, name)


# ------------------------------------------------------------------------------------------- when it does not fit


def test_another_abi_version_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_library, "ABI_VERSION", 99)
    with pytest.raises(NativeError, match=r"expected ABI version 99, got version 1\. Install regard again"):
        _library.load(_library.find())


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Longer(_structures.Mask):
        _fields_ = (("more", ctypes.c_int64),)

    monkeypatch.setitem(_library.STRUCTURES, "regard_mask", Longer)
    with pytest.raises(NativeError, match=r"expected regard_mask of 112 bytes, got 104 bytes"):
        _library.load(_library.find())


def test_a_library_without_a_function_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(_library.FUNCTIONS, "regard_of_tomorrow", (ctypes.c_int, []))
    with pytest.raises(NativeError, match=r"expected the function regard_of_tomorrow"):
        _library.load(_library.find())


def test_a_broken_file_is_refused(tmp_path: Path):
    (tmp_path / "libregard.so").write_bytes(b"no library")
    with pytest.raises(NativeError, match="expected a library that loads"):
        _library.load(tmp_path / "libregard.so")


def test_an_absent_library_says_what_the_build_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("regard.__path__", [str(tmp_path)])
    monkeypatch.setattr(_library, "_loaded", None)
    monkeypatch.setattr(_library, "_absent", None)
    assert "no word of the build" in _library.why_absent()
    (tmp_path / "_native").mkdir()
    (tmp_path / "_native" / "absent.txt").write_text("the moon was full\n")
    monkeypatch.setattr(_library, "_absent", None)
    with pytest.raises(NativeError, match=r"absent: expected libregard\.so in .*, got the moon was full\. Install a C"):
        _library.loaded_core()
    assert "the moon was full" in _library.why_absent()


# ------------------------------------------------------------------------------------------------ instruction sets


def test_each_instruction_set_can_be_chosen():
    best = _library.isa()
    try:
        for name in _library.available_isas():
            _library.set_isa(name)
            assert _library.isa() == name
            asked = "from regard.backends import _library; print(_library.isa())"
            assert run(asked, REGARD_ISA=name) == name
        _library.set_isa(None)
        assert _library.isa() == _library.available_isas()[0]
    finally:
        _library.set_isa(best)


def test_an_unknown_instruction_set_is_an_error():
    with pytest.raises(NativeError, match=r"set_isa: expected an instruction set of this machine .*, got 'sse9'"):
        _library.set_isa("sse9")
    told = run("from regard.backends import _library; print(_library.why_absent())", REGARD_ISA="sse9")
    assert "REGARD_ISA in the environment: expected an instruction set" in told
    assert "got 'sse9'" in told


# --------------------------------------------------------------------------------------------------- beside torch


def test_loading_leaves_subnormal_numbers_alone():
    code = "from regard.backends import _library; _library.loaded_core(); x = 1e-310; print(x / 2)"
    assert float(run(code)) == 5e-311


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps")
def test_torchs_openmp_is_found_and_stays_the_only_one():
    code = """
import ctypes
import regard, torch
from regard.backends import _library, _structures
_library.loaded_core()
ctypes.CDLL(None).GOMP_parallel  # raises AttributeError when nobody shows it
torch.mm(torch.ones(300, 300), torch.ones(300, 300))
files = {line.split()[-1] for line in open("/proc/self/maps")}
print(sum("omp" in file.rsplit("/", 1)[-1] for file in files), sum("libstdc++" in file for file in files))
"""
    assert run(code) == "1 1"
