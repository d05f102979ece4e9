"""T5's relative bias: one learned number for each head and bucket of distances.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
https://arxiv.org/abs/1910.10683, section 2.1:

    softmax( scale * q_i . k_j + table[bucket(j - i), h] )

Near distances have a bucket each; further ones share buckets whose width grows as a logarithm, up to
`max_distance`, after which all share the last. Cost: buckets * heads parameters. The guide's 2.1 (相对位置编码).

T5 itself attends with scale=1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError, ShapeError
from regard.positions._arguments import check_count
from regard.positions._base import Align, Position, Term


class T5Bias(Position):
    """A learned bias for each head and bucket of distances.

    Args:
        heads: number of query heads.
        buckets: rows of the table; with `bidirectional`, half of them for keys after the query.
        max_distance: every distance from here on falls into the last bucket.
        bidirectional: True for encoders. False: all keys after the query share the bucket of distance 0.
        align: see `Position`; cached decoding needs "bottom_right".

    `table` is (buckets, heads), as `relative_attention_bias.weight` of transformers' T5.

    Raises:
        ArgumentError: a count out of its range, or too few buckets for `max_distance`.
    """

    def __init__(
        self,
        heads: int,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        align: Align | None = None,
    ) -> None:
        super().__init__(heads=heads, align=align)
        self.buckets = check_count("T5Bias", "buckets", buckets, minimum=4 if bidirectional else 2)
        self.max_distance = check_count("T5Bias", "max_distance", max_distance)
        self.bidirectional = bidirectional
        self.first_distances = _first_distances(buckets, max_distance, bidirectional=bidirectional)
        self.table = nn.Parameter(torch.empty(buckets, heads))
        nn.init.normal_(self.table, std=0.02)

    @classmethod
    def from_weight(
        cls, weight: Tensor, *, max_distance: int = 128, bidirectional: bool = True, align: Align | None = None
    ) -> T5Bias:
        """A bias with a copy of `weight` (buckets, heads): `relative_attention_bias.weight` of a T5 checkpoint.

        `max_distance` is the checkpoint's `relative_attention_max_distance`; decoders have `bidirectional=False`.
        """
        if weight.dim() != 2:
            raise ShapeError(
                "T5Bias weight",
                expected="size (buckets, heads)",
                got=f"size {tuple(weight.shape)}",
                do="Give relative_attention_bias.weight as it is in the checkpoint.",
            )
        buckets, heads = weight.shape
        position = cls(heads, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional, align=align)
        position.table = nn.Parameter(weight.detach().clone())
        return position

    @property
    def terms(self) -> frozenset[Term]:
        return frozenset({"bias"})

    def bucket(self, distance: Tensor) -> Tensor:
        """The row of the table, int64 (n,), for int64 distances (n,)."""
        first = torch.tensor(self.first_distances, dtype=distance.dtype, device=distance.device)
        if not self.bidirectional:
            return torch.bucketize((-distance).clamp(min=0), first, right=True)
        after = (distance > 0).to(torch.int64) * (self.buckets // 2)
        return torch.bucketize(distance.abs(), first, right=True) + after

    def distance_bias(self, distance: Tensor) -> Tensor:
        """(heads, n) in the dtype of the table, for int64 distances (n,)."""
        return functional.embedding(self.bucket(distance), self.table).T

    def options(self) -> Mapping[str, object]:
        names = ("heads", "buckets", "max_distance", "bidirectional", "align")
        return {name: getattr(self, name) for name in names}


def _first_distances(buckets: int, max_distance: int, *, bidirectional: bool) -> tuple[int, ...]:
    """The smallest distance of bucket 1, 2, 3 ... on one side of the query.

    The first half of a side's buckets hold one distance each. With e of those and m after them, bucket e + j
    begins where e * (max_distance / e)^(j / m) is reached. That is decided in whole numbers, because a
    floating-point logarithm may fall on either side of a boundary, differently on each device.
    """
    if bidirectional and buckets % 2 == 1:
        raise ArgumentError(
            "T5Bias buckets",
            expected="an even number when bidirectional, half for each side",
            got=str(buckets),
            do=f"Take {buckets + 1} buckets, or bidirectional=False.",
        )
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    wide = side - exact
    if max_distance <= exact:
        raise ArgumentError(
            "T5Bias max_distance",
            expected=f"more than {exact}, the distances that {buckets} buckets tell apart exactly",
            got=str(max_distance),
            do="Take fewer buckets or a larger max_distance.",
        )
    first = list(range(1, exact + 1))
    for step in range(1, wide):
        reach = max_distance**step * exact ** (wide - step)
        first.append(_smallest_root(reach, wide, at_least=first[-1]))
    return tuple(first)


def _smallest_root(reach: int, power: int, *, at_least: int) -> int:
    """The smallest n >= at_least with n^power >= reach."""
    below, enough = at_least - 1, at_least
    while enough**power < reach:
        below, enough = enough, 2 * enough
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (below, middle) if middle**power >= reach else (middle, enough)
    return enough
