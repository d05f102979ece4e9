"""A model folder as Hugging Face writes it, judged before any of it is handed to transformers.

Only JSON and safetensors are read. Pickled weights run code when they are opened, `auto_map` and
attention kernels named in config.json fetch and run code: all of these are refused or left unused here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from regard._errors import CheckpointError, DataError
from regard._weights_check import HEADER_LIMIT, TensorEntry, check_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
)


@dataclass(frozen=True)
class ModelFolder:
    """What a sound folder holds: its configuration, and its tensors by name, over all shards."""

    path: Path
    config: dict[str, object]
    tensors: dict[str, TensorEntry]


def inspect_folder(path: Path) -> ModelFolder:
    """Check everything that can be checked without a model; one-line errors."""
    config = _config(path)
    tensors: dict[str, TensorEntry] = {}
    for file in _weight_files(path):
        found = check_safetensors(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise CheckpointError(f"{str(file)!r}: tensor {twice[0]!r} is in another file of the folder too.")
        tensors |= found
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(
            f"{str(path)!r}: no tokenizer: expected tokenizer.json (or one of {', '.join(TOKENIZER_FILES[1:])}). "
            "Save it there with tokenizer.save_pretrained(folder)."
        )
    return ModelFolder(path, config, tensors)


def _config(path: Path) -> dict[str, object]:
    if not (path / "config.json").is_file():
        raise DataError(
            f"{str(path)!r}: no config.json: expected a model folder as model.save_pretrained(folder) writes it."
        )
    config = _json_object(path / "config.json")
    kernel = next(_kernels(config), None)
    if kernel is not None:
        raise DataError(
            f"{str(path / 'config.json')!r}: asks for the attention kernel {kernel!r}, code from elsewhere that regard "
            "does not fetch. Remove that entry."
        )
    if config.get("quantization_config"):
        raise DataError(
            f"{str(path / 'config.json')!r}: quantised weights (quantization_config) are not read. "
            "Take the model in float32, float16 or bfloat16."
        )
    return config


def _kernels(value: object) -> Iterator[str]:
    """Attention implementations that are hub names (`org/name`), at any depth of the configuration."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            if key.endswith(("attn_implementation", "experts_implementation")):
                yield from (name for name in _strings(inner) if "/" in name)
            yield from _kernels(inner)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in cast("dict[str, object]", value).values():
            yield from _strings(inner)


def _json_object(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > HEADER_LIMIT:
            raise DataError(f"{str(path)!r}: expected at most {HEADER_LIMIT} bytes, got {path.stat().st_size}.")
        parsed: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise DataError(f"{str(path)!r}: cannot be read: {problem.strerror}.") from problem
    except RecursionError as problem:
        raise DataError(f"{str(path)!r}: not usable JSON: nesting without end.") from problem
    except ValueError as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"{str(path)!r}: not valid JSON: {' '.join(str(problem).split())[:160]}.") from problem
    if not isinstance(parsed, dict):
        raise DataError(f"{str(path)!r}: expected a JSON object, got {type(parsed).__name__}.")
    return cast("dict[str, object]", parsed)


def _weight_files(path: Path) -> list[Path]:
    if (path / SINGLE).is_file():  # the order in which transformers looks
        return [path / SINGLE]
    if (path / INDEX).is_file():
        return _shards(path)
    other = sorted(file.name for file in path.glob("*.safetensors"))
    if other:
        raise CheckpointError(f"{str(path)!r}: expected {SINGLE}, found only {other[0]!r}. Rename it.")
    pickled = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{str(path)!r}: the weights are pickled ({pickled[0]}), and opening a pickle runs the code in it. "
            "Convert them to safetensors: model.save_pretrained(folder) on a machine that trusts them."
        )
    raise CheckpointError(f"{str(path)!r}: no weights: expected {SINGLE}.")


def _shards(path: Path) -> list[Path]:
    index = path / INDEX
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{str(index)!r}: corrupt index: expected a weight_map of tensor names to files.")
    names = {str(name) for name in cast("dict[str, object]", weight_map).values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{str(index)!r}: names the file {name!r}, which is not a .safetensors file beside it."
            )
        if not (path / name).is_file():
            raise CheckpointError(f"{str(path)!r}: the index names {name!r}, and that file is missing.")
    return [path / name for name in sorted(names)]
