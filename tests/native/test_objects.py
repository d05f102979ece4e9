"""What the compiler made: each compilation of the kernels keeps to its instruction set and shares nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from regard.backends import _library

ROOT = Path(__file__).parents[2]

if _library.why_absent() and shutil.which("c++") is None:
    pytest.skip(_library.why_absent(), allow_module_level=True)
if shutil.which("objdump") is None:
    pytest.skip("objdump is not installed", allow_module_level=True)

ISAS = _library.available_isas()
X86 = "baseline" in ISAS
"""Register names and instructions below are those of x86-64."""

ABOVE = {
    "baseline": r"%[yz]mm|\bv[a-z0-9]+\b",  # what begins with v needs AVX
    "avx2": r"%zmm|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b|\{%k|\{1to",
    "avx512": r"vdpbf16|ps2bf16",  # by the whole name: an address may read bf16 too
}
"""Signs of an instruction above the level, for each level that has one above it."""


def said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


SOURCES = ("kernels", "layer_kernels")


def object_of(name: str, source: str = "kernels") -> Path:
    """The newest object file of one compilation; `make test` leaves it where it was built."""
    found = list(ROOT.glob(f"build/*/CMakeFiles/kernels_{name}.dir/csrc/{source}.cpp.o"))
    assert found, "there is no object file: `pip install -e .` makes it"
    return max(found, key=lambda path: path.stat().st_mtime)


def instructions(path: Path) -> str:
    """The instructions alone: no addresses, no names of functions."""
    lines = said("objdump", "-d", "--no-show-raw-insn", path).splitlines()
    return "\n".join(re.sub(r"<.*?>", "", line.split("\t", 1)[1]) for line in lines if "\t" in line)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ISAS)
def test_no_symbol_is_weak(name: str, source: str):
    # The linker keeps one copy of a weak symbol, and perhaps the one that only newer machines can run.
    weak = [line for line in said("nm", object_of(name, source)).splitlines() if re.search(r" [VWu] ", line)]
    assert weak == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ISAS)
def test_an_object_shows_its_table_and_nothing_else(name: str, source: str):
    lines = said("nm", "--extern-only", "--defined-only", object_of(name, source)).splitlines()
    assert [line.split()[-1] for line in lines] == [f"regard_{source}_{name}"]


@pytest.mark.skipif(not X86, reason="the instructions are those of x86-64")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ABOVE)
def test_no_instruction_is_above_the_level(name: str, source: str):
    found = re.search(ABOVE[name], instructions(object_of(name, source)))
    assert found is None, found


@pytest.mark.skipif(not X86, reason="the instructions are those of x86-64")
@pytest.mark.parametrize(("name", "above"), [("baseline", "avx2"), ("avx2", "avx512"), ("avx512", "avx512_bf16")])
def test_what_is_looked_for_is_found_one_level_up(name: str, above: str):
    if above in ISAS:
        assert re.search(ABOVE[name], instructions(object_of(above)))


def test_every_exported_symbol_is_ours():
    lines = said("nm", "--dynamic", "--defined-only", _library.find()).splitlines()
    assert sorted(line.split()[-1] for line in lines) == sorted(_library.FUNCTIONS)


def test_it_needs_nothing_but_the_c_library():
    needed = re.findall(r"NEEDED\s+(\S+)", said("objdump", "-p", _library.find()))
    assert all(re.match(r"lib(c|m|dl|pthread)\.so|ld-linux", name) for name in needed), needed
