"""The questions that constructors and calls of mechanisms ask before they do anything."""

from __future__ import annotations

from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard._shapes import FLOATS, shape_of


def require_positive(**sizes: int) -> None:
    """Each size is a whole number of at least 1, or ArgumentError."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(
                name, expected="a whole number of at least 1", got=repr(size), do="It counts something there must be."
            )


def require_heads(embed_dim: int, num_heads: int) -> int:
    """The width of a head; ArgumentError where the heads do not divide embed_dim."""
    require_positive(embed_dim=embed_dim, num_heads=num_heads)
    if embed_dim % num_heads:
        raise ArgumentError(
            "num_heads",
            expected=f"a divisor of embed_dim {embed_dim}",
            got=str(num_heads),
            do="Every head has the same width, embed_dim / num_heads.",
        )
    return embed_dim // num_heads


def require_probability(**chances: float) -> None:
    """Each is from 0 to 1, or ArgumentError."""
    for name, chance in chances.items():
        if not 0.0 <= chance <= 1.0:
            raise ArgumentError(name, expected="a number from 0 to 1", got=repr(chance), do="It is a probability.")


def check_tokens(name: str, tokens: object, embed_dim: int) -> Tensor:
    """Floating-point (batch, length, embed_dim), or ShapeError."""
    tensor = _floating(name, tokens)
    if tensor.dim() != 3 or tensor.shape[2] != embed_dim:
        raise ShapeError(
            name,
            expected=f"(batch, length, embed_dim {embed_dim})",
            got=shape_of(tensor),
            do="Add the batch with [None], or make the module for this width.",
        )
    return tensor


def check_image(name: str, image: object, channels: int) -> Tensor:
    """Floating-point (batch, channels, height, width), or ShapeError."""
    tensor = _floating(name, image)
    if tensor.dim() != 4 or tensor.shape[1] != channels:
        raise ShapeError(
            name,
            expected=f"(batch, channels {channels}, height, width)",
            got=shape_of(tensor),
            do="Add the batch with [None], or make the module for this number of channels.",
        )
    return tensor


def _floating(name: str, given: object) -> Tensor:
    if not isinstance(given, Tensor):
        raise ShapeError(
            name, expected="a torch.Tensor", got=type(given).__name__, do="Convert it with torch.as_tensor."
        )
    if given.dtype not in FLOATS:
        raise ShapeError(
            f"{name} dtype",
            expected="float16, bfloat16, float32 or float64",
            got=str(given.dtype),
            do="Embed token numbers first; convert the rest with .float().",
        )
    return given
