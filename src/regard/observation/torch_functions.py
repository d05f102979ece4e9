"""Seeing every attention that goes through torch's own functions, without changing which one runs.

A TorchFunctionMode sees scaled_dot_product_attention, both forms of nn.MultiheadAttention and the fused
nn.TransformerEncoderLayer. One thing it must not do is be seen: torch's modules look whether anything
overrides functions and, if so, leave their fast path, which changes the result in the last bits (and
the rows of padded tokens entirely). `invisible` keeps that look from finding this mode.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
import torch.overrides
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    _pop_mode_temporarily,  # pyright: ignore[reportPrivateUsage] - no public name
)
from torch.overrides import _get_current_function_mode_stack as _current_modes  # pyright: ignore[reportPrivateUsage] - no public name

from regard import _attention
from regard._front_door import Options
from regard.observation.call import AttentionCall, apart, expand_keys, sdpa_options, see_through
from regard.observation.multihead import from_encoder_layer, from_multihead, from_native_multihead

Record = Callable[[AttentionCall], None]


class SeeAttention(TorchFunctionMode):
    """Hands every attention call to `record`, after it ran exactly as it would have."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; if it is attention, record what went in and out."""
        named = kwargs or {}
        output = func(*args, **named)
        translate = _TRANSLATORS.get(func)
        if translate is not None:
            with torch.no_grad():
                call = translate(output, *args, **named)
            if call is not None:
                self.record(call)
        return output


def _from_sdpa(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall | None:
    if query.is_nested or query.dim() < 2:
        return None
    dims = max(tensor.dim() for tensor in (query, key, value))
    states = [tensor.reshape((1,) * (dims - tensor.dim()) + tuple(tensor.shape)) for tensor in (query, key, value)]
    lead = [0 if 0 in sizes else max(sizes) for sizes in zip(*(tensor.shape[:-3] for tensor in states), strict=True)]
    four = [_four_dimensional(tensor, lead) for tensor in states]
    mask = None
    if attn_mask is not None:
        mask = expand_keys(attn_mask.detach(), query.shape[-2], key.shape[-2])
        mask = mask if dims == 4 else _mask_four_dimensional(mask, dims, lead)

    def replay(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )

    return AttentionCall(
        query=four[0],
        key=four[1],
        value=four[2],
        options=sdpa_options(mask, is_causal=is_causal, scale=scale),
        implementation="sdpa",
        output=output.reshape(*four[0].shape[:3], value.shape[-1]),
        replay=replay,
        through=see_through(replay, four[0], four[1]),
        dropout_p=dropout_p,
    )


def _four_dimensional(tensor: Tensor, lead: list[int]) -> Tensor:
    """(batch, heads, length, dim): leading dimensions become one batch, a missing head dimension is 1."""
    if tensor.dim() <= 3:
        return tensor.reshape(-1, 1, *tensor.shape[-2:])
    return tensor.expand(*lead, *tensor.shape[-3:]).flatten(0, -4)


def _mask_four_dimensional(mask: Tensor, dims: int, lead: list[int]) -> Tensor:
    if dims <= 3:
        return mask.reshape(-1, 1, *mask.shape[-2:])
    heads = mask.shape[-3] if mask.dim() >= 3 else 1
    return mask.expand(*lead, heads, *mask.shape[-2:]).flatten(0, -4)


def _from_regard(
    output: Any, query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto", **named: Any
) -> AttentionCall:
    seen = named.pop("return_lse", False)
    given = {name: apart(entry) for name, entry in named.items() if name not in ("dropout_p", "seed")}
    options = cast("Options", given)

    def replay(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attention.attention(query, key, value, backend=backend, **options)

    return AttentionCall(
        query=query,
        key=key,
        value=value,
        options=options,
        implementation=f"regard ({backend})",
        output=output[0] if seen else output,
        replay=replay,
        through=see_through(replay, query, key),
        dropout_p=named.get("dropout_p", 0.0),
    )


_TRANSLATORS: dict[Any, Callable[..., AttentionCall | None]] = {
    F.scaled_dot_product_attention: _from_sdpa,
    F.multi_head_attention_forward: from_multihead,
    cast("Any", torch)._native_multi_head_attention: from_native_multihead,  # noqa: SLF001 - the name torch calls it by
    cast("Any", torch)._transformer_encoder_layer_fwd: from_encoder_layer,  # noqa: SLF001
    _attention.attention: _from_regard,
}

_gate = threading.Lock()
_asking: list[Callable[[Any], bool]] = []
"""The question torch asks, once for each context that is open in any thread."""


def _has_torch_function_beside_us(arguments: Any) -> bool:
    """The question torch asks, answered as if this thread's observing modes were not there."""
    modes = _current_modes()
    if any(not isinstance(mode, SeeAttention) for mode in modes):
        return True
    with contextlib.ExitStack() as aside:
        for _ in modes:
            aside.enter_context(_pop_mode_temporarily())
        return _asking[0](arguments)


@contextlib.contextmanager
def invisible() -> Generator[None]:
    """While open, torch.nn's modules do not leave their fast path because of an observing mode."""
    with _gate:
        _asking.append(_asking[0] if _asking else torch.overrides.has_torch_function)
        torch.overrides.has_torch_function = _has_torch_function_beside_us
    try:
        yield
    finally:
        with _gate:
            original = _asking[0]
            if len(_asking) == 1:
                torch.overrides.has_torch_function = original
            _asking.pop()
