"""Gates that control what attention lets through. The guide's 4.2.

Two of them, which have little in common but the sigmoid (a third, the forget gate, is in `forgetting.py`):

    GatedAttention         c = Attention(x, context),  g = sigmoid([x; c] W + b),  output = g * x + (1 - g) * c
    OutputGatedAttention   output = (Attention(x) * sigmoid(x Wg)) Wo

The first is the guide's convex gate. Its code has no scale, no mask and no projections; here all three are there and
can be left out. The second is the gate that Qiu et al. 2025, https://arxiv.org/abs/2505.06708, found best of some
thirty: after the softmax, before the output projection, made from the token that asks (Qwen3-Next has it; with grouped
queries and a cache it is `MultiHeadAttention(gate=...)`).

Cost: that of attention, time n^2 d for self-attention and memory n d, and the gate's own projection: 2 n d^2 for the
first, n d^2 or n d H for the second. Both are causal-valid (`causal=True`) and padding-valid (`mask=Padding(lengths)`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard.masks import Causal, Mask
from regard.nn._arguments import check_tokens, require_heads, require_probability
from regard.nn._card import Card
from regard.nn._linear_map import linear
from regard.nn._output_gate import GateOf, gate_map, output_gate, through_gate
from regard.nn._projections import HeadProjections
from regard.nn._token_masks import both, token_mask
from regard.positions import Position


class GatedAttention(nn.Module):
    """The guide's gate: each channel of each token keeps itself or takes what attention found.

    Args:
        embed_dim: width of a token.
        num_heads: heads of attention, a divisor of embed_dim.
        bias: have the projections of attention a bias? The gate always has one.
        projections: project to query, key, value and back. Without them the tokens themselves are compared and mixed,
            as in the guide's code.
        scale: factor of the dot products; 1 / sqrt(head_dim) unless given.
        dropout_p: probability of dropping an attention weight while training.
        causal: may no token see a later one?
        backend: who computes, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `gate`, a Linear from 2 * embed_dim to embed_dim, and `projections` (`HeadProjections`).

    Raises:
        ArgumentError: heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    card: ClassVar[Card] = Card(
        guide="4.2",
        source="the guide's GatedAttention, with scale, mask and projections",
        equation="g x + (1 - g) c, g = sigmoid([x; c] W + b), c = softmax(scale Q K^T) V; m keys",
        time="n m d + 6 n d^2",
        memory="(n + m) d",
        causal=True,
        padding=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        bias: bool = True,
        projections: bool = True,
        scale: float | None = None,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_heads(embed_dim, num_heads)
        require_probability(dropout_p=dropout_p)
        self.embed_dim, self.num_heads, self.scale = embed_dim, num_heads, scale
        self.dropout_p, self.causal, self.backend = dropout_p, causal, backend
        self.gate = gate_map(2 * embed_dim, embed_dim, device=device, dtype=dtype)
        self.projections: HeadProjections | None = None
        if projections:
            self.projections = HeadProjections(embed_dim, num_heads, bias=bias, device=device, dtype=dtype)

    @classmethod
    def as_in_the_guide(cls, embed_dim: int) -> GatedAttention:
        """The guide's code to the letter: one head, no scale, no projections. Its `gate.0` is `gate` here."""
        return cls(embed_dim, projections=False, scale=1.0)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        return_gate: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend to the context and mix what was found with x.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, context_length, embed_dim); x itself when left out.
            mask: which pairs may attend. A token that may attend to nothing finds 0 (through the output projection).
            return_gate: also give the gate: near 1 a channel keeps x, near 0 it takes what was found.

        Returns:
            (batch, length, embed_dim), and the gate of the same shape where it is asked for.

        Raises:
            ShapeError: x or context are of other shapes.
            MaskError: the mask does not fit them.
        """
        check_tokens("x", x, self.embed_dim)
        if context is not None:
            check_tokens("context", context, self.embed_dim)
        found = self._attended(x, context, mask)
        gate = self._gate_of(x, found)
        mixed = torch.lerp(found.to(x.dtype), x, gate.to(x.dtype))  # which autocast makes of another dtype than x
        return (mixed, gate) if return_gate else mixed

    def _attended(self, x: Tensor, context: Tensor | None, mask: Mask | Tensor | None) -> Tensor:
        heads = self.projections
        if heads is not None:
            query, key, value = heads.to_heads(x, context)
        else:
            query = self._apart(x)
            key = value = query if context is None else self._apart(context)
        found = attention(
            query,
            key,
            value,
            mask=_masked(mask, query, key, causal=self.causal),
            scale=self.scale,
            dropout_p=self.dropout_p if self.training else 0.0,
            backend=self.backend,
        )
        return _joined(found) if heads is None else heads.from_heads(found)

    def _apart(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, self.embed_dim // self.num_heads).transpose(1, 2)

    def _gate_of(self, x: Tensor, found: Tensor) -> Tensor:
        """The linear map of [x; found], as the sum of two: nothing is copied side by side."""
        weight = self.gate.weight
        of_x, of_found = weight[:, : self.embed_dim], weight[:, self.embed_dim :]
        return torch.sigmoid(linear(x, of_x, self.gate.bias) + linear(found, of_found))

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, scale={self.scale}, causal={self.causal}"


class OutputGatedAttention(nn.Module):
    """Attention whose heads are gated by the token that asks, before the output projection.

    Args:
        embed_dim: width of a token.
        num_heads: heads of attention, a divisor of embed_dim.
        gate: "element": a gate for each channel of each head; "head": one for each head.
        bias: have the projections and the gate a bias?
        position: how distance changes scores: a `regard.positions` module.
        dropout_p: probability of dropping an attention weight while training.
        causal: may no token see a later one?
        backend: who computes, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `gate_proj`, a Linear from embed_dim to embed_dim or num_heads, and `projections` (`HeadProjections`).

    Raises:
        ArgumentError: heads that do not divide embed_dim, a probability beyond 0 to 1, an unknown gate.
    """

    card: ClassVar[Card] = Card(
        guide="4.2",
        source="Qiu et al. 2025, Gated Attention for Large Language Models, arXiv:2505.06708 (G1)",
        equation="(softmax(Q K^T / sqrt(d / H)) V * sigmoid(x Wg)) Wo; m keys",
        time="n m d + 5 n d^2",
        memory="(n + m) d",
        causal=True,
        padding=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        gate: GateOf = "element",
        bias: bool = True,
        position: Position | None = None,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.gate, self.position = embed_dim, gate, position
        self.projections = HeadProjections(
            embed_dim, num_heads, bias=bias, dropout_p=dropout_p, causal=causal, backend=backend, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.gate_proj = output_gate(
            gate, embed_dim, num_heads, self.projections.head_dim, bias=bias, device=device, dtype=dtype
        )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        return_gate: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend, and let through what the gate of each query lets through.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, context_length, embed_dim); x itself when left out.
            mask: which pairs may attend. A token that may attend to nothing gets the output projection of 0.
            return_gate: also give the gate, each number from 0 to 1.

        Returns:
            (batch, length, embed_dim), and where it is asked for the gate, (batch, length, embed_dim) in the order of
            the heads, or (batch, length, num_heads).

        Raises:
            ShapeError: x or context are of other shapes.
            MaskError: the mask does not fit them.
        """
        check_tokens("x", x, self.embed_dim)
        if context is not None:
            check_tokens("context", context, self.embed_dim)
        heads = self.projections
        query, key, value = heads.to_heads(x, context)
        found = attention(
            query,
            key,
            value,
            mask=_masked(mask, query, key, causal=heads.causal),
            position=self.position,
            dropout_p=heads.dropout_now,
            backend=heads.backend,
        )
        gate = torch.sigmoid(self.gate_proj(x))
        output = heads.from_heads(through_gate(gate, found))
        return (output, gate) if return_gate else output

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}"


def _joined(heads: Tensor) -> Tensor:
    """(batch, heads, length, head_dim) to (batch, length, embed_dim)."""
    return heads.transpose(1, 2).flatten(2)


def _masked(mask: Mask | Tensor | None, query: Tensor, key: Tensor, *, causal: bool) -> Mask | None:
    asked = token_mask(mask, batch=query.shape[0], q_len=query.shape[2], kv_len=key.shape[2])
    return both(Causal() if causal else None, asked)
