"""`regard.activate()`: every F.scaled_dot_product_attention on CPU, from any model, runs on the native core.

Two operators of torch are replaced through its own dispatcher: `aten::scaled_dot_product_attention`, which sees every
call, so that dropout, a learnable bias and a value of another width no longer leave the fused path; and
`aten::_scaled_dot_product_flash_attention_for_cpu` with its backward, which graphs compiled earlier call by name.
Destroying the registration restores torch exactly. What the core does not serve (other devices, nested tensors, sizes
that torch broadcasts, torch.func) goes on to torch as before.

The inference fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer calls neither; it is switched off while
regard is active, and back to what it was afterwards.
"""

from __future__ import annotations

import threading
import warnings
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import attention as torch_attention

from regard._errors import NativeError
from regard.backends import _library
from regard.backends._direct import PLAIN_TENSORS, attend, has_tangent, is_observed
from regard.integrations._torch_arguments import WIDE, inputs_of
from regard.integrations._torch_kernels import FUSED, FusedKernels

_fused: Any = getattr(torch, FUSED)  # quicker to call than torch.ops.aten's
_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


class Activation:
    """What `activate` returns: a context manager, and the handle that torch's own registry removes."""

    def __init__(self, *, owner: bool) -> None:
        self._owner = owner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore torch, unless regard was active already when this was made."""
        if self._owner:
            deactivate()


_lock = threading.Lock()
_registered: Any = None
_fast_path_before = True


def activate() -> Activation:
    """Run every `F.scaled_dot_product_attention` on CPU on the native core, forward and backward.

    Also a context manager: `with regard.activate(): ...` restores torch at its end. The seed of a dropout is drawn from
    torch's generator, so torch.manual_seed decides it; which weights are dropped differs from torch's own choice.

    Naming it (`regard.activate`, or `import regard.integrations.torch_sdpa`) also enters "regard" in torch's own list:
    `torch.nn.attention.activate_flash_attention_impl("regard")` does the same, and `restore_flash_attention_impl()`
    undoes it.

    Raises:
        NativeError: the native core is absent; the message says why.
    """
    global _registered, _fast_path_before  # noqa: PLW0603 - torch's dispatcher is one for the process
    reason = _library.why_absent()
    if reason is not None:
        raise NativeError(reason)
    with _lock:
        if _registered is not None:
            return Activation(owner=False)
        library: Any = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # torch warns that a kernel is replaced; that is what was asked for
            warnings.filterwarnings("ignore", category=UserWarning)
            for key in ("CPU", "AutogradCPU"):
                library.impl("scaled_dot_product_attention", _attention, key, allow_override=True)
            fused = FusedKernels()
        _fast_path_before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        _registered = (library, fused)
        _forget_what_was_resolved()
    return Activation(owner=True)


def deactivate() -> None:
    """Restore torch's own attention; nothing happens when regard is not active."""
    global _registered  # noqa: PLW0603
    with _lock:
        if _registered is not None:
            library, fused = _registered
            fused.remove()
            library._destroy()  # noqa: SLF001 - what torch's own implementations do
            torch.backends.mha.set_fastpath_enabled(_fast_path_before)
            _registered = None
            _forget_what_was_resolved()


def _forget_what_was_resolved() -> None:
    """torch's Python side remembers which kernel it found for a key, and is not told when that changes."""
    for name in _REPLACED:
        operator: Any = getattr(torch.ops.aten, name).default
        operator._dispatch_cache.clear()  # noqa: SLF001 - torch has no public way


def is_active() -> bool:
    """Is every scaled_dot_product_attention on CPU regard's?"""
    return _registered is not None


torch_attention.register_flash_attention_impl("regard", register_fn=activate)


# ------------------------------------------------------------------------------- scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if not _serves(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa=enable_gqa):
        operator = torch.ops.aten.scaled_dot_product_attention.default
        return operator.decompose(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if query.dim() == WIDE and _is_fused(query, key, value, attn_mask, dropout_p):
        return _fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    flat = query.dim() < WIDE
    if flat:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    output, _ = attend(inputs_of(query, key, value, attn_mask, dropout_p, is_causal, scale), with_lse=False)
    return output.squeeze(0) if flat else output


def _is_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float) -> bool:
    """Is this a call for torch's fused operator, which needs no Python? Nothing but tensors that nobody watches.

    Not with a mask where gradients are wanted: the operator's backward may be called when regard is active no more, and
    torch's own takes no bool mask and has NaN for a query that may attend to nothing.
    """
    if dropout_p != 0.0 or not {type(query), type(key), type(value)} <= PLAIN_TENSORS or is_observed():
        return False
    learns = query.requires_grad or key.requires_grad or value.requires_grad
    return mask is None or (type(mask) is Tensor and not (learns and torch.is_grad_enabled()))


def _serves(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    *,
    enable_gqa: bool,
) -> bool:
    """Is this one attention problem whose sizes match exactly? Everything else is torch's to compute or to refuse."""
    batch, heads, length = query.shape[:-2], query.shape[-3:-2], key.shape[-2:-1]
    if (
        query.dim() not in {3, WIDE}
        or query.is_nested
        or query.dtype not in _DTYPES
        or key.dtype != query.dtype
        or value.dtype != query.dtype
        or key.device != query.device
        or value.device != query.device
        or query.shape[-1] != key.shape[-1]
        or length != value.shape[-2:-1]
        or key.shape[:-2] != value.shape[:-2]
        or not 0.0 <= dropout_p <= 1.0
        or 0 in query.shape
        or 0 in value.shape
    ):
        return False
    if key.shape[:-2] != batch and not (
        enable_gqa and query.dim() == WIDE and key.shape[0] == query.shape[0] and heads[0] % key.shape[1] == 0
    ):
        return False
    if attn_mask is not None and (is_causal or not _fits(attn_mask, query, key)):
        return False
    given = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    return not any(map(is_functorch_wrapped_tensor, given)) and not has_tangent(*given)


def _fits(mask: Tensor, query: Tensor, key: Tensor) -> bool:
    full = (*query.shape[:-1], key.shape[-2])
    shape = mask.shape
    return (
        mask.device == query.device
        and mask.dtype in {torch.bool, query.dtype}
        and 2 <= len(shape) <= len(full)
        and all(have in {1, want} for have, want in zip(reversed(shape), reversed(full), strict=False))
    )


_REPLACED = ("scaled_dot_product_attention", FUSED, f"{FUSED}_backward")
