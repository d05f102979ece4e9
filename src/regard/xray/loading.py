"""From what the user names to a model that can be looked at.

`load` takes a folder (nothing is fetched), a hub name `org/name`, or `package.module:factory`. The first
two never run code that comes with the model; the third runs the function that the user named. Everything
that is wrong gives one line, as `DataError` or `CheckpointError`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from regard._errors import DataError
from regard.trust.model_leaks.subject import kind_of
from regard.xray.folder import inspect_folder
from regard.xray.pretrained import Kind, check_fast, download, import_transformers, load_pretrained, one_line

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, with what is needed to feed it.

    `tokenizer` is a fast transformers tokenizer, or None; `inputs` are the ready inputs a factory gave, or
    None. `notes` are facts the reader of a report must know (unused tensors, converted dtypes).
    """

    name: str
    model: nn.Module
    tokenizer: object | None
    kind: Kind
    inputs: Mapping[str, Tensor] | None = None
    notes: tuple[str, ...] = ()


def load(model: str, *, name: str | None = None) -> LoadedModel:
    """Load what `model` names; `name` is what the report calls it (default: `model` itself)."""
    path = _existing(model)
    if path is not None:
        return _load_folder(path, name or model)
    if FACTORY.fullmatch(model):
        return _load_factory(model, name or model)
    if HUB_NAME.fullmatch(model):
        return _load_folder(download(model), name or model)
    raise DataError(
        f"{model[:200]!r}: no such folder. Expected a model folder, a hub name such as org/name, "
        "or package.module:factory."
    )


def _existing(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long for the file system, a NUL in it, ~ of nobody
        return None


def _load_folder(path: Path, name: str) -> LoadedModel:
    if not path.is_dir():
        raise DataError(f"{str(path)!r}: expected a model folder, got a file. Give the folder that holds config.json.")
    transformers = import_transformers()
    model, tokenizer, notes = load_pretrained(inspect_folder(path))
    return LoadedModel(name, model, tokenizer, kind_of(transformers, model), notes=tuple(notes))


def _load_factory(reference: str, name: str) -> LoadedModel:
    module_name, _, attribute = reference.partition(":")
    with _current_folder_importable():
        factory = _find(module_name, attribute)
        try:
            made = factory() if callable(factory) else factory
        except (Exception, SystemExit) as problem:
            raise DataError(f"{reference!r}: the factory failed: {one_line(problem)}") from problem
    return _from_made(made, reference, name)


@contextmanager
def _current_folder_importable() -> Generator[None]:
    """`regard xray mine:make` finds mine.py where the user stands, as `python -m` would."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        if "" in sys.path:
            sys.path.remove("")


def _find(module_name: str, attribute: str) -> object:
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name and (module_name == problem.name or module_name.startswith(f"{problem.name}.")):
            raise DataError(f"{module_name!r}: no such module. Start where it can be imported.") from problem
        raise DataError(f"{module_name!r}: cannot be imported: {one_line(problem)}") from problem
    except (Exception, SystemExit) as problem:
        raise DataError(f"{module_name!r}: cannot be imported: {one_line(problem)}") from problem
    found = getattr(module, attribute, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(
            f"{module_name!r}: has no function {attribute!r}; it has: {', '.join(sorted(public)[:8]) or 'none'}."
        )
    return found


def _from_made(made: object, reference: str, name: str) -> LoadedModel:
    model, other = cast("tuple[object, object]", made) if _is_pair(made) else (made, None)
    if not isinstance(model, nn.Module):
        raise DataError(
            f"{reference!r}: expected a torch module, (module, tokenizer) or (module, inputs), got {_described(made)}."
        )
    model = model.eval()
    if isinstance(other, Mapping):
        inputs = _tensors(cast("Mapping[object, object]", other), reference)
        return LoadedModel(name, model, None, "custom", inputs=inputs)
    if other is not None:
        check_fast(other, reference)
    return LoadedModel(name, model, other, _made_kind(model) if other is not None else "custom")


def _is_pair(made: object) -> bool:
    return isinstance(made, tuple) and len(cast("tuple[object, ...]", made)) == 2


def _described(made: object) -> str:
    if not isinstance(made, tuple):
        return type(made).__name__
    return f"({', '.join(type(part).__name__ for part in cast('tuple[object, ...]', made))})"


def _tensors(inputs: Mapping[object, object], reference: str) -> dict[str, Tensor]:
    found = {key: value for key, value in inputs.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not found or len(found) != len(inputs):
        raise DataError(f"{reference!r}: expected inputs as a dict of argument names to tensors.")
    return found


def _made_kind(model: nn.Module) -> Kind:
    """A transformers model is known by its kind also when a factory made it; anything else is custom."""
    transformers = sys.modules.get("transformers")  # not imported: then it is no transformers model
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        return kind_of(transformers, model)
    return "custom"
