"""The arguments of torch's attention operators: whether they fit together, and as what the native core takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard import _dropout
from regard._errors import sentence
from regard.backends._native_struct import Inputs

WIDE = 4
"""Dimensions of (batch, heads, length, head_dim)."""

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})

_SPEAKER = "scaled_dot_product_attention_flash_attention"  # how torch's fused operator begins its complaints


def inputs_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Inputs:
    """A bool mask becomes a mask, any other a bias; a dropout draws its seed from torch's generator."""
    dense = bias = None
    if attn_mask is not None:
        while attn_mask.dim() < WIDE:
            attn_mask = attn_mask.unsqueeze(0)
        if attn_mask.dtype == torch.bool:
            dense = attn_mask.expand(-1, -1, query.shape[2], key.shape[2])
        else:
            bias = attn_mask.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
    return Inputs(
        query,
        key,
        value,
        1.0 / math.sqrt(query.shape[-1] or 1) if scale is None else scale,
        after=0 if is_causal else None,
        dense=dense,
        bias=bias,
        seed=_dropout.draw_seed() if dropout_p > 0.0 else None,
        dropout_p=dropout_p,
    )


def fits(mask: Tensor, query: Tensor, key: Tensor) -> bool:
    """Does a mask in memory broadcast to the scores? Asked with `==`: a size may be a symbol, which has no hash."""
    shape, scores = mask.shape, (*query.shape[:-1], key.shape[-2])
    return (
        2 <= len(shape) <= len(scores)
        and _is_in_memory(mask)
        and all(have in (want, 1) for have, want in zip(reversed(shape), reversed(scores), strict=False))
    )


# ------------------------------------------------------------------------- complaints of the fused operator


def check_fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> None:
    """Raise what torch raises where it does, and also where torch reads beyond a tensor's end."""
    _check_kinds(query, key, value)
    if dropout_p != 0.0:
        raise _error(
            "Currently do not support dropout > 0",
            expected="dropout_p 0.0",
            got=str(dropout_p),
            do="Call torch.nn.functional.scaled_dot_product_attention.",
        )
    if not _sizes_fit(query.shape, key.shape, value.shape):
        raise _error(
            "query, key and value do not fit together",
            expected="query (batch, heads, q_len, head_dim), key (batch, kv_heads, kv_len, head_dim) and value (batch, "
            "kv_heads, kv_len, value_dim), heads a multiple of kv_heads",
            got=", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value)),
            do="Expand or slice what differs.",
        )
    if attn_mask is not None:
        _check_mask(attn_mask, query, key)


def check_fused_backward(grad_out: Tensor, query: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor) -> None:
    """Raise if these do not belong to the query and value, which fit together."""
    rows, working = tuple(query.shape[:3]), torch.float64 if query.dtype == torch.float64 else torch.float32
    of_output = ((*rows, value.shape[3]), query.dtype)
    for name, tensor, wanted in (
        ("grad_out", grad_out, of_output),
        ("out", out, of_output),
        ("logsumexp", logsumexp, (rows, working)),
    ):
        have = (tuple(tensor.shape), tensor.dtype)
        if have != wanted or not _is_in_memory(tensor):
            raise _error(
                f"{name} does not belong to this call",
                expected=f"{wanted[0]} of {wanted[1]} on cpu",
                got=f"{have[0]} of {have[1]} on {tensor.device}",
                do="Hand on what the forward operator gave.",
            )


def _check_kinds(query: Tensor, key: Tensor, value: Tensor) -> None:
    given = (query, key, value)
    if any(tensor.dim() != WIDE for tensor in given):
        raise _error(
            "Accept only 4 dims inputs shape of {B, H, T, K}",
            expected="query, key and value of 4 dimensions",
            got=", ".join(str(tensor.dim()) for tensor in given),
            do="Add the missing dimensions with unsqueeze.",
        )
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        raise _error(
            "Expected data type in FP32, FP64, BF16, FP16",
            expected="one of these for query, key and value",
            got=", ".join(str(tensor.dtype) for tensor in given),
            do="Convert them to one dtype.",
        )
    if not all(map(_is_in_memory, given)):
        raise _error(
            "a tensor is not in memory",
            expected="query, key and value strided, on cpu",
            got=", ".join(f"{tensor.layout} on {tensor.device}" for tensor in given),
            do="Move them to the cpu.",
        )


def _check_mask(mask: Tensor, query: Tensor, key: Tensor) -> None:
    if mask.dtype not in {torch.bool, torch.float32, query.dtype}:
        raise _error(
            "Attention mask is the same data type as query",
            expected=f"an attn_mask of torch.bool, torch.float32 or {query.dtype}",
            got=str(mask.dtype),
            do="Convert the mask.",
        )
    if not fits(mask, query, key):
        raise _error(
            "the attention mask does not fit",
            expected=f"a strided attn_mask on cpu that broadcasts to {(*query.shape[:3], key.shape[2])}",
            got=f"{tuple(mask.shape)}, {mask.layout} on {mask.device}",
            do="Give it the size of the scores, or 1 where it is shared.",
        )


def _sizes_fit(query: torch.Size, key: torch.Size, value: torch.Size) -> bool:
    batch, heads, _, width = query
    groups = heads == key[1] or (key[1] > 0 and heads % key[1] == 0)
    return key[0] == batch and key[3] == width and key[:3] == value[:3] and groups


def _is_in_memory(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.layout == torch.strided


def _error(what: str, *, expected: str, got: str, do: str) -> RuntimeError:
    return RuntimeError(sentence(f"{_SPEAKER}: {what}", expected=expected, got=got, do=do))
