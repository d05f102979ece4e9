"""Seeing every attention that goes through torch's own functions, without changing which one runs.

A TorchFunctionMode sees scaled_dot_product_attention, both forms of nn.MultiheadAttention and the fused
nn.TransformerEncoderLayer. One thing it must not do is be seen: torch's modules look whether anything
overrides functions and, if so, leave their fast path, which changes the result in the last bits (and
the rows of padded tokens entirely). `invisible` keeps that look from finding this mode.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
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
Miss = Callable[[str, Exception], None]


class SeeAttention(TorchFunctionMode):
    """Hands every attention call to `record`, after it ran exactly as it would have."""

    def __init__(self, record: Record, miss: Miss) -> None:
        super().__init__()
        self.record, self.miss = record, miss

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; if it is attention, record what went in and out."""
        named = kwargs or {}
        output = func(*args, **named)
        translate = _TRANSLATORS.get(func)
        if translate is not None:
            try:
                with torch.no_grad():
                    call = translate(output, *args, **named)
            except Exception as problem:  # whoever looks on must not break the model
                self.miss(getattr(func, "__name__", str(func)), problem)
            else:
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
    four, mask = _four_dimensional((query, key, value), attn_mask, enable_gqa=enable_gqa)

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


def _four_dimensional(
    states: Sequence[Tensor], mask: Tensor | None, *, enable_gqa: bool
) -> tuple[list[Tensor], Tensor | None]:
    """All as (batch, heads, length, dim), broadcast as torch does it: leading sizes become one batch.

    What has three dimensions or fewer has one head, (batch, length, dim), unless enable_gqa counts heads there.
    """
    q_len, kv_len = states[0].shape[-2], states[1].shape[-2]
    if mask is not None:
        mask = expand_keys(mask.detach(), q_len, kv_len)
    if not enable_gqa and all(state.dim() <= 3 for state in states):
        states = [state.unsqueeze(-3) for state in states]
        mask = None if mask is None else mask.unsqueeze(-3)
    dims = max(4, *(state.dim() for state in states))
    states = [state.reshape((1,) * (dims - state.dim()) + tuple(state.shape)) for state in states]
    shared = dims - 3 if enable_gqa else dims - 2  # sizes that broadcast between the three
    lead = [0 if 0 in sizes else max(sizes) for sizes in zip(*(state.shape[:shared] for state in states), strict=True)]
    four = [state.expand(*lead, *state.shape[shared:]).flatten(0, -4) for state in states]
    if mask is not None and mask.dim() > 2 and dims > 4:
        heads = mask.shape[-3]
        mask = mask.expand(*lead[: dims - 3], heads, q_len, kv_len).flatten(0, -4)
    return four, mask


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
_open = 0
_original: Callable[[Any], bool] = torch.overrides.has_torch_function
"""The question torch asks. It stays here when all is closed: somebody may have kept our form of it."""


def _has_torch_function_beside_us(arguments: Any) -> bool:
    """The question torch asks, answered as if this thread's observing modes were not there."""
    modes = _current_modes()
    if any(not isinstance(mode, SeeAttention) for mode in modes):
        return True
    with contextlib.ExitStack() as aside:
        for _ in modes:
            aside.enter_context(_pop_mode_temporarily())
        return _original(arguments)


@contextlib.contextmanager
def invisible() -> Generator[None]:
    """While open, torch.nn's modules do not leave their fast path because of an observing mode."""
    global _open, _original  # noqa: PLW0603 - torch's own function is one for the whole process
    with _gate:
        _open += 1
        if torch.overrides.has_torch_function is not _has_torch_function_beside_us:
            _original = torch.overrides.has_torch_function
            torch.overrides.has_torch_function = _has_torch_function_beside_us
    try:
        yield
    finally:
        with _gate:
            _open -= 1
            if _open == 0 and torch.overrides.has_torch_function is _has_torch_function_beside_us:
                torch.overrides.has_torch_function = _original
