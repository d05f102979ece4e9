"""The guide's table of hyperparameters as defaults that are checked. The guide's 3.3.

    heads        8 to 16; a small model 4, a large one 16
    scale        sqrt(d_k); when searching for faults 1/sqrt(2 d_k) may be tried
    dropout      0.1 to 0.3; 0.3 early in training, against overfitting (`DropoutSchedule`)
    weights      Xavier: large initial values are to be avoided

The scale in the table is the divisor: scores are multiplied by 1/sqrt(d_k). (The guide's code in 1.1 divides by d_k
itself, against its own text; `MultiHeadAttention` follows the text and the paper.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from regard._errors import ArgumentError
from regard.nn._arguments import require_positive, require_probability
from regard.nn.multihead import MultiHeadAttention

Size = Literal["small", "default", "large"]
Scale = Literal["1/sqrt(d)", "1/sqrt(2d)"]
Language = Literal["en", "zh"]

HEADS: dict[str, int] = {"small": 4, "default": 8, "large": 16}
_FACTOR: dict[str, float] = {"1/sqrt(d)": 1.0, "1/sqrt(2d)": 2.0}


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How a `MultiHeadAttention` is made, by the guide's table.

    Args:
        size: of the model: "small" has 4 heads, "default" 8, "large" 16.
        num_heads: another number of heads.
        scale: "1/sqrt(d)" with d the width of a head, or "1/sqrt(2d)", which makes attention softer.
        dropout_p: chance of dropping a weight, 0.1 to 0.3 by the guide; others are taken, and spoken about in `advice`.
        initialization: "xavier", uniform; the only one there is, and named so that a configuration says it.

    Raises:
        ArgumentError: a value that is none of these.
    """

    size: Size = "default"
    num_heads: int | None = None
    scale: Scale = "1/sqrt(d)"
    dropout_p: float = 0.1
    initialization: Literal["xavier"] = "xavier"

    def __post_init__(self) -> None:
        for name, given, known in (
            ("size", self.size, HEADS),
            ("scale", self.scale, _FACTOR),
            ("initialization", self.initialization, ("xavier",)),
        ):
            if given not in known:
                raise ArgumentError(
                    name, expected=f"one of {', '.join(map(repr, known))}", got=repr(given), do="See the guide's 3.3."
                )
        if self.num_heads is not None:
            require_positive(num_heads=self.num_heads)
        require_probability(dropout_p=self.dropout_p)

    @property
    def heads(self) -> int:
        """The number of heads: `num_heads`, or that of the size."""
        return HEADS[self.size] if self.num_heads is None else self.num_heads

    def scale_of(self, head_dim: int) -> float:
        """The factor of the scores for heads of this width."""
        return 1.0 / math.sqrt(_FACTOR[self.scale] * head_dim)

    def build(self, embed_dim: int, **options: Any) -> MultiHeadAttention:
        """A `MultiHeadAttention` of this width. `options` are further keywords of its constructor.

        Raises:
            ArgumentError: heads that do not divide embed_dim, with no head_dim among the options.
        """
        head_dim = options.get("head_dim") or embed_dim // self.heads
        made: dict[str, Any] = {"dropout_p": self.dropout_p}
        if head_dim:  # heads of no width are refused below
            made["scale"] = self.scale_of(head_dim)
        return MultiHeadAttention(embed_dim, self.heads, **{**made, **options})

    def advice(self, embed_dim: int, language: Language = "en") -> list[str]:
        """Sentences on what this configuration does to a model of this width; none when it is as the guide has it.

        Args:
            embed_dim: width of the model.
            language: "en" for English, "zh" for Chinese.
        """
        require_positive(embed_dim=embed_dim)
        if language not in {"en", "zh"}:
            raise ArgumentError("language", expected="'en' or 'zh'", got=repr(language), do="Take one of these.")
        found = [*_on_heads(embed_dim, self.heads), *_on_dropout(self.dropout_p), *_on_scale(self.scale)]
        return [sentence.en if language == "en" else sentence.zh for sentence in found]


class _Sentence(NamedTuple):
    en: str
    zh: str


def _on_heads(embed_dim: int, heads: int) -> list[_Sentence]:
    if embed_dim % heads:
        near, wider = _divisor_near(embed_dim, heads), math.ceil(embed_dim / heads) * heads
        return [
            _Sentence(
                en=f"{heads} heads do not divide embed_dim {embed_dim}: take {near} heads, or a width of {wider}.",
                zh=f"{heads} 个头不能整除 embed_dim {embed_dim}：请改用 {near} 个头，或把宽度改为 {wider}。",
            )
        ]
    return [*_on_head_width(embed_dim // heads), *_on_head_count(heads)]


def _on_head_width(width: int) -> list[_Sentence]:
    found: list[_Sentence] = []
    if width % 2:
        found.append(
            _Sentence(
                en=f"A head is {width} wide, an odd number: rotary positions need pairs of channels.",
                zh=f"每个头宽 {width}，是奇数：旋转位置编码（RoPE）需要成对的通道。",
            )
        )
    if width % 8:
        wider = math.ceil(width / 8) * 8
        found.append(
            _Sentence(
                en=f"A head is {width} wide, no multiple of 8: tensor cores and vector units want {wider}. "
                "pad_to=8 pads inside, with the same results.",
                zh=f"每个头宽 {width}，不是 8 的倍数：张量核心和向量单元适合 {wider}。pad_to=8 在内部补齐，结果不变。",
            )
        )
    if width < 16:
        found.append(
            _Sentence(
                en=f"A head is only {width} wide: few directions to compare tokens by. Fewer heads are wider.",
                zh=f"每个头只有 {width} 宽：可供比较的方向太少。减少头数可以让每个头更宽。",
            )
        )
    return found


def _on_head_count(heads: int) -> list[_Sentence]:
    if heads == HEADS["small"] or HEADS["default"] <= heads <= HEADS["large"]:
        return []
    return [
        _Sentence(
            en=f"{heads} heads are not in the guide's table: 4 for small models, 8 to 16 for others.",
            zh=f"{heads} 个头不在指南的表中：小模型用 4 个，其他模型用 8 到 16 个。",
        )
    ]


def _on_dropout(dropout_p: float) -> list[_Sentence]:
    if 0.1 <= dropout_p <= 0.3:
        return []
    return [
        _Sentence(
            en=f"dropout_p {dropout_p:g} is outside the guide's 0.1 to 0.3. It takes 0.3 early, against overfitting.",
            zh=f"dropout_p {dropout_p:g} 超出指南的 0.1 到 0.3。训练初期用 0.3 防止过拟合。",
        )
    ]


def _on_scale(scale: Scale) -> list[_Sentence]:
    if scale == "1/sqrt(d)":
        return []
    return [
        _Sentence(
            en="1/sqrt(2d) makes attention softer than models are trained with: take it for experiments only.",
            zh="1/sqrt(2d) 会让注意力比常规训练时更平滑：适合调试，不适合已训练好的权重。",
        )
    ]


def _divisor_near(embed_dim: int, heads: int) -> int:
    """The divisor of embed_dim that is closest to the number of heads; the smaller of two."""
    divisors = [number for number in range(1, embed_dim + 1) if embed_dim % number == 0]
    return min(divisors, key=lambda number: (abs(number - heads), number))
