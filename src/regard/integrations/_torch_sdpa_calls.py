"""One call of torch's scaled_dot_product_attention on CPU while regard is active: who computes it.

torch's fused operator, which `_torch_kernels.py` has replaced, takes what torch gives to it; the native core takes what
torch would compute by its formula; torch takes the rest, to compute or to refuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _get_flash_sdp_enabled  # pyright: ignore[reportPrivateUsage] - a third of the public one's time
from torch._C._functorch import is_functorch_wrapped_tensor

from regard.backends._direct import PLAIN_TENSORS, attend, has_tangent, is_observed
from regard.integrations._torch_arguments import DTYPES, WIDE, fits, inputs_of
from regard.integrations._torch_kernels import FUSED

_fused: Any = getattr(torch, FUSED)  # quicker to call than torch.ops.aten's


def attention(
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
    """The kernel of `aten::scaled_dot_product_attention`. Every microsecond here is one of every call's."""
    if _get_flash_sdp_enabled():  # or the caller wants another of torch's kernels
        if attn_mask is None and dropout_p == 0.0 and _is_fused_by_torch(query, key, value):
            return _fused(query, key, value, 0.0, is_causal, scale=scale)[0]
        if _serves(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa=enable_gqa):
            return _served(query, key, value, attn_mask, dropout_p, is_causal, scale)
    operator = torch.ops.aten.scaled_dot_product_attention.default
    return operator.decompose(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def _is_fused_by_torch(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Without a mask, does torch itself call its fused operator? Then whoever looks on sees what torch shows."""
    if query.is_nested or key.is_nested or value.is_nested:  # whose shape must not be asked for
        return False
    shape, of_keys = query.shape, key.shape
    if len(shape) != WIDE or len(of_keys) != WIDE:
        return False
    batch, heads, _, width = shape  # the lengths are not compared: one of them may be a number nobody knows yet
    return (
        of_keys[0] == batch
        and of_keys[1] == heads
        and of_keys[3] == width
        and of_keys == value.shape
        and 0 not in shape
        and 0 not in of_keys
        and query.dtype in DTYPES
        and key.dtype == query.dtype == value.dtype
        and query.is_cpu
        and key.is_cpu
        and value.is_cpu
    )


# ------------------------------------------------------------------------- what torch has a formula for


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
    if not 0.0 <= dropout_p <= 1.0:
        return False
    if not _is_fused_by_torch(query, key, value) and not _is_one_problem(query, key, value, enable_gqa=enable_gqa):
        return False
    if attn_mask is None:
        return not _is_differentiated_otherwise(query, key, value)
    return (
        not is_causal
        and attn_mask.dtype in {torch.bool, query.dtype}
        and fits(attn_mask, query, key)
        and not _is_differentiated_otherwise(query, key, value, attn_mask)
    )


def _is_one_problem(query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool) -> bool:
    """Three dense tensors of one kind on CPU, with nothing to broadcast."""
    if query.is_nested or key.is_nested or value.is_nested:
        return False
    dims, dtype = query.dim(), query.dtype
    return (
        dims in {3, WIDE}
        and key.dim() == dims == value.dim()
        and dtype in DTYPES
        and key.dtype == dtype == value.dtype
        and query.is_cpu
        and key.is_cpu
        and value.is_cpu
        and _sizes_match(query.shape, key.shape, value.shape, enable_gqa=enable_gqa)
    )


def _sizes_match(query: torch.Size, key: torch.Size, value: torch.Size, *, enable_gqa: bool) -> bool:
    """Of tensors with as many dimensions each, three or four; none is empty."""
    if 0 in query or 0 in value or query[-1] != key[-1] or key[:-1] != value[:-1]:
        return False
    if query[:-2] == key[:-2]:
        return True
    return enable_gqa and len(query) == WIDE and query[0] == key[0] and query[1] % key[1] == 0


def _is_differentiated_otherwise(*given: Tensor) -> bool:
    """By torch.func or in forward mode, for which the native core has no rule?"""
    return any(map(is_functorch_wrapped_tensor, given)) or has_tangent(*given)


def _served(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    if query.dim() == WIDE and dropout_p == 0.0 and _needs_no_python(query, key, value, attn_mask):
        return _fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    query, key, value = _in_memory(query), _in_memory(key), _in_memory(value)
    attn_mask = None if attn_mask is None else _in_memory(attn_mask)
    flat = query.dim() < WIDE
    if flat:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    output, _ = attend(inputs_of(query, key, value, attn_mask, dropout_p, is_causal, scale), with_lse=False)
    return output.squeeze(0) if flat else output


def _needs_no_python(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Is this a call for the fused operator though torch would not give it that? Tensors that nobody watches.

    Not with a mask where gradients are wanted: the operator's backward may be called when regard is active no more, and
    torch's own takes no bool mask and has NaN for a query that may attend to nothing.
    """
    if not {type(query), type(key), type(value)} <= PLAIN_TENSORS or is_observed():
        return False
    if mask is None:
        return True
    learns = query.requires_grad or key.requires_grad or value.requires_grad or mask.requires_grad
    return type(mask) is Tensor and not (learns and torch.is_grad_enabled())


def _in_memory(tensor: Tensor) -> Tensor:
    """The numbers as they lie there: torch has views that stand for minus what is in memory, and zeros without any."""
    if tensor._is_zerotensor():  # noqa: SLF001 - torch has no public question  # pyright: ignore[reportPrivateUsage]
        return tensor.clone()
    return tensor.resolve_neg()
