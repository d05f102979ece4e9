"""What is installed: one wheel with the library in it, or without a compiler the reason why there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from regard.backends import _library

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("wheel")  # both build in one folder


def build_wheel(folder: Path, *options: str, **environment: str) -> Path:
    """The wheel of this checkout. pip brings the build system, as it does for a user."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    command += ["-c", str(ROOT / "constraints.txt"), "-w", str(folder), *options, str(ROOT)]
    constrained = {name: str(ROOT / "constraints.txt") for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    done = subprocess.run(
        command, env={**os.environ, **constrained, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")
def test_one_wheel_serves_every_python(tmp_path: Path):
    wheel = build_wheel(tmp_path)
    assert wheel.name.startswith("regard-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "regard/_native/libregard.so" in names
    assert "regard/_native/absent.txt" not in names
    assert "regard/__init__.py" in names
    assert not [name for name in names if not name.startswith("regard")]
    assert not [name for name in names if name.endswith((".cpp", ".h", ".inl", ".o", ".map"))]


def test_without_a_compiler_it_installs_and_says_so(tmp_path: Path):
    wheel = build_wheel(tmp_path, f"--config-settings=build-dir={tmp_path / 'build'}", CXX="false")
    with zipfile.ZipFile(wheel) as archive:
        assert "regard/_native/libregard.so" not in archive.namelist()
        archive.extractall(tmp_path / "installed")
    code = f"""
import sys
# Not the editable installation of this checkout, which puts itself first.
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, {str(tmp_path / "installed")!r})
import torch, regard
from regard.backends import _library
assert regard.__file__.startswith(sys.path[0]), regard.__file__
print(regard.attention(*torch.ones(3, 1, 1, 2, 2)).sum().item(), _library.why_absent())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("4.0 the native core is absent: expected libregard.so in ")
    assert "got no working C++ compiler was found when the package was installed. Install a C++" in told.stdout


def test_a_checkout_has_one_library():
    if _library.why_absent() is None:
        folder = _library.find().parent
        assert sorted(path.name for path in folder.iterdir()) == ["libregard.so"]
