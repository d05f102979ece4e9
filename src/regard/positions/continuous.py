"""Continuous relative bias: a small network from the distance to a bias for each head.

Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution", https://arxiv.org/abs/2111.09883,
section 3.3 (log-spaced continuous position bias), here along one axis:

    bias_h(d) = W2 relu(W1 x + b1),   x = sign(d) log(1 + |d|)

Since it is a function and no table, it answers for distances never trained on, and the logarithm keeps these
near those trained on. Cost: hidden * (heads + 2) parameters and one pass of the network for each distance.
The guide's 2.1 (相对位置编码).

Swin V2 also passes the result through 16 * sigmoid; that bound is left out here, as in the paper's equation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.positions._arguments import check_count
from regard.positions._base import Align, Position, Term


class ContinuousBias(Position):
    """A bias for each head, a learned continuous function of the distance.

    Args:
        heads: number of query heads.
        hidden: width of the network.
        log_spaced: feed sign(d) log(1 + |d|); False feeds d itself, in steps.
        align: see `Position`.

    Parameters: `inner_weight` (hidden, 1), `inner_bias` (hidden,), `outer_weight` (heads, hidden).

    Raises:
        ArgumentError: a count out of its range.
    """

    def __init__(self, heads: int, *, hidden: int = 512, log_spaced: bool = True, align: Align | None = None) -> None:
        super().__init__(heads=heads, align=align)
        self.hidden = check_count("ContinuousBias", "hidden", hidden)
        self.log_spaced = log_spaced
        self.inner_weight = nn.Parameter(nn.init.uniform_(torch.empty(hidden, 1), -1.0, 1.0))
        self.inner_bias = nn.Parameter(nn.init.uniform_(torch.empty(hidden), -1.0, 1.0))
        bound = hidden**-0.5
        self.outer_weight = nn.Parameter(nn.init.uniform_(torch.empty(heads, hidden), -bound, bound))

    @property
    def terms(self) -> frozenset[Term]:
        return frozenset({"bias"})

    def distance_bias(self, distance: Tensor) -> Tensor:
        """(heads, n) in the dtype of the parameters, for int64 distances (n,)."""
        # In a half type neighbouring far distances would be one number, so only the result is rounded to it.
        parameter_dtype = self.outer_weight.dtype
        dtype = torch.promote_types(parameter_dtype, torch.float32)
        steps = distance.to(dtype)
        steps = steps.sign() * steps.abs().log1p() if self.log_spaced else steps
        hidden = functional.linear(steps[:, None], self.inner_weight.to(dtype), self.inner_bias.to(dtype))
        return functional.linear(hidden.relu(), self.outer_weight.to(dtype)).T.to(parameter_dtype)

    def options(self) -> Mapping[str, object]:
        names = ("heads", "hidden", "log_spaced", "align")
        return {name: getattr(self, name) for name in names}
