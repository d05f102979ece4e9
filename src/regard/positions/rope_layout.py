"""From one RoPE convention to the other: the channels of query and key are put in another order.

Scores do not change when queries and keys are reordered alike, so a model whose q_proj and k_proj are reordered
computes the same with the other style. Biases of the projections and weights of query / key norms go along.

    half_to_interleaved(q_proj.weight, heads=32)     then RoPE(dim, style="interleaved")
    interleaved_to_half(states, axis=-1)             states (batch, heads, length, head_dim)
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard._errors import ShapeError
from regard.positions._arguments import check_count, check_even


def half_to_interleaved(tensor: Tensor, *, heads: int = 1, dim: int | None = None, axis: int = 0) -> Tensor:
    """`tensor` for style="interleaved", from one for style="half".

    Args:
        tensor: a projection's weight (heads * head_dim, embed_dim), its bias, or states.
        heads: heads side by side along `axis`: query heads for q_proj, key heads for k_proj, 1 for states.
        dim: rotated channels of each head, the `dim` of `RoPE`; by default all. The others stay in place.
        axis: where the channels are: 0 for weights and biases, -1 for states.

    Raises:
        ShapeError: the axis is no multiple of heads, or dim is more than a head has.
        ArgumentError: heads < 1, or an odd dim.
    """
    head_dim, dim = _widths("half_to_interleaved", tensor, heads, dim, axis)
    turned = torch.arange(dim, device=tensor.device).reshape(2, dim // 2).T.flatten()
    return _reorder(tensor, turned, heads, head_dim, axis)


def interleaved_to_half(tensor: Tensor, *, heads: int = 1, dim: int | None = None, axis: int = 0) -> Tensor:
    """`tensor` for style="half", from one for style="interleaved"; the inverse of `half_to_interleaved`."""
    head_dim, dim = _widths("interleaved_to_half", tensor, heads, dim, axis)
    turned = torch.arange(dim, device=tensor.device).reshape(dim // 2, 2).T.flatten()
    return _reorder(tensor, turned, heads, head_dim, axis)


def _widths(owner: str, tensor: Tensor, heads: int, dim: int | None, axis: int) -> tuple[int, int]:
    """head_dim and the rotated channels of each head, checked."""
    check_count(owner, "heads", heads)
    size = tensor.shape[axis]
    if size % heads:
        raise ShapeError(
            f"{owner} axis {axis}",
            expected=f"a multiple of heads={heads}",
            got=str(size),
            do="Give the number of heads of this projection; k_proj has the key heads.",
        )
    head_dim = size // heads
    dim = check_even(owner, "dim", head_dim if dim is None else dim)
    if dim > head_dim:
        raise ShapeError(
            f"{owner} dim", expected=f"at most head_dim={head_dim}", got=str(dim), do="Give the dim of the RoPE."
        )
    return head_dim, dim


def _reorder(tensor: Tensor, turned: Tensor, heads: int, head_dim: int, axis: int) -> Tensor:
    """Take the channels of every head in the order `turned`, and those after them as they are."""
    resting = torch.arange(turned.shape[0], head_dim, device=tensor.device)
    starts = torch.arange(heads, device=tensor.device)[:, None] * head_dim
    return tensor.index_select(axis, (starts + torch.cat([turned, resting])).flatten())
