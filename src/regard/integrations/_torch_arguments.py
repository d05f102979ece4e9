"""The arguments of torch's scaled_dot_product_attention as what the native core takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard import _dropout
from regard.backends._native_call import Inputs

WIDE = 4
"""Dimensions of (batch, heads, length, head_dim)."""


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
        query, key, value, 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale, None,
        None, 0 if is_causal else None, 0, None, None, None, None, None, 1, 1, dense, bias,
        0, None, None, None, None, None, _dropout.draw_seed() if dropout_p > 0.0 else None, dropout_p,
    )  # fmt: skip
