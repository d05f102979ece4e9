"""nn.MultiheadAttention in its three forms, and nn.TransformerEncoderLayer's fused one, in regard's terms.

None of them hands out its q, k and v, so they are projected again from what the layer was given. Their
masks mean the opposite of regard's (True = may not attend).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor

from regard._front_door import Options
from regard.masks import Dense, Mask, Padding
from regard.observation.call import AttentionCall, Replay, Through, see_through


def from_multihead(
    output: tuple[Tensor, Tensor | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    heads: int,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,  # noqa: FBT001 - torch's own signature
    dropout_p: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    training: bool = True,  # noqa: FBT001, FBT002
    **named: Any,
) -> AttentionCall | None:
    """torch.nn.functional.multi_head_attention_forward: (length, batch, embed_dim), or unbatched 2-D."""
    del embed_dim, out_weight, out_bias
    if named.get("static_k") is not None or named.get("static_v") is not None:
        return None
    batched = query.dim() == 3
    states = [tensor if batched else tensor.unsqueeze(1) for tensor in (query, key, value)]
    projections = _projections(in_weight, in_bias, named)
    projected = [F.linear(tensor, *how).transpose(0, 1) for tensor, how in zip(states, projections, strict=True)]
    query, key, value = (_split(tensor, heads) for tensor in projected)
    options = _mask_options(
        query, key.shape[2], named.get("attn_mask"), named.get("key_padding_mask"), batched=batched
    )
    key, value, added = _extra_keys(key, value, bias_k, bias_v, add_zero_attn=add_zero_attn)
    replay = None if added or not batched else _replay_multihead(heads * query.shape[-1], heads, named)
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        options=_allow_extra(options, added),
        implementation="nn.MultiheadAttention",
        replay=replay,
        through=None if replay is None else see_through(replay, query, key),
        dropout_p=dropout_p if training else 0.0,
    )


def from_native_multihead(
    output: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,  # noqa: FBT001, FBT002 - torch's own signature
    average_attn_weights: bool = True,  # noqa: FBT001, FBT002
    mask_type: int | None = None,
) -> AttentionCall:
    """The inference fast path of nn.MultiheadAttention: (batch, length, embed_dim), self-attention."""
    return _fused(query, heads, qkv_weight, qkv_bias, mask, mask_type, "nn.MultiheadAttention (fast path)")


def from_encoder_layer(
    output: Tensor,
    source: Tensor,
    embed_dim: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,  # noqa: FBT001 - torch's own signature
    norm_first: bool,  # noqa: FBT001
    eps: float,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *rest: Any,
) -> AttentionCall:
    """The inference fast path of nn.TransformerEncoderLayer; the source may be nested (ragged)."""
    mask, mask_type = (*rest[6:], None, None)[:2]
    if norm_first:
        source = F.layer_norm(source, (embed_dim,), norm_weight, norm_bias, eps)
    return _fused(source, heads, qkv_weight, qkv_bias, mask, mask_type, "nn.TransformerEncoderLayer (fast path)")


def _replay_multihead(width: int, heads: int, named: dict[str, Any]) -> Replay:
    """The same function with identity projections, so that it takes q, k and v themselves."""
    settings = {name: named.get(name) for name in ("key_padding_mask", "attn_mask", "need_weights", "is_causal")}
    settings = {name: setting for name, setting in settings.items() if setting is not None}

    def replay(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        identity = torch.eye(width, dtype=query.dtype, device=query.device)
        zero = identity.new_zeros(width)
        states = [_join(tensor).transpose(0, 1) for tensor in (query, key, value)]
        output, _ = F.multi_head_attention_forward(
            *states, width, heads, identity.repeat(3, 1), zero.repeat(3), None, None, False, 0.0, identity, zero,
            training=False, **settings,
        )  # fmt: skip
        return _split(output.transpose(0, 1), heads)

    return replay


def _through_native(query: Tensor, heads: int, mask: Tensor | None, mask_type: int | None) -> Through:
    """The fused function with zero query and key projections and an identity for the values."""
    width = heads * query.shape[-1]
    identity = torch.eye(width, dtype=query.dtype, device=query.device)
    weight = torch.cat([torch.zeros_like(identity), torch.zeros_like(identity), identity])
    zero = identity.new_zeros(width)

    def through(value: Tensor) -> Tensor:
        states = _join(value).contiguous()
        output, _ = torch._native_multi_head_attention(  # noqa: SLF001 - the name torch calls it by
            states, states, states, width, heads, weight, zero.repeat(3), identity, zero, mask, False, True, mask_type
        )
        return _split(output, heads)

    return through


def _fused(
    states: Tensor, heads: int, weight: Tensor, bias: Tensor, mask: Tensor | None, mask_type: int | None, name: str
) -> AttentionCall:
    ragged: Mask | None = None
    if states.is_nested:
        ragged = Padding([row.shape[0] for row in states.unbind()])
        states = torch.nested.to_padded_tensor(states, 0.0)
    query, key, value = (_split(part, heads) for part in F.linear(states, weight, bias).chunk(3, dim=-1))
    pairs, padding = (None, mask) if mask_type == 1 else (mask, None)
    options = _mask_options(query, key.shape[2], pairs, padding, batched=True)
    if ragged is not None:
        options["mask"] = ragged
    through = None if ragged is not None else _through_native(query, heads, mask, mask_type)
    return AttentionCall(query=query, key=key, value=value, options=options, implementation=name, through=through)


def _projections(
    in_weight: Tensor | None, in_bias: Tensor | None, named: dict[str, Any]
) -> list[tuple[Tensor, Tensor | None]]:
    biases = (None, None, None) if in_bias is None else in_bias.chunk(3)
    if named.get("use_separate_proj_weight", False) or in_weight is None:
        matrices = (named["q_proj_weight"], named["k_proj_weight"], named["v_proj_weight"])
    else:
        matrices = in_weight.chunk(3)
    return list(zip(matrices, biases, strict=True))


def _split(states: Tensor, heads: int) -> Tensor:
    """(batch, length, embed_dim) -> (batch, heads, length, head_dim)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join(states: Tensor) -> Tensor:
    """(batch, heads, length, head_dim) -> (batch, length, embed_dim)."""
    return states.transpose(1, 2).flatten(2)


