"""The four linear maps around attention: to query, key and value, heads apart, and back from the heads.

    query = x Wq + bq,  key = c Wk + bk,  value = c Wv + bv,  output = concat(heads) Wo + bo

(Vaswani et al. 2017, arXiv:1706.03762, 3.2.2.) The weights have the names and the shapes they have in
`torch.nn.MultiheadAttention`, so that its `state_dict` loads here where the widths agree. Time 4 * length * embed_dim^2
multiplications, memory 3 * length * embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from regard._attention import attention
from regard.masks import Mask
from regard.nn._arguments import require_heads, require_probability
from regard.nn._joint_heads import heads_apart
from regard.nn._linear_map import LinearMap, linear


class HeadOptions(TypedDict, total=False):
    """The options of `HeadProjections`, for mechanisms that pass them on."""

    bias: bool
    dropout_p: float
    causal: bool
    backend: str
    output_projection: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class HeadProjections(nn.Module):
    """What mechanisms with heads share: their weights, and how tokens become heads and heads tokens.

    Args:
        embed_dim: width of a token.
        num_heads: heads, a divisor of embed_dim.
        bias: have the four maps a bias?
        dropout_p: probability of dropping an attention weight while training.
        causal: may no token see a later one?
        backend: who computes, as in `regard.attention`.
        output_projection: map the joined heads once more; False gives them as they are.
        device, dtype: of the weights.

    Parameters: `in_proj_weight` (3 * embed_dim, embed_dim), query, key and value on top of each other;
    `in_proj_bias` (3 * embed_dim,); `out_proj`, a Linear. Weights begin Xavier-uniform, biases at zero.

    Raises:
        ArgumentError: heads that do not divide embed_dim, a probability beyond 0 to 1.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        dropout_p: float = 0.0,
        causal: bool = False,
        backend: str = "auto",
        output_projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = require_heads(embed_dim, num_heads)
        require_probability(dropout_p=dropout_p)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.dropout_p, self.causal, self.backend = dropout_p, causal, backend
        self.in_proj_widths = (embed_dim, embed_dim, embed_dim)
        self.in_proj_weight, self.in_proj_bias = stacked_maps(3, embed_dim, bias=bias, device=device, dtype=dtype)
        self.out_proj = LinearMap(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)
        if not output_projection:
            self.out_proj = nn.Identity()

    def to_heads(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query of x, key and value of the context (x where there is none): (batch, heads, length, head_dim) views."""
        if context is None:
            query, key, value = self.apart(linear(x, self.in_proj_weight, self.in_proj_bias), 3)
            return query, key, value
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        (query,) = self.apart(linear(x, weight[:width], None if bias is None else bias[:width]), 1)
        key, value = self.apart(linear(context, weight[width:], None if bias is None else bias[width:]), 2)
        return query, key, value

    def apart(self, projected: Tensor, count: int) -> tuple[Tensor, ...]:
        """(batch, length, count * embed_dim) as `count` views (batch, heads, length, head_dim)."""
        return heads_apart(projected, count, self.num_heads)

    def joined(self, heads: Tensor) -> Tensor:
        """(batch, heads, length, head_dim) to (batch, length, embed_dim), before the last map."""
        return heads.transpose(1, 2).flatten(2)

    def from_heads(self, heads: Tensor) -> Tensor:
        """(batch, heads, length, head_dim) to (batch, length, embed_dim), through the last map."""
        return self.out_proj(self.joined(heads))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask | Tensor | None) -> Tensor:
        """Attention with this module's dropout and backend."""
        return attention(query, key, value, mask=mask, dropout_p=self.dropout_now, backend=self.backend)

    def attend_with_lse(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Mask | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same, and the log of each row's normaliser."""
        return attention(
            query, key, value, mask=mask, dropout_p=self.dropout_now, backend=self.backend, return_lse=True
        )

    def copy_maps(self, maps: Sequence[nn.Linear], output: nn.Linear | None) -> None:
        """Take over the weights of three linear maps to query, key and value, and of the last one where it is given."""
        stack_maps(self.in_proj_weight, self.in_proj_bias, maps)
        if output is not None:
            stack_maps(self.out_proj.weight, self.out_proj.bias, [output])

    @property
    def dropout_now(self) -> float:
        """The probability of dropout of this call: none in evaluation mode."""
        return self.dropout_p if self.training else 0.0

    def extra_repr(self) -> str:
        told = [str(self.embed_dim), str(self.num_heads)]
        told += [f"dropout_p={self.dropout_p}"] if self.dropout_p else []
        return ", ".join(told + (["causal=True"] if self.causal else []))


def stacked_maps(
    count: int, width: int, *, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """`count` square maps on top of each other, each Xavier-uniform, and their bias of zeros."""
    weight = torch.empty(count * width, width, device=device, dtype=dtype)
    for first in range(0, count * width, width):
        nn.init.xavier_uniform_(weight[first : first + width])
    return nn.Parameter(weight), nn.Parameter(weight.new_zeros(count * width)) if bias else None


def stack_maps(weight: object, bias: object, maps: Sequence[nn.Linear]) -> None:
    """Copy linear maps on top of each other into one; a map without a bias has one of zeros."""
    with torch.no_grad():
        if isinstance(weight, Tensor):
            weight.copy_(torch.cat([each.weight for each in maps]))
        if isinstance(bias, Tensor):
            biases: list[Tensor | None] = [each.bias for each in maps]
            zeros = bias.new_zeros(bias.shape[0] // len(maps))
            bias.copy_(torch.cat([zeros if each is None else each for each in biases]))
