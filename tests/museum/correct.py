"""Attention that does what it says, in many forms: an audit must raise no alarm on any of them."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from regard import positions
from regard.masks import (
    BigBird,
    Blocks,
    Causal,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    Padding,
    PrefixLM,
    SlidingWindow,
)
from tests.museum.plain import causal, not_before, softmax_attention
from tests.nn.timm_layers import layer


@dataclass(frozen=True)
class Correct:
    """One attention and what it rightly claims. `options` say how it is probed."""

    target: Callable[[], Any]
    declared: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _with_sink(query: Tensor, key: Tensor, value: Tensor, *, sinks: Tensor, allowed: Tensor) -> Tensor:
    """gpt-oss: a logit for each head joins the softmax, and its column is left out of the sum over values."""
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(~allowed, -math.inf)
    column = sinks.to(scores)[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value


def _capped(query: Tensor, key: Tensor, value: Tensor, *, cap: float, scale: float) -> Tensor:
    scores = torch.tanh(query @ key.mT * scale / cap) * cap
    return scores.masked_fill(~causal(*scores.shape[-2:]), torch.finfo(scores.dtype).min).softmax(-1) @ value


def _alibi(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Press et al.'s slopes for 4 heads, causal."""
    slopes = torch.tensor([2.0 ** (-2 * head) for head in range(1, 5)])
    distance = torch.arange(key.shape[2])[None] - torch.arange(query.shape[2])[:, None]
    scores = query @ key.mT / math.sqrt(query.shape[-1]) + (slopes[:, None, None] * distance).to(query)
    return scores.masked_fill(distance > 0, -math.inf).softmax(-1) @ value


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    return softmax_attention(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


def _decoding(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q_len, kv_len = query.shape[2], key.shape[2]
    return softmax_attention(query, key, value, causal(q_len, kv_len, offset=kv_len - q_len))


def _block_by_block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, four keys at a time, with a running maximum and sum, as flash attention goes."""
    q_len, kv_len = query.shape[2], key.shape[2]
    total = query.new_zeros(*query.shape[:3], 1)
    output, peak = torch.zeros_like(query[..., :1]).expand(*query.shape[:3], value.shape[3]), total - math.inf
    allowed = causal(q_len, kv_len)
    for start in range(0, kv_len, 4):
        some = slice(start, start + 4)
        scores = (query @ key[:, :, some].mT / math.sqrt(query.shape[-1])).masked_fill(~allowed[:, some], -math.inf)
        higher = torch.maximum(peak, scores.amax(-1, keepdim=True))
        kept = (peak - higher).exp()
        weights = (scores - higher).exp()
        total, output, peak = (
            total * kept + weights.sum(-1, keepdim=True),
            output * kept + weights @ value[:, :, some],
            higher,
        )
    return output / total


class _Timm(nn.Module):
    """timm's Attention with a projection that hands on what it is given: query, key and value side by side."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.inner = layer("attention").Attention(dim=64, num_heads=4, qkv_bias=False).eval()
        self.inner.qkv, self.inner.proj = nn.Identity(), nn.Identity()
        self.inner.fused_attn = fused

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        joined = torch.cat([tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)], dim=-1)
        return self.inner(joined).unflatten(2, (4, 16)).transpose(1, 2)


class _Stub(nn.Module):
    """What Hugging Face's attention functions read of the layer that calls them."""

    def __init__(self, *, is_causal: bool, groups: int = 1, sinks: Tensor | None = None) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, groups
        self.sinks = sinks


def _hugging_face(name: str, module: nn.Module, **more: Any) -> Callable[..., Tensor]:
    """A function of transformers: "integrations.sdpa_attention:sdpa_attention_forward", with the layer as given."""
    from importlib import import_module

    where, _, what = name.partition(":")
    function = getattr(import_module(f"transformers.{where}"), what)

    def attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        keywords = {"scaling": query.shape[-1] ** -0.5, "dropout": 0.0, **more}
        if attention_mask is not None and more.get("additive"):
            low = torch.finfo(query.dtype).min
            attention_mask = torch.zeros(attention_mask.shape, dtype=query.dtype).masked_fill(~attention_mask, low)
        keywords.pop("additive", None)
        return function(module.eval(), query, key, value, attention_mask, **keywords)[0].transpose(1, 2)

    return attend


def _flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def score(found: Tensor, _b: Tensor, _h: Tensor, row: Tensor, col: Tensor) -> Tensor:
        return torch.where(col <= row, found, -math.inf)

    with warnings.catch_warnings():
        # Said once in a process, so which test hears it depends on their order.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(query, key, value, score_mod=score)


def _packed(query: Tensor, key: Tensor, value: Tensor, *, lengths: tuple[int, ...]) -> Tensor:
    """Document after document."""
    pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat(
        [softmax_attention(*piece, causal(piece[0].shape[2], piece[0].shape[2])) for piece in pieces], dim=2
    )


def _llama(**more: Any) -> Callable[..., Tensor]:
    return _hugging_face(
        "models.llama.modeling_llama:eager_attention_forward", _Stub(is_causal=True), additive=True, **more
    )


SINKS = torch.tensor([-1.0, 0.0, 0.5, 2.0])
SDPA = "integrations.sdpa_attention:sdpa_attention_forward"
GEMMA = "models.gemma2.modeling_gemma2:eager_attention_forward"
GPT_OSS = "models.gpt_oss.modeling_gpt_oss:eager_attention_forward"
WINDOW = Causal() & SlidingWindow(4, 0)
DECODING = Causal(align="bottom_right")
GROUPED = {"enable_gqa": True}

ANYWHERE: Mapping[str, Mapping[str, Any]] = {
    "window": {"mask": WINDOW},
    "packed and causal": {"mask": Causal() & Documents([5, 4, 3])},
    "a sample that is all padding": {"mask": Padding([12, 7, 0])},
    "grouped, scale": {"scale": 0.5, **GROUPED},
    "a bias and a mask": {"mask": Causal(), "bias": torch.arange(4.0 * 144).sin().view(1, 4, 12, 12)},
    "ALiBi": {"mask": DECODING, "position": positions.ALiBi(4, align="bottom_right")},
    "RoPE": {"mask": Causal(), "position": positions.RoPE(16)},
}
"""What every backend computes."""

CORRECT: Mapping[str, Correct] = {
    **{f"{name}: plain": Correct(lambda name=name: name) for name in ("native", "sdpa", "eager", "auto")},
    **{
        f"{name}: causal": Correct(lambda name=name: name, {"mask": DECODING})
        for name in ("native", "sdpa", "eager", "flex")
    },
    **{
        f"{name}: {what}": Correct(lambda name=name: name, declared)
        for name in ("native", "sdpa", "eager")
        for what, declared in ANYWHERE.items()
    },
    "native: window, grouped, softcap": Correct(lambda: "native", {"mask": WINDOW, "softcap": 20.0, **GROUPED}),
    "native: sink": Correct(lambda: "native", {"mask": DECODING, "sink": SINKS}),
    "eager: sink, softcap": Correct(lambda: "eager", {"mask": Causal(), "sink": SINKS, "softcap": 5.0}),
    "native: a bias": Correct(lambda: "native", {"bias": torch.linspace(-2, 2, 4 * 144).sin().view(1, 4, 12, 12)}),
    "native: T5's bias": Correct(lambda: "native", {"position": positions.T5Bias(4)}),
    "eager: Shaw": Correct(lambda: "eager", {"position": positions.Shaw(16, 4)}),
    "native: padding": Correct(lambda: "native", {"mask": Causal() & Padding([12, 7, 0])}),
    "native: left padding": Correct(lambda: "native", {"mask": Padding([12, 7], side="left")}),
    "native: prefix": Correct(lambda: "native", {"mask": PrefixLM(3)}),
    "native: global tokens": Correct(lambda: "native", {"mask": SlidingWindow(2) | GlobalTokens(2)}),
    "native: dilated": Correct(lambda: "native", {"mask": Dilated(3, 2)}),
    "native: blocks": Correct(lambda: "native", {"mask": Blocks(5)}),
    "native: BigBird": Correct(lambda: "native", {"mask": BigBird(4, window_blocks=1, random_blocks=1)}),
    "native: any mask": Correct(lambda: "native", {"mask": Dense((torch.arange(144) % 5 != 0).view(12, 12))}),
    "native: a scale of its own": Correct(lambda: "native", {"scale": 1.0}),
    "torch: plain": Correct(lambda: "torch"),
    "torch: is_causal": Correct(lambda: "torch", {"mask": Causal()}),
    "torch: bool mask": Correct(lambda: "torch", {"mask": WINDOW}),
    "torch: padding": Correct(lambda: "torch", {"mask": Padding([12, 7])}),
    "torch: float mask": Correct(lambda: "torch", {"bias": torch.linspace(-2, 2, 144).view(1, 1, 12, 12)}),
    "torch: mask and float mask": Correct(
        lambda: "torch", {"mask": Causal(), "bias": torch.linspace(-2, 2, 144).view(1, 1, 12, 12)}
    ),
    "torch: grouped": Correct(lambda: "torch", GROUPED),
    "torch: scale": Correct(lambda: "torch", {"scale": 0.5}),
    "torch: causal baked in": Correct(
        lambda: functools.partial(scaled_dot_product_attention, is_causal=True),
        {"mask": Causal(align="top_left")},
        {"asked": ()},
    ),
    "torch: MultiheadAttention": Correct(lambda: nn.MultiheadAttention(64, 4), {"mask": Causal()}),
    "torch: MultiheadAttention, padding": Correct(lambda: nn.MultiheadAttention(64, 4), {"mask": Padding([12, 7])}),
    "torch: FlexAttention": Correct(lambda: _flex, {"mask": Causal()}, {"asked": ()}),
    "plain: decoding": Correct(lambda: _decoding, {"mask": DECODING}),
    "plain: bool mask": Correct(
        lambda: softmax_attention, {"mask": Causal() & Padding([12, 7])}, {"adapter": {"mask": "allowed"}}
    ),
    "plain: window": Correct(
        lambda: lambda q, k, v: softmax_attention(q, k, v, causal(*_lengths(q, k)) & not_before(*_lengths(q, k), 4)),
        {"mask": WINDOW},
        {"lengths": [(12, 12), (70, 70)]},
    ),
    "plain: grouped": Correct(lambda: _grouped, GROUPED),
    "plain: ALiBi": Correct(lambda: _alibi, {"mask": Causal(), "position": positions.ALiBi(4)}),
    "plain: softcap": Correct(
        lambda: functools.partial(_capped, cap=50.0, scale=0.0625), {"mask": Causal(), "softcap": 50.0, "scale": 0.0625}
    ),
    "plain: sink": Correct(
        lambda: lambda q, k, v: _with_sink(q, k, v, sinks=SINKS, allowed=causal(*_lengths(q, k))),
        {"mask": Causal(), "sink": SINKS},
    ),
    "plain: in bfloat16 inside": Correct(
        lambda: lambda q, k, v: softmax_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).to(q.dtype)
    ),
    "plain: documents": Correct(
        lambda: functools.partial(_packed, lengths=(5, 7)), {"mask": Causal() & Documents([5, 7])}
    ),
    "plain: block by block": Correct(lambda: _block_by_block, {"mask": Causal()}),
    "timm: fused": Correct(lambda: _Timm(fused=True)),
    "timm: not fused": Correct(lambda: _Timm(fused=False)),
    "transformers: sdpa, causal": Correct(
        lambda: _hugging_face(SDPA, _Stub(is_causal=True)), {"mask": Causal()}, {"asked": ()}
    ),
    "transformers: sdpa, mask": Correct(
        lambda: _hugging_face(SDPA, _Stub(is_causal=False)), {"mask": Causal() & Padding([12, 7])}
    ),
    "transformers: sdpa, grouped": Correct(
        lambda: _hugging_face(SDPA, _Stub(is_causal=False, groups=2)), {"mask": DECODING, **GROUPED}
    ),
    "huggingface:sdpa, causal": Correct(lambda: "huggingface:sdpa", {"mask": Causal(), **GROUPED}),
    "huggingface:sdpa, padding": Correct(lambda: "huggingface:sdpa", {"mask": Causal() & Padding([12, 7])}),
    "huggingface:sdpa, padded encoder": Correct(lambda: "huggingface:sdpa", {"mask": Padding([12, 7])}),
    "huggingface:sdpa, window": Correct(lambda: "huggingface:sdpa", {"mask": WINDOW, "scale": 0.5}),
    "huggingface:sdpa, window both ways": Correct(lambda: "huggingface:sdpa", {"mask": SlidingWindow(3)}),
    "huggingface:sdpa, documents": Correct(lambda: "huggingface:sdpa", {"mask": Causal() & Documents([5, 7])}),
    "transformers: eager of Llama": Correct(_llama, {"mask": Causal() & Padding([12, 7])}),
    "transformers: eager of Gemma 2": Correct(
        lambda: _hugging_face(GEMMA, _Stub(is_causal=True), softcap=50.0, additive=True),
        {"mask": WINDOW, "softcap": 50.0},
    ),
    "transformers: eager of gpt-oss": Correct(
        lambda: _hugging_face(GPT_OSS, _Stub(is_causal=True, sinks=SINKS), additive=True),
        {"mask": WINDOW, "sink": SINKS},
    ),
}


def _lengths(query: Tensor, key: Tensor) -> tuple[int, int]:
    return query.shape[2], key.shape[2]
