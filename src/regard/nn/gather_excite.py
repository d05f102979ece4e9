"""Gather-Excite (Hu et al. 2018): each place is gated by what surrounds it, from near neighbours to the whole image.

    y = x * sigmoid(up(mlp(gather(x))))

`gather` shrinks the image by `extent` (0: to one pixel): by averages over windows of 2 * extent - 1 (the paper's
GE-theta-minus), or by strided depthwise convolutions that learn (GE-theta). `up` repeats the nearest. With extent 0,
averages and the mlp it is squeeze-and-excitation; with averages and no mlp it has no weights at all.

Time O(h w c) and O(c^2 h w / (r extent^2)) for the mlp; memory of one gate for each place. No order of tokens, no
padding.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._gating import (
    PIXELS,
    Activation,
    Gate,
    Pointwise,
    activation_named,
    checked_image,
    gate_named,
    hidden_units,
    mean,
)


class GatherExcite(nn.Module):
    """Gates of each place from its surroundings (Hu, Shen, Albanie, Sun, Vedaldi 2018).

    Args:
        channels: of the image.
        extent: how much is gathered: 0 for the whole image, or a power of two from 2.
        learned: gather by depthwise convolutions with batch norm instead of averages.
        feature_size: (height, width) of the image: needed to learn the gathering of a whole image, and then fixed.
        mlp: two projections of the channels, as in squeeze-and-excitation, after the gathering.
        reduction: channels for each hidden unit of the mlp; there is always at least one.
        hidden: the number of hidden units, instead of channels // reduction.
        activation: between convolutions, and within the mlp.
        gate: "sigmoid" or "hard_sigmoid".
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, an extent that is no power of two, `learned` with extent 0 and no feature_size,
            or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Hu, Shen, Albanie, Sun, Vedaldi 2018, Gather-Excite: Exploiting Feature Context in CNNs",
        equation="y = x * sigmoid(up(mlp(gather(x)))), gather shrinks height h and width w by the extent e",
        time="O(h w c + h w c^2 / (r e^2))",
        memory="O(h w c): one gate for each place",
        causal=None,
        padding=None,
    )

    def __init__(
        self,
        channels: int,
        *,
        extent: int = 0,
        learned: bool = False,
        feature_size: tuple[int, int] | None = None,
        mlp: bool = True,
        reduction: int = 16,
        hidden: int | None = None,
        activation: Activation = "relu",
        gate: Gate = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _require_extent(extent)
        width = hidden_units(channels, reduction, hidden)
        self.channels = channels
        self.extent = extent
        self.feature_size = feature_size if learned and extent == 0 else None
        self.activation = activation_named(activation)
        self.gate = gate_named(gate)
        self.gather = _learned_gather(channels, extent, feature_size, device, dtype) if learned else None
        self.mlp = nn.ModuleDict()
        if mlp:
            self.mlp["fc1"] = Pointwise(channels, width, device=device, dtype=dtype)
            self.mlp["fc2"] = Pointwise(width, channels, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        self._check_size(image)
        gathered = self._gathered(image)
        if self.mlp:
            gathered = self.mlp["fc2"](self.activation(self.mlp["fc1"](gathered)))
        gate = self.gate(gathered)
        if gate.shape[2:] != (1, 1):
            gate = functional.interpolate(gate, size=image.shape[2:])
        return image * gate

    def _check_size(self, image: Tensor) -> None:
        if self.feature_size is not None and tuple(image.shape[2:]) != tuple(self.feature_size):
            raise ShapeError(
                "image",
                expected=f"height and width {tuple(self.feature_size)}, the learnt filter's",
                got=shape_of(image),
                do="Resize the image, or gather with an extent or by averages, which take any size.",
            )

    def _gathered(self, image: Tensor) -> Tensor:
        if self.gather is not None:
            for name, layer in self.gather.named_children():
                if name.startswith("conv") and name != "conv1":
                    image = self.activation(image)
                image = layer(image)
            return image
        if self.extent == 0:
            return mean(image, PIXELS)
        window = 2 * self.extent - 1
        return functional.avg_pool2d(image, window, stride=self.extent, padding=window // 2, count_include_pad=False)


def _require_extent(extent: int) -> None:
    if extent:
        require_positive(extent=extent)
        if extent & (extent - 1) or extent == 1:
            raise ArgumentError(
                "extent",
                expected="0 (the whole image) or a power of two from 2",
                got=str(extent),
                do="Each step of the gathering halves the image.",
            )


def _learned_gather(
    channels: int,
    extent: int,
    feature_size: tuple[int, int] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Sequential:
    """Depthwise convolutions, each with its batch norm; timm's names."""
    if extent:
        kernels = [((3, 3), 2, 1)] * (extent.bit_length() - 1)
    elif feature_size is None:
        raise ArgumentError(
            "feature_size",
            expected="(height, width)",
            got="None",
            do="One filter over the whole image has the image's size: give it, or take learned=False.",
        )
    else:
        kernels = [(feature_size, 1, 0)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (size, stride, padding) in enumerate(kernels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(
            channels, channels, size, stride, padding, groups=channels, bias=False, device=device, dtype=dtype
        )
        layers[f"norm{number}"] = nn.BatchNorm2d(channels, device=device, dtype=dtype)
    return nn.Sequential(layers)
