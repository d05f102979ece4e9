"""Relative position representations: a learned vector for each clipped distance.

Shaw, Uszkoreit and Vaswani 2018, "Self-Attention with Relative Position Representations",
https://arxiv.org/abs/1803.02155, equations 3 and 4:

    score_ij = scale * q_i . (k_j + aK[clip(j - i)]),   out_i = sum_j weight_ij (v_j + aV[clip(j - i)])

with clip(d) = max(-K, min(K, d)). The tables are shared by the heads, as in the paper's section 3.3.
Cost: (2K + 1) * (head_dim + value_dim) parameters; each query meets 2K + 1 more vectors.
The guide's 2.1 (相对位置编码).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError, ShapeError
from regard.positions._arguments import check_count
from regard.positions._base import Align, Position, Term


class Shaw(Position):
    """Learned vectors for each distance from -max_distance to max_distance, met by queries or added to outputs.

    Args:
        head_dim: width of queries and keys.
        max_distance: K of the paper; further distances are as K. 0 tells no distances apart.
        keys: have aK, `key_table` (2K + 1, head_dim): the content term.
        values: have aV, `value_table` (2K + 1, value_dim): the value term.
        value_dim: width of values when it is not head_dim.
        align: see `Position`.

    Raises:
        ArgumentError: a count out of its range, neither keys nor values, or a value_dim without values.
    """

    key_table: nn.Parameter | None
    value_table: nn.Parameter | None

    def __init__(
        self,
        head_dim: int,
        max_distance: int,
        *,
        keys: bool = True,
        values: bool = True,
        value_dim: int | None = None,
        align: Align | None = None,
    ) -> None:
        super().__init__(align=align)
        self.head_dim = check_count("Shaw", "head_dim", head_dim)
        self.max_distance = check_count("Shaw", "max_distance", max_distance, minimum=0)
        self.value_dim = check_count("Shaw", "value_dim", head_dim if value_dim is None else value_dim)
        if not (keys or values):
            raise ArgumentError(
                "Shaw terms",
                expected="keys=True or values=True",
                got="both False",
                do="Keep one of them, or use no position.",
            )
        if value_dim is not None and not values:
            raise ArgumentError(
                "Shaw value_dim",
                expected="None with values=False",
                got=str(value_dim),
                do="Drop value_dim or say values=True.",
            )
        self.key_table = self._table(self.head_dim) if keys else None
        self.value_table = self._table(self.value_dim) if values else None

    def _table(self, width: int) -> nn.Parameter:
        return nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * self.max_distance + 1, width)))

    @property
    def terms(self) -> frozenset[Term]:
        tables: dict[Term, nn.Parameter | None] = {"content": self.key_table, "value": self.value_table}
        return frozenset(term for term, table in tables.items() if table is not None)

    def check(self, *, heads: int, head_dim: int, value_dim: int, q_len: int, kv_len: int) -> None:
        """Raise ShapeError also when a table has another width than the queries or the values."""
        super().check(heads=heads, head_dim=head_dim, value_dim=value_dim, q_len=q_len, kv_len=kv_len)
        self._check_width("head_dim", self.key_table, head_dim)
        self._check_width("value_dim", self.value_table, value_dim)

    def _check_width(self, name: str, table: nn.Parameter | None, width: int) -> None:
        if table is not None and table.shape[1] != width:
            raise ShapeError(
                f"Shaw {name}",
                expected=f"{width}, as the tensors have",
                got=str(table.shape[1]),
                do=f"Build the position with {name}={width}.",
            )

    def row(self, distance: Tensor) -> Tensor:
        """The row of either table, int64 (n,), for int64 distances (n,)."""
        return distance.clamp(-self.max_distance, self.max_distance) + self.max_distance

    def distance_query(self, query: Tensor) -> Tensor:
        """The query itself, in the wider of its dtype and the table's: (batch, heads, q_len, head_dim)."""
        if self.key_table is None:
            return super().distance_query(query)
        return query.to(torch.promote_types(query.dtype, self.key_table.dtype))

    def distance_keys(self, distance: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """(1, n, head_dim): aK at each distance, which all heads share."""
        if self.key_table is None:
            return super().distance_keys(distance, dtype=dtype)
        return functional.embedding(self.row(distance), self.key_table)[None].to(dtype or self.key_table.dtype)

    def distance_scores(self, query: Tensor, distance: Tensor) -> Tensor:
        """(batch, heads, q_len, n): the query times aK at each distance, before the scale."""
        if self.key_table is None:
            return super().distance_scores(query, distance)
        # Each query meets the 2K + 1 rows once; distances beyond K then only repeat a number.
        query = self.distance_query(query)
        met = query @ self.key_table.to(query.dtype).T
        return met.index_select(-1, self.row(distance))

    def distance_values(self, distance: Tensor) -> Tensor:
        """(n, value_dim): aV at each distance."""
        if self.value_table is None:
            return super().distance_values(distance)
        return functional.embedding(self.row(distance), self.value_table)

    def options(self) -> Mapping[str, object]:
        return {
            "head_dim": self.head_dim,
            "max_distance": self.max_distance,
            "keys": self.key_table is not None,
            "values": self.value_table is not None,
            "value_dim": self.value_dim if self.value_dim != self.head_dim else None,
            "align": self.align,
        }
