"""What `import regard` brings, what is public, and that every public name says what it is."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import time

import pytest

import regard
from regard import explain, masks, nn, positions

OPTIONAL = ("transformers", "matplotlib", "rich", "cyclopts", "safetensors", "onnx", "hypothesis")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process."""
    arguments = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)


def imported_by(code: str) -> set[str]:
    """Which of the optional packages the code brings in."""
    ended = fresh(f"{code}\nimport sys; print(*[name for name in {OPTIONAL!r} if name in sys.modules])")
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_import_brings_in_no_optional_package():
    everything = (
        "import regard, torch; regard.attention, regard.masks, regard.nn.Card, regard.positions;"
        "q = torch.zeros(1, 1, 2, 4);"
    )
    assert imported_by("import regard") == set()
    assert imported_by(everything + "regard.attention(q, q, q, mask=regard.masks.Causal())") == set()


@pytest.mark.parametrize("package", ["matplotlib", "hypothesis"])
def test_the_test_above_can_fail(package):
    pytest.importorskip(package)
    assert package in imported_by(f"import regard, {package}")


def test_works_when_every_optional_package_is_absent():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"  # None there: the import fails
        "import regard, torch\n"
        "q = torch.randn(1, 4, 6, 8)\n"
        "for backend in ('auto', 'native', 'eager', 'sdpa', 'flex'):\n"
        "    regard.attention(q, q, q, mask=regard.masks.Causal(), backend=backend)\n"
        "try:\n"
        "    regard.masks.Causal().draw()\n"
        "except regard.DependencyError as absent:\n"
        "    print(absent)\n"
    )
    ended = fresh(code)
    assert ended.returncode == 0, ended.stderr
    assert "pip install 'regard[plot]'" in ended.stdout


def test_import_time(record_property):
    fresh("import torch")
    times = {}
    for code in ("import torch", "import torch, regard; regard.attention"):
        start = time.perf_counter()
        assert fresh(code).returncode == 0
        times[code] = time.perf_counter() - start
    more = times["import torch, regard; regard.attention"] - times["import torch"]
    record_property("seconds_beyond_torch", f"{more:.2f}")
    assert more < 5, f"import regard takes {more:.1f} s more than import torch"


def public_names(module):
    return [name for name in module.__all__ if not name.startswith("_")]


def place_of(name: str) -> tuple[int, str]:
    """Names all in capitals, then those that begin with one, then the rest: as the linter sorts."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_public_names_are_sorted():
    for module in (regard, explain, masks, nn, positions):
        assert list(module.__all__) == sorted(set(module.__all__), key=place_of), module.__name__


def test_public_names_exist_and_dir_shows_them():
    for module in (regard, explain, masks, nn, positions):
        for name in module.__all__:
            assert getattr(module, name) is not None
        assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("module", [regard, explain, masks, nn, positions], ids=lambda module: module.__name__)
def test_public_names_are_documented(module):
    assert inspect.getdoc(module)
    bare = [name for name in public_names(module) if not own_documentation(getattr(module, name))]
    assert bare == []


def own_documentation(thing):
    """The docstring that was written for this very thing, and not one it inherits or a dataclass makes up."""
    written = vars(thing).get("__doc__") if inspect.isclass(thing) else inspect.getdoc(thing)
    made_up = inspect.isclass(thing) and (written or "").startswith(f"{thing.__name__}(")
    return written and not made_up


def test_public_methods_are_documented():
    bare = [
        f"{kind.__name__}.{name}"
        for module in (regard, explain, masks, nn, positions)
        for kind in (getattr(module, name) for name in public_names(module))
        if inspect.isclass(kind)
        for name, member in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(member) and not inspect.getdoc(getattr(kind, name))
    ]
    assert bare == []


def test_errors_form_the_tree_that_is_drawn():
    for kind in (regard.ShapeError, regard.MaskError, regard.ArgumentError, regard.UnsupportedError, regard.DataError):
        assert issubclass(kind, regard.RegardError)
        assert issubclass(kind, ValueError)
    assert issubclass(regard.NativeError, RuntimeError)
    assert issubclass(regard.DependencyError, ImportError)
    assert issubclass(regard.CheckpointError, regard.RegardError)


def test_a_refusal_names_every_backend_and_its_reason():
    refusal = regard.UnsupportedError({"sdpa": "it has no softcap", "flex": "it has no sink"})
    assert refusal.reasons == {"sdpa": "it has no softcap", "flex": "it has no sink"}
    assert str(refusal) == (
        "refused by sdpa: it has no softcap; flex: it has no sink. "
        "Take backend='auto', or ask regard.dispatch(...) what each backend can do."
    )