def _mask_options(
    query: Tensor, kv_len: int, pairs: Tensor | None, padding: Tensor | None, *, batched: bool
) -> Options:
    """attn_mask (q, k), (batch * heads, q, k) or 4-D, and key_padding_mask (batch, k): bool = forbidden, float = added."""
    batch, heads, q_len, _ = query.shape
    forms: list[Tensor] = []
    if pairs is not None:
        forms.append(pairs.reshape(batch, heads, q_len, kv_len) if pairs.dim() == 3 else (pairs[None, None] if pairs.dim() == 2 else pairs))
    if padding is not None:
        padding = padding if batched else padding.unsqueeze(0)
        forms.append(padding.view(batch, 1, 1, kv_len).expand(-1, -1, q_len, -1))
    options: Options = {}
    allowed = [~form for form in forms if form.dtype == torch.bool]
    added = [form for form in forms if form.dtype != torch.bool]
    if allowed:
        options["mask"] = Dense(allowed[0] if len(allowed) == 1 else allowed[0] & allowed[1])
    if added:
        options["bias"] = added[0] if len(added) == 1 else added[0] + added[1]
    return options


def _extra_keys(
    key: Tensor, value: Tensor, bias_k: Tensor | None, bias_v: Tensor | None, *, add_zero_attn: bool
) -> tuple[Tensor, Tensor, int]:
    """bias_k / bias_v and add_zero_attn append keys that no mask forbids."""
    before = key.shape[2]
    if bias_k is not None and bias_v is not None:
        learned = (_split(bias, key.shape[1]).expand(key.shape[0], -1, -1, -1) for bias in (bias_k, bias_v))
        key, value = (torch.cat(pair, dim=2) for pair in zip((key, value), learned, strict=True))
    if add_zero_attn:
        key, value = (F.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
    return key, value, key.shape[2] - before


def _allow_extra(options: Options, added: int) -> Options:
    if added == 0:
        return options
    mask, bias = options.get("mask"), options.get("bias")
    if isinstance(mask, Dense):
        options["mask"] = Dense(F.pad(mask.tensor, (0, added), value=True))
    if bias is not None:
        options["bias"] = F.pad(bias, (0, added))
    return options
