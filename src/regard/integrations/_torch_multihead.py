"""The inference fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer, as its own operator.

torch's own kernel multiplies out the whole matrix of scores beside `scaled_dot_product_attention`. This one takes its
place, for dense tensors and for nested ones (ragged: texts of a batch without padding between them), and calls that
function. So a token that may attend to nothing gets 0 here too, where torch's fast path has NaN.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor

NAME = "_native_multi_head_attention"
KEYS = ("CPU", "NestedTensorCPU")
_PAIRS, _PADDING = 0, 1
"""What torch calls a mask: (q_len, kv_len), or (batch, kv_len); any other broadcasts to the scores. True is masked."""


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A kernel for `aten::_native_multi_head_attention`: (batch, length, embed_dim) in and out, and the weights."""
    if not query.is_nested and query.numel() == 0:
        return query.new_empty(query.shape), None
    if query.is_nested:
        return _nested(
            query,
            embed_dim,
            num_head,
            (qkv_weight, qkv_bias, proj_weight, proj_bias),
            need_weights,
            average_attn_weights,
        )
    projected = zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
    q, k, v = (_split(F.linear(states, weight, bias), num_head) for states, weight, bias in projected)
    kept = None if mask is None else ~_scored(mask != 0, mask_type)
    output, weights = _attend(q, k, v, kept, need_weights=need_weights)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    return F.linear(_joined(output), proj_weight, proj_bias), weights


def _nested(
    query: Tensor,
    embed_dim: int,
    num_head: int,
    linear: tuple[Tensor, Tensor, Tensor, Tensor],
    need_weights: bool,
    average: bool,
) -> tuple[Tensor, Tensor | None]:
    """Padded at the right, and cut again. Nested tensors come here alone: torch lets them attend to themselves only."""
    sizes: Tensor = cast("Any", query)._nested_tensor_size()  # noqa: SLF001 - torch has no public way
    if query.numel() == 0:
        return query.clone(), None
    padded: Tensor = cast("Any", torch.nested).to_padded_tensor(query, 0.0)
    lengths = sizes[:, 0].to(padded.device)
    places = torch.arange(padded.shape[1], device=padded.device)
    masked = places >= lengths[:, None]
    output, weights = multi_head_attention(
        padded, padded, padded, embed_dim, num_head, *linear, masked, need_weights, average, _PADDING
    )
    if weights is not None:  # torch's own are 0 in the rows that are no tokens
        rows = masked if average else masked[:, None]
        weights = weights.masked_fill(rows.unsqueeze(-1), 0.0)
    return torch.ops.aten._nested_from_padded(output, sizes), weights  # noqa: SLF001


def _attend(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None, *, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    if not need_weights:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=kept), None
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if kept is None:
        weights = scores.softmax(-1)
    else:
        sees = kept.any(-1, keepdim=True)
        weights = scores.masked_fill(~kept & sees, -torch.inf).softmax(-1).masked_fill(~sees, 0.0)
    return weights @ value, weights


def _scored(mask: Tensor, mask_type: int | None) -> Tensor:
    """So that it broadcasts to (batch, heads, q_len, kv_len)."""
    if mask_type == _PADDING:
        return mask[:, None, None, :]
    return mask[None, None] if mask_type == _PAIRS or mask.dim() == 2 else mask


def _split(states: Tensor, heads: int) -> Tensor:
    return states.view(*states.shape[:2], heads, -1).transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)
