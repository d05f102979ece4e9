"""The feed-forward half of a Transformer block: each token by itself.

Vaswani et al. 2017, section 3.3:  W2 relu(W1 x + b1) + b2; with gelu in BERT and GPT, with
relu(x)^2 in Primer (So et al. 2021, https://arxiv.org/abs/2109.08668) and Flamingo. "swiglu" is the gated form of
Shazeer 2020, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202:  W2 (silu(W x) * V x), where one
matrix holds W and V; it has half as many weights again for the same hidden width.
Cost: 2 n d h multiply-adds (3 n d h gated), memory n h.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError
from regard.nn._arguments import require_positive, require_probability
from regard.nn._dropout import Dropout
from regard.nn._linear_map import LinearMap

Activation = Literal["relu", "gelu", "squared_relu", "swiglu"]
_ACTIVATIONS = ("relu", "gelu", "squared_relu", "swiglu")


class FeedForward(nn.Module):
    """(batch, length, embed_dim) to the same, through a hidden width.

    Args:
        embed_dim: width of the tokens.
        dim_feedforward: the hidden width; 4 * embed_dim unless given.
        activation: "relu", "gelu", "squared_relu" or "swiglu".
        bias: have additive vectors.
        dropout_p: chance of dropping a hidden number, in training only.

    Raises:
        ArgumentError: a width below 1, an unknown activation, a dropout_p that is no probability.
    """

    def __init__(
        self,
        embed_dim: int,
        dim_feedforward: int | None = None,
        *,
        activation: Activation = "relu",
        bias: bool = True,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = 4 * embed_dim if dim_feedforward is None else dim_feedforward
        require_positive(embed_dim=embed_dim, dim_feedforward=width)
        require_probability(dropout_p=dropout_p)
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise ArgumentError("activation", expected=f"one of {known}", got=repr(activation), do="Name one of these.")
        self.activation: Activation = activation
        inner = 2 * width if activation == "swiglu" else width
        self.inner = LinearMap(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.outer = LinearMap(width, embed_dim, bias=bias, device=device, dtype=dtype)
        self.dropout = Dropout(dropout_p)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, biases 0."""
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - bias=False
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.outer(self.dropout(self._activated(self.inner(x))))

    def _activated(self, hidden: Tensor) -> Tensor:
        if self.activation == "relu":
            return functional.relu(hidden)
        if self.activation == "gelu":
            return functional.gelu(hidden)
        if self.activation == "squared_relu":
            return functional.relu(hidden).square()
        gate, linear = hidden.chunk(2, -1)
        return functional.silu(gate) * linear

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
