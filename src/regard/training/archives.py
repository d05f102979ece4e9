"""Unpacks a package as plain files, and nothing that a hostile one could make of it.

A name that leaves the folder, a second file of one name, a device, more bytes or files than any package of ours has:
refused. Links are refused, too, but for those of Debian's packages, which are left out: there they are usual, and none
of them is data. Nothing is executed.
"""

from __future__ import annotations

import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from regard._errors import DataError

MOST_BYTES = 2 << 30
MOST_FILES = 100_000


@dataclass(frozen=True)
class Entry:
    """One thing inside an archive; `kind` is "file", "folder", "link" or "device"."""

    name: str
    size: int
    kind: str


def unpack(archive: Path, into: Path, members: Sequence[str] = ("*",), *, most_bytes: int = MOST_BYTES) -> list[Path]:
    """The files of a .whl, .tgz or .deb whose names fit one of the patterns, below `into`; their paths relative to it.

    In a pattern `*` stands for any text, slashes included. `most_bytes` limits what the whole archive may unpack to.

    Raises:
        DataError: the archive is damaged, hostile, or holds nothing that fits.
    """
    budget = _Budget(archive, most_bytes)
    unpacked: list[Path] = []
    try:
        for entry, content in _entries(archive):
            relative = _safe(archive, entry.name)
            if relative is None or entry.kind == "folder":
                continue
            if entry.kind == "device" or (entry.kind == "link" and archive.suffix != ".deb"):
                raise DataError(f"{archive.name}: holds a {entry.kind}, {entry.name!r}; a package of data has none")
            budget.count(entry)
            if entry.kind == "link" or not any(fnmatchcase(relative.as_posix(), pattern) for pattern in members):
                continue
            _write(archive, content, into / relative, entry.size)
            unpacked.append(relative)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise DataError(f"{archive.name}: cannot be unpacked: {error}") from error
    if not unpacked:
        raise DataError(f"{archive.name}: holds none of the expected files: {', '.join(members)}")
    return unpacked


class _Budget:
    """How much more an archive may hold."""

    def __init__(self, archive: Path, most_bytes: int) -> None:
        self._archive, self._most, self._bytes, self._files = archive.name, most_bytes, 0, 0

    def count(self, entry: Entry) -> None:
        self._bytes += entry.size
        self._files += 1
        if self._bytes > self._most or self._files > MOST_FILES:
            raise DataError(
                f"{self._archive}: expected at most {self._most} bytes and {MOST_FILES} files, got more; not unpacked"
            )


def _safe(archive: Path, name: str) -> Path | None:
    """The path below the folder, or None for the folder itself."""
    if "\\" in name or "\0" in name or ":" in name.split("/", maxsplit=1)[0] or name.startswith("/"):
        raise DataError(f"{archive.name}: holds the name {name!r}, which may leave the folder")
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise DataError(f"{archive.name}: holds the name {name!r}, which may leave the folder")
    return Path(*parts) if parts else None


def _write(archive: Path, content: IO[bytes] | None, path: Path, size: int) -> None:
    """Exactly `size` bytes: an archive that unpacks to more than it says is not believed."""
    if content is None:
        raise DataError(f"{archive.name}: {path.name} has no content")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except (FileExistsError, IsADirectoryError) as error:
        raise DataError(f"{archive.name}: holds {path.name!r} twice") from error
    with file:
        written = 0
        while chunk := content.read(1 << 20):
            written += len(chunk)
            if written > size:
                break
            file.write(chunk)
    if written != size:
        raise DataError(f"{archive.name}: {path.name} is not of the size {size} that the archive says")


def _entries(archive: Path) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    if archive.suffix in {".whl", ".zip"}:
        yield from _zip_entries(archive)
    elif archive.suffix == ".deb":
        with _debian_files(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            yield from _tar_entries(tar)
    else:
        with tarfile.open(archive, mode="r:gz") as tar:
            yield from _tar_entries(tar)


def _zip_entries(archive: Path) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if stat.S_ISLNK(mode):
                yield Entry(info.filename, info.file_size, "link"), None
            elif info.is_dir():
                yield Entry(info.filename, 0, "folder"), None
            else:
                with opened.open(info) as content:
                    yield Entry(info.filename, info.file_size, "file"), content


def _tar_entries(tar: tarfile.TarFile) -> Iterator[tuple[Entry, IO[bytes] | None]]:
    for info in tar:
        if info.isreg():
            yield Entry(info.name, info.size, "file"), tar.extractfile(info)
        elif info.isdir():
            yield Entry(info.name, 0, "folder"), None
        else:
            yield Entry(info.name, 0, "link" if info.issym() or info.islnk() else "device"), None


@contextmanager
def _debian_files(archive: Path) -> Generator[IO[bytes]]:
    """The tar inside a .deb, as `dpkg-deb` reads it out; no script of the package is looked at."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603
    except FileNotFoundError as error:
        raise DataError("Debian's packages are unpacked by dpkg-deb, which this machine has not") from error
    with reader:
        if reader.stdout is None:
            raise DataError(f"{archive.name}: dpkg-deb gave nothing")
        try:
            yield reader.stdout
            reader.stdout.read()  # what pads the tar, so that dpkg-deb ends by itself
            if reader.wait() != 0:
                raise DataError(f"{archive.name}: dpkg-deb cannot read it")
        finally:
            reader.kill()
