"""Small torch models that attend in every way that torch offers, each with an input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor, nn

import regard
from regard.masks import Causal

EMBED, HEADS, BATCH, LENGTH = 16, 4, 2, 6


def padding(*lengths: int, length: int = LENGTH) -> Tensor:
    """True = padding, as nn.MultiheadAttention says it."""
    return torch.arange(length)[None] >= torch.tensor(lengths)[:, None]


def future(length: int = LENGTH) -> Tensor:
    """True = may not attend."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on one text."""

    def __init__(self, options: Mapping[str, Any], **made: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(EMBED, HEADS, **{"batch_first": True, **made})
        self.options = options

    def forward(self, states: Tensor) -> Tensor:
        output, weights = self.attention(states, states, states, **self.options)
        return output if weights is None else torch.cat([output.flatten(), weights.flatten()])


class CrossAttention(nn.Module):
    """nn.MultiheadAttention from one text to another of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(EMBED, HEADS, batch_first=True, kdim=12, vdim=20)

    def forward(self, states: Tensor) -> Tensor:
        memory = states.repeat(1, 2, 1)
        return self.attention(states, memory[..., :12], F.pad(memory, (0, 4)), need_weights=False)[0]


class Sdpa(nn.Module):
    """scaled_dot_product_attention on whatever shapes `split` makes."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], **options: Any) -> None:
        super().__init__()
        self.project = nn.Linear(EMBED, 3 * EMBED)
        self.split, self.options = split, options

    def forward(self, states: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.split(self.project(states)), **self.options)


class Regard(nn.Module):
    """regard.attention inside a module."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.project = nn.Linear(EMBED, 3 * EMBED)
        self.position = options.pop("position", None)
        self.options = options

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = four_d(self.project(states))
        return regard.attention(query, key, value, position=self.position, **self.options)


class Translate(nn.Module):
    """nn.Transformer with a causal decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(EMBED, HEADS, 2, 2, 24, batch_first=True)

    def forward(self, states: Tensor) -> Tensor:
        target = states[:, :4].flip(0)
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return self.transformer(states, target, tgt_mask=mask, tgt_is_causal=True)


class Encode(nn.Module):
    """nn.TransformerEncoder with its options."""

    def __init__(self, options: Mapping[str, Any], *, nested: bool = True, **made: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(EMBED, HEADS, 24, batch_first=True, **made)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.options = options

    def forward(self, states: Tensor) -> Tensor:
        return self.encoder(states, **self.options)


class Decode(nn.Module):
    """nn.TransformerDecoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(EMBED, HEADS, 24, batch_first=True), 2)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(states[:, :4], states, tgt_mask=future(4), memory_key_padding_mask=padding(6, 3))


def four_d(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in states.chunk(3, -1))
    return query, key, value


def three_d(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = states.chunk(3, -1)
    return query, key, value


def two_d(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = states[0].chunk(3, -1)
    return query, key, value


def five_d(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.stack([part, part.flip(2)]) for part in four_d(states))
    return query, key, value


def grouped(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = four_d(states)
    return query, key[:, :2], value[:, :2]


def shared_keys(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of the first sample for both, as SDPA broadcasts them."""
    query, key, value = four_d(states)
    return query, key[:1], value[:1]


def longer_keys(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = four_d(states)
    return query[:, :, 2:], key, value


@dataclass(frozen=True)
class Example:
    """A model in the making: how to build it, and how many attention layers it has."""

    make: Callable[[], nn.Module]
    layers: int = 1
    shape: tuple[int, ...] = (BATCH, LENGTH, EMBED)
    facts: Mapping[str, Any] = field(default_factory=dict)


def _self(options: Mapping[str, Any] | None = None, **made: Any) -> Example:
    return Example(lambda: SelfAttention(options or {}, **made))


def _sdpa(split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], **options: Any) -> Example:
    return Example(lambda: Sdpa(split, **options))


def _encode(options: Mapping[str, Any] | None = None, **made: Any) -> Example:
    return Example(lambda: Encode(options or {}, **made), layers=2)


PADDED = {"src_key_padding_mask": padding(6, 3)}
HALF = torch.randn(BATCH, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1))

EXAMPLES: dict[str, Example] = {
    "multihead": _self(),
    "multihead, no weights wanted": _self({"need_weights": False}),
    "multihead, weights of each head": _self({"average_attn_weights": False}),
    "multihead, mask": _self({"attn_mask": future(), "need_weights": False}),
    "multihead, float mask": _self({"attn_mask": HALF[0, 0], "need_weights": False}),
    "multihead, mask of each head": _self({"attn_mask": future().expand(BATCH * HEADS, -1, -1).contiguous()}),
    "multihead, padding": _self({"key_padding_mask": padding(6, 3)}),
    "multihead, padding and mask": _self(
        {"key_padding_mask": padding(6, 3), "attn_mask": future(), "need_weights": False}
    ),
    "multihead, causal": _self({"attn_mask": future(), "is_causal": True, "need_weights": False}),
    "multihead, sequence first": _self({"need_weights": False}, batch_first=False),
    "multihead, without bias": _self(bias=False),
    "multihead, learned extra key": _self({"attn_mask": future()}, add_bias_kv=True),
    "multihead, zero key": _self({"key_padding_mask": padding(6, 3)}, add_zero_attn=True),
    "multihead, one text": Example(lambda: SelfAttention({"attn_mask": future()}), shape=(LENGTH, EMBED)),
    "multihead, dropout": _self(dropout=0.3),
    "multihead, cross": Example(CrossAttention),
    "encoder": _encode(),
    "encoder, normalised first": _encode(norm_first=True),
    "encoder, padding": _encode(PADDED),
    "encoder, padding not nested": _encode(PADDED, nested=False),
    "encoder, mask": _encode({"mask": future()}),
    "encoder, causal": _encode({"mask": future(), "is_causal": True}),
    "encoder, mask and padding": _encode({"mask": future(), **PADDED}, nested=False),
    "encoder, gelu without dropout": _encode(activation="gelu", dropout=0.0),
    "transformer": Example(Translate, layers=6),
    "decoder": Example(Decode, layers=4),
    "sdpa": _sdpa(four_d),
    "sdpa, 2-D": _sdpa(two_d),
    "sdpa, 3-D": _sdpa(three_d, attn_mask=~future()),
    "sdpa, 3-D float mask": _sdpa(three_d, attn_mask=HALF[:, 0]),
    "sdpa, 5-D": _sdpa(five_d, attn_mask=HALF),
    "sdpa, 5-D causal": _sdpa(five_d, is_causal=True),
    "sdpa, causal": _sdpa(four_d, is_causal=True),
    "sdpa, bool mask": _sdpa(four_d, attn_mask=~future()),
    "sdpa, mask of the keys": _sdpa(four_d, attn_mask=~padding(6, 3)[:, None, None]),
    "sdpa, float mask": _sdpa(four_d, attn_mask=HALF),
    "sdpa, empty rows": _sdpa(four_d, attn_mask=torch.zeros(LENGTH, LENGTH, dtype=torch.bool)),
    "sdpa, scale": _sdpa(four_d, scale=0.9),
    "sdpa, grouped": _sdpa(grouped, enable_gqa=True, is_causal=True),
    "sdpa, shared keys": _sdpa(shared_keys),
    "sdpa, more keys than queries": _sdpa(longer_keys, is_causal=True),
    "sdpa, dropout": _sdpa(four_d, dropout_p=0.4),
    "regard": Example(lambda: Regard(mask=Causal(), scale=0.4)),
    "regard, eager with softcap and sink": Example(
        lambda: Regard(backend="eager", softcap=1.5, sink=torch.linspace(-1, 1, HEADS))
    ),
    "regard, Shaw": Example(lambda: Regard(position=regard.positions.Shaw(EMBED // HEADS, 3))),
    "regard, RoPE": Example(lambda: Regard(position=regard.positions.RoPE(EMBED // HEADS), mask=Causal())),
    "regard, with lse": Example(lambda: First(Regard(return_lse=True))),
}


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states)[0]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The model of that name in eval mode and an input; always the same numbers."""
    torch.manual_seed(7)
    example = EXAMPLES[name]
    model = example.make().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model, torch.randn(example.shape)
