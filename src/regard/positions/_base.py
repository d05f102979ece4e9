"""What a position is: how distance changes scores or vectors.

Every position of the guide's 2.1 and of the papers after it is a sum of at most four terms, each a
function of the signed distance `key position - query position` (or of the position itself):

    rotation   query and key vectors are turned by their position          (RoPE)
    bias       a number for each head and distance is added to the score   (ALiBi, T5, continuous)
    content    a vector for each distance is matched with the query        (Shaw's keys, Transformer-XL)
    value      a vector for each distance is added to the output           (Shaw's values)

With q' = rotate(q), k' = rotate(k) and d_ij = position of key j - position of query i, a backend computes

    score_ij = softcap( scale * ( content_query(q')_i . k'_j + distance_scores(q')_i[d_ij] ) ) + distance_bias[d_ij]
    out_i    = sum_j weight_ij ( v_j + distance_values[d_ij] )

where distance_scores(q') = distance_query(q') . distance_keys[d]: a kernel that meets a few distances at a time
asks for the two factors.

It reads `terms` to know what it must honour, and refuses what it cannot. Tables are over the distances
of a problem, q_len + kv_len - 1 of them, and never over pairs.

Dtypes: `rotate` and `content_query` answer in the dtype of the states, `distance_bias` and
`distance_values` in that of the parameters, `distance_query` and `distance_scores` in the wider of the two,
`distance_keys` in the dtype it is asked for, which is that of the parameters when nothing is said.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from regard._errors import ShapeError
from regard.positions._arguments import check_choice, check_count

Align = Literal["top_left", "bottom_right"]
Term = Literal["rotation", "bias", "content", "value"]


class Position(nn.Module, ABC):
    """How distance changes scores or vectors. Learnable tables are parameters and get gradients.

    `heads` is the number of query heads the tables were made for, or None when every head shares one.
    `align` says which query stands beside which key when q_len != kv_len: "top_left" puts query 0 beside
    key 0, "bottom_right" puts the last query beside the last key (decoding with a cache).
    """

    heads: int | None
    align: Align | None

    def __init__(self, *, heads: int | None = None, align: Align | None = None) -> None:
        super().__init__()
        check_choice(type(self).__name__, "align", align, (None, "top_left", "bottom_right"))
        self.heads = None if heads is None else check_count(type(self).__name__, "heads", heads)
        self.align = align

    @property
    @abstractmethod
    def terms(self) -> frozenset[Term]:
        """Which of the four terms this position has."""

    def check(self, *, heads: int, head_dim: int, value_dim: int, q_len: int, kv_len: int) -> None:
        """Raise ShapeError when this position cannot be used for such a problem."""
        if self.heads is not None and self.heads != heads:
            raise ShapeError(
                f"{type(self).__name__} heads",
                expected=f"{heads}, as query has",
                got=str(self.heads),
                do="Build the position with the number of query heads.",
            )
        if q_len != kv_len and self.align is None:
            raise ShapeError(
                f"{type(self).__name__} with q_len != kv_len",
                expected="align='top_left' or align='bottom_right'",
                got=f"no align, with q_len {q_len} and kv_len {kv_len}",
                do="Say align='bottom_right' when the queries are the last ones (a KV cache), else 'top_left'.",
            )

    def query_positions(self, q_len: int, kv_len: int, *, device: torch.device | None = None) -> Tensor:
        """Absolute position of each query, int64 (q_len,); keys stand at 0 .. kv_len - 1."""
        offset = kv_len - q_len if self.align == "bottom_right" else 0
        return torch.arange(q_len, device=device) + offset

    def rotate(self, states: Tensor, positions: Tensor, *, length: int | None = None) -> Tensor:
        """rotation: turn (batch, heads, length, head_dim) by `positions` (length,).

        `length` is that of the whole text, by default the largest of `positions` + 1. Whoever rotates only
        some rows of it says `length=kv_len`, since a few rotations depend on it (see `rope_scaling`).
        """
        return states

    def distance_bias(self, distance: Tensor) -> Tensor:
        """bias: (heads or 1, n) for int64 distances (n,), to be added to the scaled, capped score."""
        raise TypeError(f"{type(self).__name__} has no bias term")

    def content_query(self, query: Tensor) -> Tensor:
        """content: the query that meets the keys themselves, (batch, heads, q_len, head_dim)."""
        return query

    def distance_query(self, query: Tensor) -> Tensor:
        """content: the query that meets the distances, (batch, heads, q_len, head_dim)."""
        raise TypeError(f"{type(self).__name__} has no content term")

    def distance_keys(self, distance: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """content: (heads or 1, n, head_dim), the vector of each int64 distance (n,).

        It is computed in `dtype`, by default that of the parameters. Whoever works in a wider one says so:
        a sinusoid that was rounded to half precision before it met a float32 query is another sinusoid.
        """
        raise TypeError(f"{type(self).__name__} has no content term")

    def distance_scores(self, query: Tensor, distance: Tensor) -> Tensor:
        """content: (batch, heads, q_len, n), what each query makes of each distance, before the scale."""
        met = self.distance_query(query)
        return met @ self.distance_keys(distance, dtype=met.dtype).mT

    def distance_values(self, distance: Tensor) -> Tensor:
        """value: (n, value_dim), the vector that a pair at this distance adds to the output."""
        raise TypeError(f"{type(self).__name__} has no value term")

    def options(self) -> Mapping[str, object]:
        """What this position was made with, by the names of its constructor; None means not given."""
        return {"heads": self.heads, "align": self.align}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items() if value is not None)
