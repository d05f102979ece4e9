"""Shapes that are multiples of 8 or 16, as tensor cores want them. The guide's 3.2.

    padded, undo = pad_to_multiple(states, 16)      # zeros behind the last channel
    found = undo(work(padded))                      # and off again

Zeros are exact where they meet sums of products only: a longer head_dim of zeros changes no dot product, so long as
the scale stays 1/sqrt(the true width) (`MultiHeadAttention(pad_to=16)` does that inside). They are *not* exact where
a zero counts: along the length of keys (mask the added ones with `Padding`), before a mean, a norm or a softmax.
Cost: one copy of the tensor where something has to be added, none otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from regard._errors import ArgumentError
from regard.nn._arguments import require_positive


@dataclass(frozen=True)
class CutBack:
    """Cuts a dimension back to the size it had before it was padded. Called on any tensor that has the dimension."""

    size: int
    dim: int

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[self.dim] == self.size else tensor.narrow(self.dim, 0, self.size)


class Padded(NamedTuple):
    """What `pad_to_multiple` gives."""

    tensor: Tensor
    undo: CutBack


def pad_to_multiple(tensor: Tensor, multiple: int = 16, dim: int = -1) -> Padded:
    """Zeros at the end of a dimension until its size is a multiple; and what takes them off again.

    Args:
        tensor: any tensor with at least one dimension.
        multiple: 8 or 16 for tensor cores; any whole number of at least 1.
        dim: which dimension grows; negative ones count from the last.

    Returns:
        (padded tensor, undo): the tensor itself when its size is a multiple already. Gradients flow.

    Raises:
        ArgumentError: multiple < 1, or a dimension that the tensor has not.
    """
    require_positive(multiple=multiple)
    if not -tensor.dim() <= dim < tensor.dim():
        raise ArgumentError(
            "dim",
            expected=f"from {-tensor.dim()} to {tensor.dim() - 1} for a tensor of {tensor.dim()} dimensions",
            got=str(dim),
            do="Name a dimension that the tensor has.",
        )
    size = tensor.shape[dim]
    missing = -size % multiple
    undo = CutBack(size, dim)
    if missing == 0:
        return Padded(tensor, undo)
    behind = [0, 0] * ((-dim - 1) % tensor.dim())  # functional.pad counts from the last dimension
    return Padded(functional.pad(tensor, [*behind, 0, missing]), undo)
