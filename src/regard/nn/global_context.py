"""Global context (Cao et al. 2019, GCNet): one context vector for the whole image, found by attention, given to all.

    a = softmax over places of w . x;   context = sum_j a_j x_j;   mlp = W2 relu(layer_norm(W1 context))
    y = x * sigmoid(mlp(context))  and / or  y = x + mlp(context)

The authors found that in a trained non-local block every query attends to the same places, so one query is enough:
O(n c) time and O(n) memory for n = h w places, where non-local needs O(n^2). No order of tokens, no padding.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.nn._card import Card
from regard.nn._gating import PIXELS, Gate, Pointwise, checked_image, gate_named, hidden_units, mean

Fusion = Literal["add", "scale", "both"]


class GlobalContext(nn.Module):
    """One context vector by attention over all places, added to or multiplied into each (Cao et al. 2019).

    Weights have the names and shapes of timm's GlobalContext. What is added starts as zero, so with fusion="add" the
    module starts as the identity, as the authors' does.

    Args:
        channels: of the image.
        fusion: "add" (the paper's choice), "scale" (timm's default), or "both", the scaling first.
        attend: pool by attention; otherwise by the mean.
        reduction: channels for each hidden unit; there is always at least one.
        hidden: the number of hidden units, instead of channels // reduction.
        gate: of the scaling: "sigmoid" or "hard_sigmoid".
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Cao, Xu, Lin, Wei, Hu 2019, GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
        equation="y = x + W2 relu(layer_norm(W1 sum_j softmax_j(w . x) x_j)), j over the n = h w places, c channels",
        time="O(n c + c^2 / r)",
        memory="O(n)",
        causal=None,
        padding=None,
        note="All places get the same context: it is non-local attention with one query for the whole image.",
    )

    def __init__(
        self,
        channels: int,
        *,
        fusion: Fusion = "add",
        attend: bool = True,
        reduction: int = 8,
        hidden: int | None = None,
        gate: Gate = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = hidden_units(channels, reduction, hidden)
        if fusion not in {"add", "scale", "both"}:
            raise ArgumentError("fusion", expected="add, scale or both", got=repr(fusion), do="Take one of these.")
        self.channels = channels
        self.starts_as_identity = fusion == "add"
        self.gate = gate_named(gate)
        self.conv_attn = Pointwise(channels, 1, device=device, dtype=dtype) if attend else None
        self.mlp_add = _mlp(channels, width, device, dtype) if fusion != "scale" else None
        self.mlp_scale = _mlp(channels, width, device, dtype) if fusion != "add" else None
        if self.mlp_add is not None:
            cast("Pointwise", self.mlp_add.get_submodule("fc2")).zero()

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        context = self._context(image)
        if self.mlp_scale is not None:
            image = image * self.gate(self.mlp_scale(context))[:, :, None, None]
        if self.mlp_add is not None:
            image = image + self.mlp_add(context)[:, :, None, None]
        return image

    def _context(self, image: Tensor) -> Tensor:
        """(batch, channels)."""
        if self.conv_attn is None:
            return mean(image, PIXELS).flatten(1)
        places = image.flatten(2)  # (batch, channels, n)
        # One row on the left, and each image for itself: any other way torch copies the image or reads it slowly.
        weight = self.conv_attn.weight.flatten(1).expand(len(places), 1, -1)
        scores = torch.bmm(weight, places)  # (batch, 1, n)
        if self.conv_attn.bias is not None:
            scores = scores + self.conv_attn.bias
        return torch.bmm(scores.softmax(dim=2), places.transpose(1, 2)).squeeze(1)


def _mlp(channels: int, hidden: int, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["fc1"] = Pointwise(channels, hidden, device=device, dtype=dtype)
    layers["norm"] = nn.LayerNorm(hidden, eps=1e-6, device=device, dtype=dtype)
    layers["act"] = nn.ReLU()
    layers["fc2"] = Pointwise(hidden, channels, device=device, dtype=dtype)
    return nn.Sequential(layers)
