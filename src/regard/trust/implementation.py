"""The attention implementation that a transformers model is set to, and another one for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn


@contextmanager
def implemented(model: nn.Module, name: str) -> Generator[None]:
    """A transformers model set to an implementation; afterwards it and the models within it have their own again.

    Raises:
        ValueError: the model does not take it.
        ImportError: a package that it needs is absent.
    """
    changing, before = cast("Any", model), _all_current(model)
    if set(before.values()) == {name}:
        yield
        return
    changing.set_attn_implementation(name)
    try:
        yield
    finally:
        changing.set_attn_implementation(before)


def implementation(model: nn.Module) -> str:
    """The one that a transformers model is set to."""
    config: Any = cast("Any", model).config
    return str(config._attn_implementation or "eager")  # noqa: SLF001 - the only place that says it


def _all_current(model: nn.Module) -> dict[str, str]:
    """Of the model, under "", and of each model within it: as `set_attn_implementation` takes it."""
    config: Any = cast("Any", model).config
    inner: list[str] = [part for part in getattr(config, "sub_configs", {}) if getattr(config, part, None) is not None]
    own = {part: getattr(config, part)._attn_implementation for part in inner}  # noqa: SLF001 - as above
    return {"": implementation(model), **{part: str(name or "eager") for part, name in own.items()}}
