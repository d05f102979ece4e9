"""Transformer-XL's relative position: a sinusoid of the distance, projected and met by the query.

Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
https://arxiv.org/abs/1901.02860, section 3.3:

    score_ij = scale * ( (q_i + u) . k_j + (q_i + v) . W R[i - j] )

R is the sinusoid table of Vaswani et al. over distances; W, u and v are learned. Mind the sign: the paper's
i - j is query - key, the negative of `distance` here. Cost: heads * head_dim * (embed_dim + 2) parameters;
each query meets one vector for each distance. The guide's 2.1 (相对位置编码).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard._errors import ShapeError
from regard.positions._arguments import check_count, check_even, check_number
from regard.positions._base import Align, Position, Term


def sinusoid(steps: Tensor, width: int, base: float) -> Tensor:
    """(n, width) float64: the sines of steps / base^(2c / width), c = 0 .. width / 2 - 1, then the cosines."""
    channels = torch.arange(0, width, 2, dtype=torch.float64, device=steps.device)
    angles = steps.to(torch.float64)[:, None] * torch.pow(base, -channels / width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TransformerXL(Position):
    """Transformer-XL's content and position terms with their global biases u and v.

    Args:
        heads: number of query heads.
        head_dim: width of queries and keys.
        embed_dim: width of the sinusoid, even; by default heads * head_dim, the model's width.
        base: the longest wavelength is 2 pi base.
        align: see `Position`; with Transformer-XL's memory of earlier segments it is "bottom_right".

    Parameters: `projection` W_{k,R} (heads * head_dim, embed_dim), `key_bias` u and `distance_query_bias` v
    (heads, head_dim). u and v begin at zero.

    Raises:
        ArgumentError: a count out of its range, an odd embed_dim, or base <= 1.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        embed_dim: int | None = None,
        base: float = 10000.0,
        align: Align | None = None,
    ) -> None:
        super().__init__(heads=heads, align=align)
        self.head_dim = check_count("TransformerXL", "head_dim", head_dim)
        width = heads * head_dim if embed_dim is None else embed_dim
        self.embed_dim = check_even("TransformerXL", "embed_dim", width)
        self.base = check_number("TransformerXL", "base", base, minimum=1, above=True)
        self.projection = nn.Parameter(nn.init.normal_(torch.empty(heads * head_dim, width), std=0.02))
        self.key_bias = nn.Parameter(torch.zeros(heads, head_dim))
        self.distance_query_bias = nn.Parameter(torch.zeros(heads, head_dim))

    @property
    def terms(self) -> frozenset[Term]:
        return frozenset({"content"})

    def check(self, *, heads: int, head_dim: int, value_dim: int, q_len: int, kv_len: int) -> None:
        """Raise ShapeError also when head_dim is not the one it was built with."""
        super().check(heads=heads, head_dim=head_dim, value_dim=value_dim, q_len=q_len, kv_len=kv_len)
        if self.head_dim != head_dim:
            raise ShapeError(
                "TransformerXL head_dim",
                expected=f"{head_dim}, as query has",
                got=str(self.head_dim),
                do=f"Build the position with head_dim={head_dim}.",
            )

    def content_query(self, query: Tensor) -> Tensor:
        """The sum q + u in the query's dtype: (batch, heads, q_len, head_dim)."""
        return (query + self.key_bias[:, None]).to(query.dtype)

    def distance_query(self, query: Tensor) -> Tensor:
        """The sum q + v in the wider of their dtypes: (batch, heads, q_len, head_dim)."""
        dtype = torch.promote_types(query.dtype, self.projection.dtype)
        return (query + self.distance_query_bias[:, None]).to(dtype)

    def distance_keys(self, distance: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """(heads, n, head_dim): W R[-distance], computed in `dtype`."""
        dtype = dtype or self.projection.dtype
        table = sinusoid(-distance, self.embed_dim, self.base).to(dtype) @ self.projection.to(dtype).T
        return table.reshape(-1, *self.key_bias.shape).transpose(0, 1)

    def options(self) -> Mapping[str, object]:
        names = ("heads", "head_dim", "embed_dim", "base", "align")
        return {name: getattr(self, name) for name in names}
