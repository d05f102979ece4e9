"""Small packages made on the spot, and clients that hand them out instead of asking a registry."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from regard.training.clients import Registry
from regard.training.sources import Package, sha256_of

FILES = {"sample/data/pairs.json": b'["one", "two"]', "sample/__init__.py": b"raise SystemExit('imported')\n"}


def wheel(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    path = folder / "sample-1.0-py3-none-any.whl"
    about = {
        "sample-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n",
        "sample-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "sample-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, **about}.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)
    return path


def npm_tarball(folder: Path, name: str = "sample-1.0.0.tgz") -> Path:
    path = folder / name
    with tarfile.open(path, "w:gz") as archive:
        for file, content in {"package/package.json": b"{}", "package/data.json": b"[1]"}.items():
            info = tarfile.TarInfo(file)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def debian_package(folder: Path, version: str = "1:1.0-1") -> Path:
    """A .deb with a file, a link to another package's file, and a script that must never run."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/sample").mkdir(parents=True)
    (tree / "usr/share/sample/text.txt").write_text("hello")
    (tree / "usr/share/sample/link.txt").symlink_to("/etc/passwd")
    control = f"Package: sample\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@b>\nDescription: sample\n"
    (tree / "DEBIAN/control").write_text(control)
    script = tree / "DEBIAN/postinst"
    script.write_text(f"#!/bin/sh\ntouch {folder}/ran\n")
    script.chmod(0o755)
    path = folder / f"sample_{version.replace(':', '%3a')}_all.deb"
    builder = shutil.which("dpkg-deb") or "dpkg-deb"
    subprocess.run([builder, "--build", "--root-owner-group", str(tree), str(path)], check=True, capture_output=True)
    return path


def package(archive: Path, registry: Registry, version: str, **changes: object) -> Package:
    described = {
        "registry": registry,
        "name": "sample",
        "version": version,
        "file": archive.name,
        "sha256": sha256_of(archive),
        "licence": "MIT",
        "megabytes": 1.5,
        **changes,
    }
    return Package(**described)  # pyright: ignore[reportArgumentType]


def client(folder: Path, name: str, body: str) -> Path:
    """A program `name` in `folder`, of a few lines of shell."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def first_on_path(folder: Path) -> str:
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
