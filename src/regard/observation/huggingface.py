"""Seeing attention in Hugging Face models, through their own two registries.

`AttentionInterface` maps a name ("sdpa", "flash_attention_2", ...) to the function that computes, and
`AttentionMaskInterface` the same name to the function that makes its mask. Both are wrapped under the
names they have, so a model keeps its setting, its kernel and its mask; what the wrapper adds is the layer
that called, keys before they are repeated for GQA, and the mask that the model asked for.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regard.observation.call import AttentionCall, expand_keys, sdpa_options, see_through


class Listener(Protocol):
    """Whoever observes a model."""

    def knows(self, module: nn.Module) -> bool:
        """Is this layer part of the observed model?"""
        ...

    def record(self, call: AttentionCall, module: nn.Module | None = None) -> None:
        """Take a call."""
        ...

    def silent(self) -> contextlib.AbstractContextManager[None]:
        """While open, calls seen elsewhere are the inside of this one."""
        ...


_lock = threading.RLock()
_listeners: list[Listener] = []
_originals: dict[tuple[type, str], Any] = {}
_asked = threading.local()
_ABSENT = object()


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
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
    from transformers import AttentionInterface, AttentionMaskInterface

    computing, masking = AttentionInterface(), AttentionMaskInterface()
    for name in {*computing, "eager"}:
        original = computing.get(name, _ABSENT)
        _originals[AttentionInterface, name] = original
        AttentionInterface.register(name, _observed(name, original))
    for name in list(masking):
        _originals[AttentionMaskInterface, name] = masking[name]
        AttentionMaskInterface.register(name, _observed_mask(masking[name]))


def _restore() -> None:
    for (interface, name), original in _originals.items():
        if original is _ABSENT:
            interface._global_mapping.pop(name, None)  # noqa: SLF001 - there is register, but no unregister
        else:
            interface.register(name, original)
    _originals.clear()


def _observed(name: str, original: Any) -> Callable[..., Any]:
    def observed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
        function = _module_default(module) if original is _ABSENT else original
        with _lock:
            told = [listener for listener in _listeners if listener.knows(module)]
        with contextlib.ExitStack() as stack:
            for listener in told:
                stack.enter_context(listener.silent())
            output = function(module, query, key, value, *args, **named)
            if told:
                with torch.no_grad():
                    call = _translate(name, function, module, query, key, value, args, named, output)
                for listener in told:
                    listener.record(call, module)
        return output

    return observed


def _module_default(module: nn.Module) -> Any:
    """The eager function of the file that defines the layer, which the registry would have fallen back to."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    message = f"{type(module).__name__} has no eager attention function in its file"
    raise KeyError(message)


def _translate(
    name: str,
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    args: tuple[Any, ...],
    named: dict[str, Any],
    output: Any,
) -> AttentionCall:
    given = inspect.signature(function).bind(module, query, key, value, *args, **named).arguments
    given = {**given.pop("kwargs", {}), **given}
    mask, q_len, kv_len = given.get("attention_mask"), query.shape[2], key.shape[2]
    options = sdpa_options(
        _mask_tensor(mask, q_len, kv_len),
        is_causal=_is_causal_flag(name, module, given, q_len),
        scale=given.get("scaling"),
        softcap=given.get("softcap"),
    )
    extra = given.get("position_bias")
    if extra is not None:
        extra = extra[..., :kv_len]
        options["bias"] = extra if options.get("bias") is None else options["bias"] + extra
    if given.get("s_aux") is not None:
        options["sink"] = given["s_aux"]

    def replay(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        again = {**named, "dropout": 0.0} if "dropout" in named else named
        return function(module, query, key, value, *args, **again)[0].transpose(1, 2)

    return AttentionCall(
        query=query,
        key=key,
        value=value,
        options=options,
        implementation=name,
        output=output[0].transpose(1, 2),
        replay=replay,
        through=see_through(replay, query, key),
        dropout_p=float(given.get("dropout") or 0.0),
        declared_window=given.get("sliding_window"),
        declared=_last_request(mask, q_len, kv_len),
    )


def _mask_tensor(mask: Any, q_len: int, kv_len: int) -> Tensor | None:
    """The mask as SDPA would take it; a flex BlockMask is asked pair by pair."""
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        return expand_keys(mask[..., :kv_len], q_len, kv_len) if mask.dim() == 4 else None
    batch, heads = mask.shape[:2]
    at = torch.meshgrid(*(torch.arange(size) for size in (batch, heads, q_len, kv_len)), indexing="ij")
    return torch.vmap(mask.mask_mod)(*(index.flatten() for index in at)).view(batch, heads, q_len, kv_len)


def _is_causal_flag(name: str, module: nn.Module, given: dict[str, Any], q_len: int) -> bool:
    """Hugging Face's rule for a missing mask: causal by the layer's nature, never for a single query, never in eager."""
    if name.endswith("eager") or given.get("attention_mask") is not None or q_len == 1:
        return False
    is_causal = given.get("is_causal")
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _observed_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    def observed(*args: Any, **named: Any) -> Any:
        mask = original(*args, **named)
        if not args and "mask_function" in named:
            requests: list[tuple[Any, dict[str, Any]]] = getattr(_asked, "requests", [])
            _asked.requests = [*requests[-7:], (mask, named)]
        return mask

    return observed


def _last_request(mask: Any, q_len: int, kv_len: int) -> Callable[[], Tensor] | None:
    """What the model asked its mask function for, as a bool tensor, if the answer is the mask of this call."""
    for answer, named in reversed(getattr(_asked, "requests", [])):
        if answer is mask and (named["q_length"], named["kv_length"]) == (q_len, kv_len):
            return lambda: _evaluate(named)
    return None


def _evaluate(named: dict[str, Any]) -> Tensor:
    """The mask function on every pair, with the padding: (batch, 1, q_len, kv_len)."""
    batch = torch.arange(named["batch_size"])[:, None, None, None]
    query = torch.arange(named["q_length"])[None, None, :, None] + int(named.get("q_offset", 0))
    key = torch.arange(named["kv_length"])[None, None, None, :] + int(named.get("kv_offset", 0))
    allowed = torch.as_tensor(named["mask_function"](batch, torch.zeros_like(batch), query, key))
    padding = named.get("attention_mask")
    if padding is not None and padding.dim() == 2:
        allowed = allowed & padding[:, None, None, : named["kv_length"]].bool().to(allowed.device)
    return allowed.expand(named["batch_size"], 1, named["q_length"], named["kv_length"])
