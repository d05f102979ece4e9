"""nn.MultiheadAttention in its two forms, and nn.TransformerEncoderLayer's fused one, in regard's terms.

None of them hands out its q, k and v, so they are projected again from what the layer was given. Their
masks mean the opposite of regard's (True = may not attend).
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor

from regard._front_door import Options
from regard.masks import Causal, Dense, Mask
from regard.observation.call import AttentionCall, Replay, Through, apart, see_through
from regard.observation.pairs import inside

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
_multihead: Any = F.multi_head_attention_forward
_native: Any = cast("Any", torch)._native_multi_head_attention  # noqa: SLF001 - the name torch calls it by
_NATIVE_NAMES = (
    "query", "key", "value", "embed_dim", "num_heads", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "mask",
    "need_weights", "average_attn_weights", "mask_type",
)  # fmt: skip
_ENCODER_NAMES = (
    "src", "embed_dim", "num_heads", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "use_gelu", "norm_first",
    "eps", "norm_weight", "norm_bias", "norm2_weight", "norm2_bias", "linear1_weight", "linear1_bias",
    "linear2_weight", "linear2_bias", "mask", "mask_type",
)  # fmt: skip


def from_multihead(output: object, *args: Any, **named: Any) -> AttentionCall | None:
    """torch.nn.functional.multi_head_attention_forward: (length, batch, embed_dim), or unbatched 2-D."""
    del output  # it has been through the output projection
    bound = _SIGNATURE.bind(*args, **named)
    bound.apply_defaults()
    given = bound.arguments
    if given["static_k"] is not None or given["static_v"] is not None:
        return None
    heads: int = given["num_heads"]
    batched = given["query"].dim() == 3
    states: list[Tensor] = [given[name] if batched else given[name].unsqueeze(1) for name in ("query", "key", "value")]
    query, key, value = (
        _split(F.linear(tensor, weight, bias).transpose(0, 1), heads)
        for tensor, (weight, bias) in zip(states, _projections(given), strict=True)
    )
    padding = _batched(given["key_padding_mask"], batched=batched)
    options = _multihead_options(query, key.shape[2], given, padding)
    key, value, added = _extra_keys(key, value, given)
    replay = None if added else _replay_multihead(heads, given, padding)
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        options=_allow_extra(options, added),
        implementation="nn.MultiheadAttention",
        replay=replay,
        through=None if replay is None else see_through(replay, query, key),
        dropout_p=given["dropout_p"] if given["training"] else 0.0,
    )


def from_native_multihead(output: object, *args: Any, **named: Any) -> AttentionCall:
    """The inference fast path of nn.MultiheadAttention: (batch, length, embed_dim), self-attention."""
    del output
    given = dict(zip(_NATIVE_NAMES, args, strict=False)) | named
    return _fused(given["query"], given, "nn.MultiheadAttention (fast path)")


def from_encoder_layer(output: object, *args: Any, **named: Any) -> AttentionCall:
    """The inference fast path of nn.TransformerEncoderLayer; the source may be nested (ragged)."""
    del output
    given = dict(zip(_ENCODER_NAMES, args, strict=False)) | named
    source: Tensor = given["src"]
    if given["norm_first"]:
        source = F.layer_norm(source, (given["embed_dim"],), given["norm_weight"], given["norm_bias"], given["eps"])
    return _fused(source, given, "nn.TransformerEncoderLayer (fast path)")


def _replay_multihead(heads: int, given: dict[str, Any], padding: Tensor | None) -> Replay:
    """The same function with identity projections, so that it takes q, k and v themselves."""
    settings = {name: apart(given[name]) for name in ("attn_mask", "need_weights", "is_causal")}
    padding = None if padding is None else padding.detach()

    def replay(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        width = heads * query.shape[-1]
        identity = torch.eye(width, dtype=query.dtype, device=query.device)
        zero = torch.zeros(width, dtype=query.dtype, device=query.device)
        states = [_join(tensor).transpose(0, 1) for tensor in (query, key, value)]
        output: Tensor = _multihead(
            *states, width, heads, identity.repeat(3, 1), zero.repeat(3), None, None,
            add_zero_attn=False, dropout_p=0.0, out_proj_weight=identity, out_proj_bias=zero,
            training=False, key_padding_mask=padding, **settings,
        )[0]  # fmt: skip
        return _split(output.transpose(0, 1), heads)

    return replay


def _through_native(query: Tensor, mask: Tensor | None, mask_type: int | None) -> Through:
    """The fused function with zero query and key projections and an identity for the values."""
    heads, width = query.shape[1], query.shape[1] * query.shape[3]
    identity = torch.eye(width, dtype=query.dtype, device=query.device)
    weight = torch.cat([torch.zeros_like(identity), torch.zeros_like(identity), identity])
    zero = torch.zeros(width, dtype=query.dtype, device=query.device)

    def through(value: Tensor) -> Tensor:
        states = _join(value).contiguous()
        output: Tensor = _native(
            states, states, states, width, heads, weight, zero.repeat(3), identity, zero, mask,
            need_weights=False, average_attn_weights=True, mask_type=mask_type,
        )[0]  # fmt: skip
        return _split(output, heads)

    return through


def _fused(states: Tensor, given: dict[str, Any], name: str) -> AttentionCall:
    heads, mask, mask_type = given["num_heads"], given.get("mask"), given.get("mask_type")
    ragged: Mask | None = None
    if states.is_nested:
        ragged = inside([row.shape[0] for row in cast("list[Tensor]", states.unbind())], states.device)
        states = cast("Any", torch.nested).to_padded_tensor(states, 0.0)
    projected = F.linear(states, given["qkv_weight"], given["qkv_bias"]).chunk(3, dim=-1)
    query, key, value = (_split(part, heads) for part in projected)
    pairs, padding = (None, mask) if mask_type == 1 else (mask, None)
    options = _mask_options(query, key.shape[2], pairs, padding)
    if ragged is not None:
        options["mask"] = ragged
    through = None if ragged is not None else _through_native(query, mask, mask_type)
    return AttentionCall(query=query, key=key, value=value, options=options, implementation=name, through=through)


def _projections(given: dict[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias for query, key and value."""
    biases = (None, None, None) if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    if given["use_separate_proj_weight"]:
        matrices = (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
    else:
        matrices = given["in_proj_weight"].chunk(3)
    return list(zip(matrices, biases, strict=True))


def _split(states: Tensor, heads: int) -> Tensor:
    """(batch, length, embed_dim) -> (batch, heads, length, head_dim)."""
    return states.reshape(*states.shape[:2], heads, states.shape[-1] // heads).transpose(1, 2)


def _join(states: Tensor) -> Tensor:
    """(batch, heads, length, head_dim) -> (batch, length, embed_dim)."""
    return states.transpose(1, 2).flatten(2)


def _batched(padding: Tensor | None, *, batched: bool) -> Tensor | None:
    return padding if padding is None or batched else padding.unsqueeze(0)


def _multihead_options(query: Tensor, kv_len: int, given: dict[str, Any], padding: Tensor | None) -> Options:
    if given["is_causal"] and padding is None and not given["need_weights"]:
        return {"mask": Causal(align="top_left")}  # here torch believes the flag and drops attn_mask
    return _mask_options(query, kv_len, given["attn_mask"], padding)


def _mask_options(query: Tensor, kv_len: int, pairs: Tensor | None, padding: Tensor | None) -> Options:
    """attn_mask (q, k), (batch * heads, q, k) or 4-D, and padding (batch, k): bool = forbidden, float = added."""
    batch, heads, q_len, _ = query.shape
    forms: list[Tensor] = []
    if pairs is not None:
        shape = {2: (1, 1), 3: (batch, heads)}.get(pairs.dim(), tuple(pairs.shape[:2]))
        forms.append(pairs.reshape(*shape, q_len, kv_len))
    if padding is not None:
        forms.append(padding[:, None, None, :].expand(-1, -1, q_len, -1))
    options: Options = {}
    allowed = [~form for form in forms if form.dtype == torch.bool]
    added = [form for form in forms if form.dtype != torch.bool]
    if allowed:
        options["mask"] = Dense(allowed[0] if len(allowed) == 1 else allowed[0] & allowed[1])
    if added:
        options["bias"] = added[0] if len(added) == 1 else added[0] + added[1]
    return options


def _extra_keys(key: Tensor, value: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """bias_k / bias_v and add_zero_attn append keys that no mask forbids; also how many."""
    before = key.shape[2]
    if given["bias_k"] is not None and given["bias_v"] is not None:
        learned = (_split(given[name], key.shape[1]).expand(key.shape[0], -1, -1, -1) for name in ("bias_k", "bias_v"))
        key, value = (torch.cat(pair, dim=2) for pair in zip((key, value), learned, strict=True))
    if given["add_zero_attn"]:
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
