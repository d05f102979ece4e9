"""Seeing attention in Hugging Face models, through their own two registries.

`AttentionInterface` maps a name ("sdpa", "flash_attention_2", ...) to the function that computes, and
`AttentionMaskInterface` the same name to the function that makes its mask. Both are wrapped under the
names they have, so a model keeps its setting, its kernel and its mask; what the wrapper adds is the layer
that called, keys before they are repeated for GQA, and the mask that the model asked for. "eager" is in no
registry: each file of a model has its own, handed to `get_interface` as the default, and wrapped there.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regard.observation import huggingface_call, mask_requests
from regard.observation.call import AttentionCall


class Listener(Protocol):
    """Whoever observes a model."""

    def knows(self, module: nn.Module) -> bool:
        """Is this layer part of the observed model?"""
        ...

    def record(self, call: AttentionCall, module: nn.Module | None = None) -> None:
        """Take a call."""
        ...

    def miss(self, name: str, problem: Exception) -> None:
        """Take note of a call that could not be understood."""
        ...

    def silent(self) -> contextlib.AbstractContextManager[None]:
        """While open, calls seen elsewhere are the inside of this one."""
        ...


_lock = threading.RLock()
_listeners: list[Listener] = []
_replaced: list[tuple[Any, str, Any, Any]] = []
"""(interface, name, what was there, what is there now)."""


@contextlib.contextmanager
def listening(listener: Listener) -> Generator[None]:
    """While open, `listener` is told of every attention call of Hugging Face models it knows."""
    if "transformers.modeling_utils" not in sys.modules:  # no such model can exist yet
        yield
        return
    with _lock:
        if not _listeners:
            _install()
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
            if not _listeners:
                _restore()


def _install() -> None:
    transformers: Any = sys.modules["transformers"]
    computing, masking = transformers.AttentionInterface, transformers.AttentionMaskInterface
    for name, original in list(computing._global_mapping.items()):  # noqa: SLF001 - reading by name hides local entries
        _replace(computing, name, original, _observed(name, original))
    for name, original in list(masking._global_mapping.items()):  # noqa: SLF001
        _replace(masking, name, original, mask_requests.noted(original))
    computing.get_interface = _observed_lookup(computing.get_interface)


def _replace(interface: Any, name: str, original: Any, ours: Any) -> None:
    interface.register(name, ours)
    _replaced.append((interface, name, original, ours))


def _restore() -> None:
    transformers: Any = sys.modules["transformers"]
    lookup = transformers.AttentionInterface.get_interface
    transformers.AttentionInterface.get_interface = getattr(lookup, "_regard_original", lookup)
    for interface, name, original, ours in _replaced:
        if interface._global_mapping.get(name) is ours:  # noqa: SLF001 - else somebody registered another since
            interface.register(name, original)
    _replaced.clear()
    mask_requests.forget()
    huggingface_call.forget()


def _observed_lookup(original: Any) -> Any:
    """Wraps what no registry entry of ours covers: the default, and what one file has put in place of an entry."""

    @functools.wraps(original)
    def get_interface(self: Any, attn_implementation: Any, default: Any) -> Any:
        function = original(self, attn_implementation, default)
        if hasattr(function, "_regard_original"):
            return function
        return _observed(str(attn_implementation), function)

    get_interface._regard_original = original  # type: ignore[attr-defined]  # noqa: SLF001
    return get_interface


def _observed(name: str, original: Any) -> Callable[..., Any]:
    @functools.wraps(original)
    def observed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
        with _lock:
            told = [listener for listener in _listeners if listener.knows(module)]
        with contextlib.ExitStack() as stack:
            for listener in told:
                stack.enter_context(listener.silent())
            output = original(module, query, key, value, *args, **named)
        if told:
            states = (query, key, value)
            try:
                with torch.no_grad():
                    call = huggingface_call.translate(
                        name, original, module, states, args=args, named=named, output=output
                    )
            except Exception as problem:  # whoever looks on must not break the model
                for listener in told:
                    listener.miss(name, problem)
            else:
                for listener in told:
                    listener.record(call, module)
        return output

    observed._regard_original = original  # type: ignore[attr-defined]  # noqa: SLF001
    return observed
