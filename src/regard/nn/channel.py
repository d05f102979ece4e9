"""Channel attention (guide 2.2): what matters. One number for each channel and image, and the image times it.

    SqueezeExcitation            s = gate(W2 act(W1 mean(x)))                  Hu, Shen, Sun 2018
    EffectiveSqueezeExcitation   s = hard_sigmoid(W mean(x))                   Lee, Park 2020 (CenterMask)
    EfficientChannel             s = sigmoid(conv1d over channels of mean(x))  Wang et al. 2020 (ECA-Net)
    ChannelGate                  s = sigmoid(mlp(mean(x)) + mlp(max(x)))       Woo et al. 2018 (CBAM's channel half)

    y[b, c, i, j] = x[b, c, i, j] * s[b, c];   mean and max are over all places i, j.

All cost O(h w c) time: two passes over the image, and O(c^2 / r) for the projections; no memory but the output.
Images have no order of tokens and no padding: every pixel counts in the mean. Weights have the names and shapes of
timm's modules (SEModule, EffectiveSEModule, EcaModule, CecaModule, CBAM's ChannelAttn), so that their checkpoints load.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import ArgumentError
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
    mean_and_max,
    require_odd,
)

_PASSES = "O(h w c + c^2 / r): two passes over the image"


class SqueezeExcitation(nn.Module):
    """The guide's SEBlock (guide 2.2; Hu, Shen, Sun 2018): y = x * gate(W2 act(W1 mean(x))).

    The guide's code makes channels // reduction hidden units, which is none where channels < reduction: its gate is
    then one constant for every image, and nobody is told. Here there is always at least one.

    Args:
        channels: of the image.
        reduction: channels for each hidden unit.
        hidden: the number of hidden units, instead of channels // reduction.
        activation: between the two projections: "relu", "silu" (EfficientNet's), "gelu" or "hard_swish".
        gate: "sigmoid" or "hard_sigmoid" (MobileNetV3's).
        bias: of both projections.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Hu, Shen, Sun 2018, Squeeze-and-Excitation Networks",
        equation="y = x * sigmoid(W2 relu(W1 mean(x))), the mean over height h and width w, c channels, c / r hidden",
        time=_PASSES,
        memory="O(c)",
        causal=None,
        padding=None,
        note="At least one hidden unit, where the guide's code has none for channels < reduction.",
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        activation: Activation = "relu",
        gate: Gate = "sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = hidden_units(channels, reduction, hidden)
        self.channels = channels
        self.activation = activation_named(activation)
        self.gate = gate_named(gate)
        self.fc1 = Pointwise(channels, width, bias=bias, device=device, dtype=dtype)
        self.fc2 = Pointwise(width, channels, bias=bias, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        squeezed = mean(image, PIXELS).flatten(1)  # (batch, channels)
        gate = self.gate(self.fc2(self.activation(self.fc1(squeezed))))
        return image * gate[:, :, None, None]


class EffectiveSqueezeExcitation(nn.Module):
    """One projection in place of two, so that nothing is lost between them (Lee, Park 2020): y = x * gate(W mean(x)).

    Args:
        channels: of the image.
        gate: "hard_sigmoid" (the authors' code) or "sigmoid".
        bias: of the projection.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Lee, Park 2020, CenterMask: Real-Time Anchor-Free Instance Segmentation",
        equation="y = x * hard_sigmoid(W mean(x)), the mean over height h and width w, W is c by c",
        time="O(h w c + c^2): two passes over the image",
        memory="O(c)",
        causal=None,
        padding=None,
    )

    def __init__(
        self,
        channels: int,
        *,
        gate: Gate = "hard_sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        self.channels = channels
        self.gate = gate_named(gate)
        self.fc = Pointwise(channels, channels, bias=bias, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        gate = self.gate(self.fc(mean(image, PIXELS).flatten(1)))
        return image * gate[:, :, None, None]


class EfficientChannel(nn.Module):
    """ECA (Wang et al. 2020): each channel's gate is read from the means of its few neighbours, with one small filter.

    Unless given, the width of the filter grows with the channels as in the paper: the odd number at, or just above,
    the whole part of |(log2(channels) + 1) / 2|, and at least 3.

    Args:
        channels: of the image.
        kernel_size: odd; how many neighbouring channels a gate is read from.
        circular: the first channel and the last are neighbours, instead of zeros beyond the ends (timm's CecaModule).
        gate: "sigmoid" or "hard_sigmoid".
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1 or not odd, more neighbours around the circle than channels, an unknown name.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Wang, Wu, Zhu, Li, Zuo, Hu 2020, ECA-Net: Efficient Channel Attention for Deep CNNs",
        equation="y = x * sigmoid(conv_k(mean(x))), the mean over height h and width w, conv_k over k channels of c",
        time="O(h w c + k c): two passes over the image",
        memory="O(c)",
        causal=None,
        padding=None,
        note="Channels next to each other are treated as related, which only training makes them.",
    )

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        circular: bool = False,
        gate: Gate = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        width = _eca_width(channels) if kernel_size is None else kernel_size
        require_odd(kernel_size=width)
        if circular and width > 2 * channels + 1:
            raise ArgumentError(
                "kernel_size",
                expected=f"at most {2 * channels + 1}, once around {channels} channels on either side",
                got=str(width),
                do="Take a smaller kernel_size, or circular=False.",
            )
        self.channels = channels
        self.circular = circular
        self.gate = gate_named(gate)
        self.conv = nn.Conv1d(1, 1, width, bias=False, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        squeezed = mean(image, PIXELS).flatten(1)
        beyond = self.conv.kernel_size[0] // 2
        if self.circular:
            around = torch.arange(-beyond, self.channels + beyond, device=image.device) % self.channels
            squeezed, beyond = squeezed[:, around], 0
        return image * self.gate(self._filtered(squeezed, beyond))[:, :, None, None]

    def _filtered(self, squeezed: Tensor, beyond: int) -> Tensor:
        weight = self.conv.weight
        if squeezed.shape[0] == 0:
            return functional.conv1d(squeezed[:, None], weight, padding=beyond)[:, 0]
        # The samples are the rows of one image: torch begins one such convolution much faster than one over a batch.
        return functional.conv2d(squeezed[None, None], weight[:, :, None], padding=(0, beyond))[0, 0]


def _eca_width(channels: int) -> int:
    """The paper's k, with its gamma = 2 and b = 1."""
    whole = int(abs(math.log2(channels) + 1) / 2)
    return max(whole + 1 - whole % 2, 3)


class ChannelGate(nn.Module):
    """CBAM's channel half (Woo et al. 2018): y = x * sigmoid(mlp(mean(x)) + mlp(max(x))), one mlp for both.

    Args:
        channels: of the image.
        reduction: channels for each hidden unit; there is always at least one.
        hidden: the number of hidden units, instead of channels // reduction.
        activation: between the two projections.
        gate: "sigmoid" or "hard_sigmoid".
        bias: of both projections; the paper's text has none.
        light: the mlp reads (mean + max) / 2 once (timm's LightChannelAttn) instead of both.
        device, dtype: of the weights.

    Raises:
        ArgumentError: a size below 1, or a name that is none of these.
    """

    card: ClassVar[Card] = Card(
        guide="2.2",
        source="Woo, Park, Lee, Kweon 2018, CBAM: Convolutional Block Attention Module (section 3, channel)",
        equation="y = x * sigmoid(mlp(mean(x)) + mlp(max(x))), both over height h and width w, mlp = W2 relu(W1 .)",
        time="O(h w c + c^2 / r): three passes over the image",
        memory="O(c)",
        causal=None,
        padding=None,
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        activation: Activation = "relu",
        gate: Gate = "sigmoid",
        bias: bool = False,
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = hidden_units(channels, reduction, hidden)
        self.channels = channels
        self.light = light
        self.activation = activation_named(activation)
        self.gate = gate_named(gate)
        self.fc1 = Pointwise(channels, width, bias=bias, device=device, dtype=dtype)
        self.fc2 = Pointwise(width, channels, bias=bias, device=device, dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same. Raises ShapeError."""
        image = checked_image(image, self.channels)
        return image * self.weights(image)

    def weights(self, image: Tensor) -> Tensor:
        """The gate alone, (batch, channels, 1, 1), from 0 to 1."""
        average, maximum = (pooled.flatten(1) for pooled in mean_and_max(image, PIXELS))
        if self.light:
            scores = self._mlp((average + maximum) * 0.5)
        else:
            scores = self._mlp(torch.stack((average, maximum), dim=1)).sum(dim=1)
        return self.gate(scores)[:, :, None, None]

    def _mlp(self, pooled: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(pooled)))
