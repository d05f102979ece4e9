"""The output gate of attention, between the heads and the output projection.

    output = (concat_h head_h * sigmoid(x Wg + bg)) Wo

x is the token that asks, so that a gate needs nothing of a cache. Element-wise each channel of each head has its
number, head-wise a head has one for all its channels. Qiu et al. 2025, "Gated Attention for Large Language Models",
https://arxiv.org/abs/2505.06708, position G1; Qwen3-Next has the element-wise form.

Cost for n tokens of width d and H heads: n d^2 multiplications element-wise, n d H head-wise; memory n d or n H.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.nn._linear_map import LinearMap

GateOf = Literal["element", "head"]
"""What one number of the gate scales."""


def output_gate(
    gate: GateOf,
    embed_dim: int,
    num_heads: int,
    value_dim: int,
    *,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Linear:
    """The linear map that makes the gate, to num_heads * value_dim or num_heads numbers. Raises ArgumentError."""
    if gate not in {"element", "head"}:
        raise ArgumentError(
            "gate", expected="'element' or 'head'", got=repr(gate), do="Say what one number of the gate scales."
        )
    width = num_heads * value_dim if gate == "element" else num_heads
    return gate_map(embed_dim, width, bias=bias, device=device, dtype=dtype)


def gate_map(
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Linear:
    """A linear map with Xavier-uniform weights and a bias of zero."""
    made = LinearMap(inputs, outputs, bias=bias, device=device, dtype=dtype)
    begin_gate(made)
    return made


def begin_gate(gate: nn.Linear) -> None:
    """The weights as they begin."""
    weight, *bias = gate.parameters()
    nn.init.xavier_uniform_(weight)
    for each in bias:
        nn.init.zeros_(each)


def through_gate(gate: Tensor, heads: Tensor) -> Tensor:
    """Heads (batch, heads, length, width) times their gate (batch, length, heads * width or heads)."""
    batch, length, width = gate.shape
    return heads * gate.reshape(batch, length, heads.shape[1], width // heads.shape[1]).transpose(1, 2)
