"""Spatial attention (guide 2.2): where. One number for each place of an image, alone or with channel attention.

    SpatialGate  y = x * sigmoid(bn(conv7x7([mean over channels, max over channels])))     Woo et al. 2018
    CBAM         the channel gate, then the spatial gate                                  Woo et al. 2018
    BAM          y = x * (1 + sigmoid(channel branch + spatial branch))                   Park et al. 2018

CBAM costs six passes over the image in O(h w c) and one image of memory for the backward; BAM's spatial branch is
convolutions on c / r channels. Images have no order of tokens and no padding of tokens. Weights of the gate and of CBAM
have the names and shapes of timm's modules (CbamModule), so that its checkpoints load.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.nn._arguments import require_positive
from regard.nn._card import Card
from regard.nn._gating import (
    CHANNELS,
    PIXELS,
    Activation,
    Gate,
    Pointwise,
    checked_image,
    gate_named,
    hidden_units,
    mean,
    mean_and_max,
    require_odd,
)
from regard.nn.channel import ChannelGate


class SpatialGate(nn.Module):
    """CBAM's spatial half (Woo et al. 2018): a gate for each place, read from mean and maximum over the channels.

    Args:
        channels: of the image; no weight depends on them, but another image is refused.
        kernel_size: of the convolution; odd, 7 in the paper.
        gate: "sigmoid" or "hard_sigmoid".
        light: the convolution reads (mean + max) / 2 (timm's LightSpatialAttn) instead of both.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1 or not odd, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Woo, Park, Lee, Kweon 2018, CBAM: Convolutional Block Attention Module (section 3, spatial)",
        equation="y = x * sigmoid(bn(conv_k([mean_c(x), max_c(x)]))), conv_k a k by k convolution from 2 maps to 1",
        time="O(h w (c + k^2)): three passes over the image",
        memory="O(h w)",
        causal=None,
        padding=None,
    )

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        gate: Gate = "sigmoid",
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        require_odd(kernel_size=kernel_size)
        self.channels = channels
        self.light = light
        self.gate = gate_named(gate)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(
            1 if light else 2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype
        )
        layers["bn"] = nn.BatchNorm2d(1, device=device, dtype=dtype)
        self.conv = nn.Sequential(layers)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        return image * self.weights(image)

    def weights(self, image: Tensor) -> Tensor:
        """The gate alone, (batch, 1, height, width), from 0 to 1."""
        average, maximum = mean_and_max(image, CHANNELS)
        maps = (average + maximum) * 0.5 if self.light else torch.cat((average, maximum), dim=1)
        if torch.is_grad_enabled():  # on CPU the backward of a convolution of two maps is three times faster this way
            maps = maps.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last, in words that vmap knows
        return self.gate(self.conv(maps))


class CBAM(nn.Module):
    """Channel attention, then spatial attention (Woo et al. 2018).

    Args:
        channels: of the image.
        reduction: channels for each hidden unit of the channel gate; there is always at least one.
        hidden: the number of hidden units, instead of channels // reduction.
        kernel_size: of the spatial gate's convolution; odd.
        activation: between the two projections of the channel gate.
        gate: of both: "sigmoid" or "hard_sigmoid".
        bias: of the channel gate's projections.
        light: both gates read (mean + max) / 2 (timm's LightCbamModule) instead of both.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1 or not odd, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Woo, Park, Lee, Kweon 2018, CBAM: Convolutional Block Attention Module",
        equation="z = x * sigmoid(mlp(mean(x)) + mlp(max(x)));  y = z * sigmoid(bn(conv_k([mean_c(z), max_c(z)])))",
        time="O(h w (c + k^2) + c^2 / r): six passes over the image",
        memory="O(h w), and one image for the backward",
        causal=None,
        padding=None,
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        kernel_size: int = 7,
        activation: Activation = "relu",
        gate: Gate = "sigmoid",
        bias: bool = False,
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.channel = ChannelGate(
            channels,
            reduction=reduction,
            hidden=hidden,
            activation=activation,
            gate=gate,
            bias=bias,
            light=light,
            device=device,
            dtype=dtype,
        )
        self.spatial = SpatialGate(
            channels, kernel_size=kernel_size, gate=gate, light=light, device=device, dtype=dtype
        )

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        return self.spatial(self.channel(image))


class BAM(nn.Module):
    """Channel and spatial attention side by side (Park et al. 2018): y = x * (1 + sigmoid(channel + spatial)).

    Channel branch: bn(W2 relu(W1 mean(x))). Spatial branch: bn(conv1(conv_d ... conv_d(conv1(x)))), 3x3 convolutions
    with dilation on channels / reduction maps. The two are added as in the paper's equations; the code that the authors
    published multiplies them and leaves the last batch norms out.

    Args:
        channels: of the image.
        reduction: channels for each hidden unit of both branches; there is always at least one.
        hidden: the number of hidden units, instead of channels // reduction.
        dilation: of the spatial branch's convolutions; 4 in the paper.
        depth: how many of these there are; 2 in the paper.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Park, Woo, Lee, Kweon 2018, BAM: Bottleneck Attention Module",
        equation="y = x * (1 + sigmoid(bn(W2 relu(W1 mean(x))) + bn(convs(x)))), convs dilated, on c / r maps",
        time="O(h w (c^2 / r + c^2 / r^2))",
        memory="O(h w c): the sum of both branches",
        causal=None,
        padding=None,
        note="It stands between the stages of a network, not in every block.",
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        dilation: int = 4,
        depth: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(dilation=dilation, depth=depth)
        width = hidden_units(channels, reduction, hidden)
        self.channels = channels
        self.fc1 = Pointwise(channels, width, device=device, dtype=dtype)
        self.fc2 = Pointwise(width, channels, device=device, dtype=dtype)
        self.channel_norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        layers: list[nn.Module] = [Pointwise(channels, width, device=device, dtype=dtype)]
        for _ in range(depth):
            layers += [
                nn.BatchNorm2d(width, device=device, dtype=dtype),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, device=device, dtype=dtype),
            ]
        layers += [nn.BatchNorm2d(width, device=device, dtype=dtype), nn.ReLU(inplace=True)]
        layers += [Pointwise(width, 1, device=device, dtype=dtype), nn.BatchNorm2d(1, device=device, dtype=dtype)]
        self.spatial = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        pooled = self.fc2(self.fc1(mean(image, PIXELS).flatten(1)).relu())
        of_channel = self.channel_norm(pooled[:, :, None, None])
        return image + image * torch.sigmoid(of_channel + self.spatial(image))
