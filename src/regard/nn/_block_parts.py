"""What the blocks and stacks of `transformer.py` are made from: their keywords, residual connections and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.nn._dropout import Dropout
from regard.nn._multihead_parts import Norm
from regard.nn._output_gate import GateOf
from regard.nn.feed_forward import Activation, FeedForward
from regard.positions import Position

Positions = Position | Callable[[], Position] | None
"""None, one that all layers share, or what makes one for each layer."""


class BlockOptions(TypedDict, total=False):
    """Keywords of every block and stack.

    dim_feedforward: hidden width of the feed-forward network, 4 * embed_dim unless given.
    activation: of `FeedForward`: "relu" (unless given), "gelu", "squared_relu" or "swiglu".
    norm: "layer" for LayerNorm (unless given), or "rms" for RMSNorm, which T5 and Llama have.
    norm_first: the norm before what it wraps (True unless given) or after the sum.
    layer_norm_eps: added to the variance, or to the mean square.
    dropout_p: chance of dropping attention weights, hidden numbers, and what a residual connection adds.
    bias: have additive vectors in projections and norms (RMSNorm has none).
    The rest is as in `MultiHeadAttention`.
    """

    dim_feedforward: int | None
    activation: Activation
    norm: Norm
    norm_first: bool
    layer_norm_eps: float
    dropout_p: float
    bias: bool
    kv_heads: int | None
    head_dim: int | None
    softcap: float | None
    sink: bool
    qk_norm: Norm | None
    gate: GateOf | None
    scale: float | None
    pad_to: int
    backend: str
    device: torch.device | str | None
    dtype: torch.dtype | None


_OF_BLOCK = ("dim_feedforward", "activation", "norm", "norm_first", "layer_norm_eps")


class Residual(nn.Module):
    """A residual connection with its norm: x + f(norm(x)), or norm(x + f(x)) with norm_first=False."""

    def __init__(self, embed_dim: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm_first = options.get("norm_first", True)
        self.norm = norm(embed_dim, options)
        self.dropout = Dropout(options.get("dropout_p", 0.0))

    def forward(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """See the class; x is (batch, length, embed_dim)."""
        if self.norm_first:
            return x + self.dropout(function(self.norm(x)))
        return self.norm(x + self.dropout(function(x)))

    def extra_repr(self) -> str:
        return f"norm_first={self.norm_first}"


def of_attention(options: BlockOptions) -> dict[str, Any]:
    return {name: given for name, given in options.items() if name not in _OF_BLOCK}


def feed_forward(embed_dim: int, options: BlockOptions) -> FeedForward:
    return FeedForward(
        embed_dim,
        options.get("dim_feedforward"),
        activation=options.get("activation", "relu"),
        bias=options.get("bias", True),
        dropout_p=options.get("dropout_p", 0.0),
        device=options.get("device"),
        dtype=options.get("dtype"),
    )


def norm(embed_dim: int, options: BlockOptions) -> nn.Module:
    kind, eps = options.get("norm", "layer"), options.get("layer_norm_eps", 1e-5)
    made: dict[str, Any] = {"device": options.get("device"), "dtype": options.get("dtype")}
    if kind == "rms":
        return nn.RMSNorm(embed_dim, eps=eps, **made)
    if kind != "layer":
        raise ArgumentError("norm", expected="'layer' or 'rms'", got=repr(kind), do="Name one of these.")
    return nn.LayerNorm(embed_dim, eps=eps, bias=options.get("bias", True), **made)


def final_norm(embed_dim: int, options: BlockOptions) -> nn.Module:
    return norm(embed_dim, options) if options.get("norm_first", True) else nn.Identity()


def positions_of(position: Positions, count: int) -> list[Position | None]:
    if position is None or isinstance(position, Position):
        return [position] * count
    return [position() for _ in range(count)]
