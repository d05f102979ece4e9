"""What a report warns of, in plain words, in English and Chinese."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Warning_ = dict[str, Any]

_TEXTS: dict[str, tuple[str, str]] = {
    "causal_leak": (
        (
            "{layers}: a token sees tokens that come after it, though this is a decoder. What it learned to predict "
            "it was shown."
        ),
        "{layers}：词元能看到它后面的词元，而这是解码器。它要预测的内容已经被它看到了。",
    ),
    "future_reaches_past": (
        "Changing the last token changes the model's outputs for earlier ones: information flows back in time.",
        "改变最后一个词元会改变前面词元的输出：信息在时间上倒流。",
    ),
    "padding_attended": (
        "{layers}: real tokens attend to padding. The same text gives other results in a batch than alone.",
        "{layers}：真实词元关注了填充词元。同一文本在批次中与单独运行时结果不同。",
    ),
    "window_ignored": (
        "{layers}: the settings declare a window of {window} tokens, but attention reaches further back.",
        "{layers}：设置声明了 {window} 个词元的窗口，但注意力看得更远。",
    ),
    "window_not_seen": (
        "{layers}: the declared window of {window} tokens is longer than this text, so it could not be checked.",
        "{layers}：声明的窗口（{window} 个词元）比此文本长，无法检验。",
    ),
    "mask_differs": (
        "{layers}: the model asked for '{declared}', what the layer does is '{found}'.",
        "{layers}：模型要求的是“{declared}”，该层实际做的是“{found}”。",
    ),
    "quadratic_memory": (
        (
            "{layers}: at {length} tokens, one such layer's attention takes about {size} under {backend}, and four "
            "times as much at twice the length."
        ),
        "{layers}：在 {length} 个词元时，{backend} 下单层注意力约需 {size}；长度加倍则为四倍。",
    ),
    "weights_unexplained": (
        "{layers}: no weights are shown, because {reason}",
        "{layers}：不显示权重，因为 {reason}",
    ),
    "not_finite": (
        "{layers}: the scores or weights hold NaN or Inf.",
        "{layers}：分数或权重含有 NaN 或 Inf。",
    ),
    "not_probed": (
        "{layers}: the mask could not be probed; what is shown is what the layer was told.",
        "{layers}：无法探测掩码；所示为该层被告知的掩码。",
    ),
    "no_attention": (
        "No attention was seen. The model computes it in a way that regard does not know, or has none.",
        "没有看到注意力。该模型以 regard 不认识的方式计算注意力，或者没有注意力。",
    ),
    "missed": (
        "An attention call was seen but not understood, and is left out: {reason}",
        "看到一次注意力调用但无法理解，已略去：{reason}",
    ),
    "note": ("Note: {reason}.", "说明：{reason}。"),
}


def warning(code: str, layers: Sequence[int] = (), **facts: object) -> Warning_:
    """One warning about these layers (none: the whole model)."""
    english, chinese = _TEXTS[code]
    return {
        "code": code,
        "layer": layers[0] if layers else None,
        "layers": list(layers),
        "message": english.format(layers=_named(layers, "layer ", "layers ", ", "), **facts),
        "message_zh": chinese.format(layers=_named(layers, "第 ", "第 ", "、", " 层"), **facts),
    }


def _named(layers: Sequence[int], one: str, many: str, between: str, after: str = "") -> str:
    """The layers by number: layer 3; layers 0-5, 7."""
    spans = [str(first) if first == last else f"{first}-{last}" for first, last in _spans(layers)]
    return f"{one if len(layers) == 1 else many}{between.join(spans)}{after}"


def _spans(layers: Iterable[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer - 1:
            spans[-1] = (spans[-1][0], layer)
        else:
            spans.append((layer, layer))
    return spans


def as_size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit in ("B", "KiB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
