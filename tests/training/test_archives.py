"""Archives that mean harm, lie or are broken."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from regard._errors import DataError
from regard.training import archives
from regard.training.archives import unpack
from tests.training.package_cases import debian_package

ESCAPES = ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil", "..", "\\\\host\\share\\evil"]


def zip_of(path: Path, *names: str, content: bytes = b"text") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tar_of(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info in entries:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ESCAPES)
def test_F79_a_name_that_leaves_the_folder_is_refused_by_zip(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="may leave the folder"):
        unpack(zip_of(tmp_path / "a.whl", name), tmp_path / "into")
    assert everything_in(tmp_path) == ["a.whl"]


@pytest.mark.parametrize("name", ESCAPES)
def test_F79_a_name_that_leaves_the_folder_is_refused_by_tar(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="may leave the folder"):
        unpack(tar_of(tmp_path / "a.tgz", entry(name, size=3)), tmp_path / "into")
    assert everything_in(tmp_path) == ["a.tgz"]


def test_F79_a_hostile_name_is_refused_even_where_it_is_not_wanted(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.whl", "../evil", "good.txt")
    with pytest.raises(DataError, match="may leave the folder"):
        unpack(archive, tmp_path / "into", ["good.txt"])


@pytest.mark.parametrize(
    ("kind", "named"),
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")],
)
def test_F79_links_and_devices_are_refused_by_tar(tmp_path: Path, kind: bytes, named: str) -> None:
    with pytest.raises(DataError, match=f"holds a {named}, 'package/x'"):
        unpack(tar_of(tmp_path / "a.tgz", entry("package/x", kind, "/etc")), tmp_path / "into")


def test_F79_a_link_is_refused_by_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="holds a link, 'link'"):
        unpack(path, tmp_path / "into")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")
def test_a_link_of_a_debian_package_is_left_out(tmp_path: Path) -> None:
    assert unpack(debian_package(tmp_path), tmp_path / "into") == [Path("usr/share/sample/text.txt")]


def test_F79_more_bytes_than_any_package_has_are_not_written(tmp_path: Path) -> None:
    bomb = zip_of(tmp_path / "a.whl", "zeros", content=bytes(2_000_000))
    assert bomb.stat().st_size < 5_000
    with pytest.raises(DataError, match="expected at most 1000000 bytes"):
        unpack(bomb, tmp_path / "into", most_bytes=1_000_000)
    assert not (tmp_path / "into").exists()


def test_F79_more_files_than_any_package_has_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    with pytest.raises(DataError, match="and 3 files, got more"):
        unpack(zip_of(tmp_path / "a.whl", *"abcd"), tmp_path / "into", ["a"])


def test_F79_an_archive_that_holds_more_than_it_says_is_not_believed(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.whl", "zeros", content=bytes(100_000))
    content = path.read_bytes()
    told, lie = (100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert content.count(told) == 2  # before the file, and in the directory at the end
    path.write_bytes(content.replace(told, lie))
    with pytest.raises(DataError):
        unpack(path, tmp_path / "into")
    found = tmp_path / "into" / "zeros"
    assert not found.exists() or found.stat().st_size <= 10


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 'x' twice"):
        unpack(tar_of(tmp_path / "a.tgz", entry("p/x", size=1), entry("p/x", size=2)), tmp_path / "into")


@pytest.mark.parametrize("suffix", ["whl", "tgz", "deb"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 40])
def test_no_archive_at_all(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.{suffix}|dpkg-deb"):
        unpack(path, tmp_path / "into")


@pytest.mark.parametrize("suffix", ["whl", "tgz"])
def test_F80_an_archive_cut_short_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    whole = (
        zip_of(path, "a", "b", content=bytes(range(256)) * 40)
        if suffix == "whl"
        else tar_of(path, entry("a", size=9000), entry("b", size=9000))
    ).read_bytes()
    for place in range(0, len(whole) - 30, max(len(whole) // 16, 1)):
        path.write_bytes(whole[:place])
        with pytest.raises(DataError):
            unpack(path, tmp_path / f"into{place}", ["b"])


def test_an_archive_without_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of the expected files: \*.json"):
        unpack(zip_of(tmp_path / "a.whl", "a.txt"), tmp_path / "into", ["*.json"])
