"""The arguments of a Hugging Face attention function in regard's terms."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regard._front_door import Options
from regard.observation.call import AttentionCall, Replay, apart, expand_keys, sdpa_options, see_through
from regard.observation.mask_requests import declared
from regard.observation.pairs import Pairs

States = tuple[Tensor, Tensor, Tensor]


def translate(
    name: str,
    function: Callable[..., Any],
    module: nn.Module,
    states: States,
    *,
    args: tuple[Any, ...],
    named: dict[str, Any],
    output: Any,
) -> AttentionCall:
    """One call of `function`, registered under `name`, by a layer."""
    given = _given(function, module, states, args, named)
    query, key, value = states
    mask = given.get("attention_mask")
    replay = _replay(function, module, tuple(map(apart, args)), {key: apart(entry) for key, entry in named.items()})
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        options=_options(name, module, given, query.shape[2], key.shape[2]),
        implementation=name,
        output=output[0].transpose(1, 2),
        replay=replay,
        through=see_through(replay, query, key),
        dropout_p=float(given.get("dropout") or 0.0),
        declared_window=given.get("sliding_window"),
        declared=declared(mask, query.shape[2], key.shape[2]),
    )


def _replay(function: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Replay:
    again = {**named, "dropout": 0.0} if "dropout" in named else named
    return lambda query, key, value: function(module, query, key, value, *args, **again)[0].transpose(1, 2)


def _given(
    function: Callable[..., Any], module: nn.Module, states: States, args: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any]:
    """Every argument by its name, also those that the function only takes as **kwargs."""
    signature = inspect.signature(function)
    given = dict(signature.bind(module, *states, *args, **named).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given.update(given.pop(parameter.name, {}))
    return given


def _options(name: str, module: nn.Module, given: dict[str, Any], q_len: int, kv_len: int) -> Options:
    mask = given.get("attention_mask")
    is_causal = _is_causal(name, module, given, q_len)
    scale, softcap = given.get("scaling"), given.get("softcap")
    if isinstance(mask, Tensor) or mask is None:
        added = _added(mask, given.get("position_bias"), q_len, kv_len)
        options = sdpa_options(added, is_causal=is_causal, scale=scale, softcap=softcap)
    else:  # FlexAttention's BlockMask
        options = sdpa_options(given.get("position_bias"), is_causal=False, scale=scale, softcap=softcap)
        options["mask"] = Pairs(mask.mask_mod, *mask.shape[:2])
    if given.get("s_aux") is not None:
        options["sink"] = given["s_aux"]
    return options


def _added(mask: Tensor | None, position_bias: Tensor | None, q_len: int, kv_len: int) -> Tensor | None:
    """The mask tensor, the relative bias, or both, over these lengths."""
    if mask is None or mask.dim() != 4:
        return None if position_bias is None else position_bias[..., :kv_len]
    if position_bias is None:
        return expand_keys(mask[..., :kv_len], q_len, kv_len)
    return _joined(mask, position_bias, q_len, kv_len)


def _is_causal(name: str, module: nn.Module, given: dict[str, Any], q_len: int) -> bool:
    """The rule of transformers for a missing mask: causal by the layer's nature, but never for a single query.

    In "eager" and "flex_attention" a missing mask always means that everything is seen.
    """
    if name.endswith("eager") or name == "flex_attention" or given.get("attention_mask") is not None or q_len == 1:
        return False
    is_causal = given.get("is_causal")
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


_joins: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], Tensor]] = {}


def forget() -> None:
    """Drop what is kept between layers; nothing observes any more."""
    _joins.clear()


def _joined(mask: Tensor, position_bias: Tensor, q_len: int, kv_len: int) -> Tensor:
    """Mask and relative bias in one, as transformers adds them: what is forbidden gets the dtype's lowest number.

    All layers of a stack are handed the same two tensors, so they share the sum too.
    """
    thread = threading.get_ident()
    kept = _joins.get(thread)
    if kept is not None and kept[0]() is mask and kept[1]() is position_bias:
        return kept[2]
    shaped, placed = expand_keys(mask[..., :kv_len], q_len, kv_len), position_bias[..., :kv_len]
    lowest = torch.finfo(placed.dtype).min
    found = torch.where(shaped, placed, lowest) if mask.dtype == torch.bool else placed + shaped
    _joins[thread] = (weakref.ref(mask), weakref.ref(position_bias), found)
    return found
