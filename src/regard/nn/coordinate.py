"""Coordinate attention (Hou et al. 2021): a gate for each row and one for each column, so that it knows where.

    r = mean of x over the width,  (c, h);   k = mean of x over the height,  (c, w)
    [r', k'] = hard_swish(bn(W1 [r, k]));    y[i, j] = x[i, j] * sigmoid(Wh r'_i) * sigmoid(Ww k'_j)

Squeeze-and-excitation with the places kept along one axis at a time. O(h w c) time: four passes over the image;
O((h + w) c) memory beside one image for the backward. No order of tokens, no padding.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._gating import Activation, Gate, Pointwise, activation_named, checked_image, gate_named, mean


class CoordinateAttention(nn.Module):
    """Gates for rows and columns (Hou, Zhou, Feng 2021).

    Weights have the names and shapes of timm's CoordAttn.

    Args:
        channels: of the image.
        reduction: channels for each hidden unit; there are at least 8, as in the authors' code.
        hidden: the number of hidden units, instead of max(8, channels // reduction).
        activation: between the projections; "hard_swish" in the paper.
        gate: "sigmoid" or "hard_sigmoid".
        bias: of the projections.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Hou, Zhou, Feng 2021, Coordinate Attention for Efficient Mobile Network Design",
        equation="y[i, j] = x[i, j] * sigmoid(Wh f_i) * sigmoid(Ww f_j), f = hard_swish(bn(W1 means of rows, columns))",
        time="O(h w c + (h + w) c^2 / r): four passes over the image",
        memory="O((h + w) c), and one image for the backward",
        causal=None,
        padding=None,
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        hidden: int | None = None,
        activation: Activation = "hard_swish",
        gate: Gate = "sigmoid",
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels, reduction=reduction)
        width = max(8, channels // reduction) if hidden is None else hidden
        require_positive(hidden=width)
        self.channels = channels
        self.activation = activation_named(activation)
        self.gate = gate_named(gate)
        self.conv1 = Pointwise(channels, width, bias=bias, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(width, device=device, dtype=dtype)
        self.conv_h = Pointwise(width, channels, bias=bias, device=device, dtype=dtype)
        self.conv_w = Pointwise(width, channels, bias=bias, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        height = image.shape[2]
        rows, columns = mean(image, (3,)), mean(image, (2,))  # (batch, channels, height, 1), (..., 1, width)
        along = torch.cat((rows, columns.transpose(2, 3)), dim=2)  # (batch, channels, height + width, 1)
        features = self.activation(self.bn1(self.conv1(along)))
        of_row = self.gate(self.conv_h(features[:, :, :height]))
        of_column = self.gate(self.conv_w(features[:, :, height:].transpose(2, 3)))
        gated = image * of_row
        # Where nothing is recorded the product is nobody else's: the second goes into it, and no new pages are asked.
        return gated * of_column if gated.requires_grad else gated.mul_(of_column)
