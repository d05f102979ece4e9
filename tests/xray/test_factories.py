"""`package.module:factory`: the one way to run code that a user names; what goes wrong in it gives one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from regard._errors import DataError
from regard.xray.loading import load

MODULE = """
import torch
model = torch.nn.Linear(2, 2)
class Slow: pass
def bare(): return model
def ready(): return model, {"input": torch.ones(1, 2)}
def slow(): return model, Slow()
def empty(): return model, {}
def number(): return 7
def three(): return model, None, None
def fails(): raise KeyError("a\\nb")
def leaves(): raise SystemExit(3)
value = 5
"""

FACTORIES = {
    "number": "got int",
    "three": "got (Linear, NoneType, NoneType)",
    "empty": "a dict of argument names to tensors",
    "slow": "no fast backend",
    "fails": "the factory failed: KeyError",
    "leaves": "the factory failed: SystemExit: 3",
    "value": "has no function 'value'",
    "absent": "it has: Slow, bare, empty",
}


def refusal(model: str) -> str:
    with pytest.raises(DataError) as caught:
        load(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"made_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # found where the user stands
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_faulty_factory_gives_one_line(module: str, factory: str) -> None:
    path = list(sys.path)
    assert FACTORIES[factory] in refusal(f"{module}:{factory}")
    assert sys.path == path


def test_good_factories(module: str) -> None:
    bare, ready = load(f"{module}:bare"), load(f"{module}:ready", name="mine")
    assert (bare.kind, bare.inputs, bare.tokenizer, bare.model.training) == ("custom", None, None, False)
    assert (ready.name, list(ready.inputs or ())) == ("mine", ["input"])


def test_modules_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "breaks_at_import.py").write_text("import nothing_of_this_name")
    assert "no such module" in refusal("absent_package.module:f")
    assert "cannot be imported: ModuleNotFoundError" in refusal("breaks_at_import:f")
