"""The border to transformers: a checked folder becomes a model and a tokenizer, without a word on stderr.

transformers is largely untyped, so its objects are `Any` in this file, and only here and in `encode.py`.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import nn

from regard._errors import CheckpointError, DataError, DependencyError
from regard.xray.folder import ModelFolder

Kind = Literal["encoder", "decoder", "encoder_decoder", "custom"]

FLOATS = {"F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm"]
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "encoder_layers")
ROOM_FOR_HEADS = 50_000_000


def import_transformers() -> ModuleType:
    """The transformers package, or the one line that says how to install it."""
    try:
        return import_module("transformers")
    except ImportError as problem:
        raise DependencyError("transformers", "transformers") from problem


def one_line(problem: BaseException, limit: int = 200) -> str:
    """The message of somebody else's error, fit for one line."""
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text if len(text) <= limit else text[:limit] + '...'}"


def named(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


@contextmanager
def quiet(transformers: ModuleType) -> Generator[None]:
    """No progress bars, log lines or Python warnings from transformers while this lasts; all restored after."""
    logs, hub = transformers.utils.logging, logging.getLogger("huggingface_hub")
    level, bars, hub_level = logs.get_verbosity(), logs.is_progress_bar_enabled(), hub.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logs.set_verbosity(logging.CRITICAL)
        logs.disable_progress_bar()
        hub.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logs.set_verbosity(level)
            hub.setLevel(hub_level)
            if bars:
                logs.enable_progress_bar()


def download(name: str) -> Path:
    """A hub model's JSON, text and safetensors files, no others, in the hub's own cache."""
    transformers = import_transformers()
    hub = import_module("huggingface_hub")
    try:
        with quiet(transformers):
            return Path(hub.snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as problem:
        raise DataError(
            f"{name!r}: no such folder here, and the hub gave no model of that name ({one_line(problem, 120)}). "
            "Check the name and the network, or give a folder."
        ) from problem


def load_pretrained(folder: ModelFolder) -> tuple[nn.Module, Any, list[str]]:
    """The model in float32 and eval mode, its tokenizer, and notes on what was not as expected."""
    transformers = import_transformers()
    with quiet(transformers):
        config = _configuration(transformers, folder)
        model_class, notes = _model_class(transformers, config, folder)
        check_shapes(model_class, config, folder)
        model, report = _weights(model_class, folder)
        notes += _judge(model, report, folder)
        return model.eval(), _tokenizer(transformers, folder.path), notes + _dtype_notes(folder)


def check_fast(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that cannot say where in the text its tokens lie."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{name!r}: the tokenizer {type(tokenizer).__name__} has no fast backend, so it cannot say which "
            "characters a token covers. Convert it to a tokenizer.json (PreTrainedTokenizerFast)."
        )


def _configuration(transformers: ModuleType, folder: ModelFolder) -> Any:
    kind, known = folder.config.get("model_type"), transformers.CONFIG_MAPPING
    where = str(folder.path / "config.json")
    if not isinstance(kind, str) or kind not in known:
        if folder.config.get("auto_map"):
            raise DataError(
                f"{where!r}: this model brings its own code (auto_map), and regard never runs code from a model "
                "folder. Load it yourself and give regard package.module:factory."
            )
        raise DataError(f"{where!r}: model_type {kind!r} is unknown to transformers {transformers.__version__}.")
    layers = max(n for n in (0, *map(folder.config.get, LAYER_COUNTS)) if isinstance(n, int))
    if layers > len(folder.tensors):  # checked before anything is built: that many could take forever
        raise CheckpointError(f"{where!r}: asks for {layers} layers, the weights hold {len(folder.tensors)} tensors.")
    try:
        return transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as problem:
        raise DataError(f"{where!r}: not a configuration of {kind!r}: {one_line(problem)}") from problem


def _model_class(transformers: ModuleType, config: Any, folder: ModelFolder) -> tuple[Any, list[str]]:
    """The class config.json names, so that heads exist; else the bare model of that type, with a note."""
    notes = ["the folder's own code (auto_map) was not run"] if folder.config.get("auto_map") else []
    name = _named_class(folder)
    named_class: Any = getattr(transformers, name, None) if name else None
    of_transformers = isinstance(named_class, type) and issubclass(named_class, transformers.PreTrainedModel)
    if of_transformers and getattr(named_class, "config_class", None) is type(config):
        return named_class, notes
    try:
        bare: Any = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        raise DataError(f"{str(folder.path)!r}: transformers has no model for {config.model_type!r} to take.") from None
    if isinstance(bare, tuple):
        bare = cast("tuple[Any, ...]", bare)[0]
    if name:
        notes.append(f"config.json names the class {name}, which does not serve here; {bare.__name__} was taken")
    return bare, notes


def _named_class(folder: ModelFolder) -> str | None:
    asked = folder.config.get("architectures")
    if not isinstance(asked, list) or not asked:
        return None
    return str(cast("list[object]", asked)[0])


def check_shapes(model_class: Any, config: Any, folder: ModelFolder) -> None:
    """Compare the file's shapes with the model's before memory is taken for either."""
    try:
        with torch.device("meta"):
            blank = model_class(copy.deepcopy(config))
    except Exception as problem:
        raise DataError(
            f"{str(folder.path / 'config.json')!r}: {model_class.__name__} cannot be built from it: {one_line(problem)}"
        ) from problem
    if getattr(blank, "main_input_name", "input_ids") != "input_ids":
        raise DataError(f"{str(folder.path)!r}: {model_class.__name__} takes {blank.main_input_name}, not text.")
    shapes = {name: tuple(tensor.shape) for name, tensor in blank.state_dict().items()}
    prefix = f"{blank.base_model_prefix}."
    for name, entry in folder.tensors.items():
        expected = next(
            (shapes[n] for n in (name, prefix + name, name.removeprefix(prefix)) if n in shapes), entry.shape
        )
        if expected != entry.shape:
            raise CheckpointError(
                f"{str(folder.path)!r}: the weights do not fit config.json: {name!r}: expected shape {list(expected)}, "
                f"found {list(entry.shape)}."
            )
    _check_size(blank, folder)


def _check_size(blank: nn.Module, folder: ModelFolder) -> None:
    asked = sum(parameter.numel() for parameter in blank.parameters())
    held = sum(torch.Size(entry.shape).numel() for entry in folder.tensors.values())
    if asked > 2 * held + ROOM_FOR_HEADS:
        raise CheckpointError(
            f"{str(folder.path)!r}: config.json describes {asked} parameters, the weights hold {held} numbers."
        )


def _weights(model_class: Any, folder: ModelFolder) -> tuple[Any, dict[str, Any]]:
    try:
        return model_class.from_pretrained(
            folder.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as problem:
        raise CheckpointError(
            f"{str(folder.path)!r}: transformers cannot load {model_class.__name__}: {one_line(problem)}"
        ) from problem


def _judge(model: Any, report: dict[str, Any], folder: ModelFolder) -> list[str]:
    """Missing tensors would be random numbers: an error where attention depends on them, else a note."""
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    vital = {name for name in missing if not _after_attention(model, name)}
    name = type(model).__name__
    extra = f"; {len(unexpected)} it does not know ({named(unexpected)})" if unexpected else ""
    if vital:
        raise CheckpointError(
            f"{str(folder.path)!r}: the weights do not fit {name}: {len(vital)} tensors are missing and would be "
            f"random ({named(vital)}){extra}."
        )
    notes = [f"random, for the file lacks them: {named(missing)}; no attention depends on them"] if missing else []
    return [*notes, f"in the file but not used by {name}: {named(unexpected)}"] if unexpected else notes


def _after_attention(model: Any, name: str) -> bool:
    """Whether a tensor belongs to a head or pooler, whose output no attention layer reads."""
    if getattr(model.config, "is_encoder_decoder", False):
        return False  # the head makes the answer that the decoder is shown
    prefix: str = model.base_model_prefix
    outside = bool(prefix) and hasattr(model, prefix) and not name.startswith(f"{prefix}.")
    return outside or "pooler" in name.split(".")


def _tokenizer(transformers: ModuleType, path: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as problem:
        raise DataError(f"{str(path)!r}: the tokenizer files cannot be used: {one_line(problem)}") from problem
    check_fast(tokenizer, str(path))
    return tokenizer


def _dtype_notes(folder: ModelFolder) -> list[str]:
    stored = sorted({entry.dtype for entry in folder.tensors.values()} & FLOATS)
    return [f"weights stored as {', '.join(stored)} are computed in float32"] if stored else []
