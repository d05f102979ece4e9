"""A small residual CNN that any image attention of `regard.nn` fits into, and a small ViT.

    CNN   3x3 convolution (28 x 28), residual block (14 x 14), residual block (7 x 7), mean, linear
          block: relu(skip(x) + attention(norm(conv(relu(norm(conv(x)))))))             as in SE-ResNet (Hu et al. 2018)
    ViT   4 x 4 patches and a class token, learned places, pre-norm encoder blocks, linear on the class token
          (Dosovitskiy et al. 2021, arXiv:2010.11929)

Norms are GroupNorm: a picture's result does not depend on its batch, so that processes that share a batch agree. Where
a mechanism has a BatchNorm of its own it becomes a GroupNorm of one group, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from regard.nn import (
    CBAM,
    CoordinateAttention,
    EfficientChannel,
    NonLocal,
    SqueezeExcitation,
    TransformerEncoder,
)
from regard.observation import observe

Attention = Literal["none", "se", "eca", "cbam", "coordinate", "self"]
ATTENTION: dict[Attention, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "se": lambda channels: SqueezeExcitation(channels, reduction=4),
    "eca": EfficientChannel,
    "cbam": lambda channels: CBAM(channels, reduction=4),
    "coordinate": CoordinateAttention,
    "self": NonLocal,
}
"""What stands at the end of a block's branch; "self" is the non-local block, attention between all places."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first one with stride 2, attention, and a projected skip."""

    def __init__(self, channels: int, out_channels: int, attention: Attention) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(channels, out_channels, stride=2),
            _norm(out_channels),
            nn.ReLU(),
            _convolution(out_channels, out_channels),
            _norm(out_channels),
            without_batch_norm(ATTENTION[attention](out_channels)),
        )
        self.skip = nn.Conv2d(channels, out_channels, 1, stride=2, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, out_channels, height / 2, width / 2)."""
        return torch.relu(self.branch(image) + self.skip(image))


class CNN(nn.Module):
    """(batch, 1, 28, 28) to logits (batch, classes).

    Args:
        width: channels of the first convolution, a multiple of 8; the blocks have twice and four times as many.
        attention: in both blocks.
        classes: how many.
    """

    def __init__(self, width: int, attention: Attention, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(1, width), _norm(width), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(width, 2 * width, attention), ResidualBlock(2 * width, 4 * width, attention)
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class ViT(nn.Module):
    """(batch, 1, side, side) to logits (batch, classes).

    Args:
        embed_dim, num_heads, num_layers: of the encoder; its feed-forward networks are twice as wide.
        side, patch: of the image and of a patch, in pixels.
        classes: how many.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_layers: int, *, side: int = 28, patch: int = 4, classes: int = 10
    ) -> None:
        super().__init__()
        self.grid = side // patch
        self.patches = nn.Conv2d(1, embed_dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.places = nn.Parameter(torch.randn(1, 1 + self.grid**2, embed_dim) * 0.02)
        self.encoder = TransformerEncoder(
            embed_dim, num_heads, num_layers, activation="gelu", dim_feedforward=2 * embed_dim
        )
        self.head = nn.Linear(embed_dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat(
            [torch.broadcast_to(self.class_token, (len(image), *self.class_token.shape[1:])), patches], 1
        )
        return self.head(self.encoder(tokens + self.places)[:, 0])


@dataclass(frozen=True)
class ClassAttention:
    """Where the class token looks in the last layer.

    Attributes:
        patches: (heads, grid, grid), its weights on the patches; they sum to 1 - to_itself.
        to_itself: (heads,), its weight on itself, which is no place of the image.
        logits: (classes,), of the same pass.
    """

    patches: Tensor
    to_itself: Tensor
    logits: Tensor


@torch.no_grad()
def class_attention(model: ViT, image: Tensor) -> ClassAttention:
    """Of one image (1, side, side); the model is in eval mode."""
    with observe(model) as seen:
        logits = model(image[None])[0]
    weights = seen.layers[-1].weights(rows=[0])[0, :, 0]
    return ClassAttention(weights[:, 1:].reshape(-1, model.grid, model.grid), weights[:, 0], logits)


def without_batch_norm(module: nn.Module) -> nn.Module:
    """The module with a GroupNorm of one group, of the same weights, for each BatchNorm2d in it."""
    named: dict[str, Any] = dict(cast("Any", module).named_modules())
    for name, child in named.items():
        if isinstance(child, nn.BatchNorm2d):
            made = nn.GroupNorm(1, child.num_features, eps=child.eps)
            made.load_state_dict(cast("Any", child).state_dict(), strict=False)
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, made)
    return module


def _convolution(channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)
