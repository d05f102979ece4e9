"""Seeing every attention that goes through torch's own functions, without changing which one runs.

A TorchFunctionMode sees scaled_dot_product_attention, both forms of nn.MultiheadAttention and the fused
nn.TransformerEncoderLayer. One thing it must not do is be seen: torch's modules look whether anything
overrides functions and, if so, leave their fast path, which changes the result in the last bits (and
the rows of padded tokens entirely). `invisible` keeps that look from finding this mode.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
import torch.overrides
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard import _attention
from regard._front_door import Options
from regard.observation.call import AttentionCall, expand_keys, sdpa_options, see_through
from regard.observation.multihead import from_encoder_layer, from_multihead, from_native_multihead

Record = Callable[[AttentionCall], None]


class SeeAttention(TorchFunctionMode):
    """Hands every attention call to `record`, after it ran exactly as it would have."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(  # noqa: PLW3201 - torch's protocol
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
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> AttentionCall | None:
    if query.is_nested or query.dim() < 2:
        return None
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    four = [_four_dimensional(tensor, lead) for tensor in (query, key, value)]
    mask = None
    if attn_mask is not None:
        mask = expand_keys(attn_mask, query.shape[-2], key.shape[-2])
        mask = mask if query.dim() == 4 else _mask_four_dimensional(mask, query, lead)

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


def _four_dimensional(tensor: Tensor, lead: torch.Size) -> Tensor:
    """(batch, heads, length, dim): leading dimensions become one batch, a missing head dimension is 1."""
    if tensor.dim() <= 3:
        return tensor.reshape(-1, 1, *tensor.shape[-2:])
    return tensor.expand(*lead, *tensor.shape[-3:]).flatten(0, -4)


def _mask_four_dimensional(mask: Tensor, query: Tensor, lead: torch.Size) -> Tensor:
    if query.dim() <= 3:
        return mask.reshape(-1, 1, *mask.shape[-2:])
    heads = mask.shape[-3] if mask.dim() >= 3 else 1
    return mask.expand(*lead, heads, *mask.shape[-2:]).flatten(0, -4)


def _from_regard(
    output: Any, query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto", **named: Any
) -> AttentionCall:
    seen = named.pop("return_lse", False)
    options: Options = {name: entry for name, entry in named.items() if name not in ("dropout_p", "seed")}  # type: ignore[assignment]

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
    torch._native_multi_head_attention: from_native_multihead,  # noqa: SLF001 - the name torch calls it by
    torch._transformer_encoder_layer_fwd: from_encoder_layer,  # noqa: SLF001
    _attention.attention: _from_regard,
}

_gate = threading.Lock()
_gates_open = 0
_asked = torch.overrides.has_torch_function


def _has_torch_function_beside_us(arguments: Any) -> bool:
    """torch's own question, answered as if this thread's observing modes were not there."""
    others = [mode for mode in torch.overrides._get_current_function_mode_stack() if not isinstance(mode, SeeAttention)]  # noqa: SLF001
    if others:
        return True
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - documented escape hatch, private by name only
        return _asked(arguments)


@contextlib.contextmanager
def invisible() -> Iterator[None]:
    """While open, torch.nn's modules do not leave their fast path because of an observing mode."""
    global _gates_open  # noqa: PLW0603 - counts contexts in all threads
    with _gate:
        _gates_open += 1
        torch.overrides.has_torch_function = _has_torch_function_beside_us
    try:
        yield
    finally:
        with _gate:
            _gates_open -= 1
            if _gates_open == 0:
                torch.overrides.has_torch_function = _asked
