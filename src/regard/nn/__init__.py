"""Mechanisms: attention as modules with weights, one file for each paper or section of the guide.

Token mixers are made with `(embed_dim, num_heads, ...)` and called on (batch, length, embed_dim):
`module(x, context=None, *, mask=None)`, where `context` is what is attended to (x itself when left out) and `mask` is
a `regard.masks.Mask` or a bool tensor, True = may attend. What a mechanism cannot honour it refuses by name. Image
gates are made with `(channels, ...)` and called on (batch, channels, height, width). Each class has a `card` that says
where it comes from, what it costs, and whether it may be used causally and with padding; `docs/mechanisms.md` lists
them.
"""

from typing import TYPE_CHECKING

from regard._lazy import lazily

if TYPE_CHECKING:
    from regard.nn._card import Card as Card

_HOMES: dict[str, tuple[str, ...]] = {
    "regard.nn._card": ("Card",),
}

__getattr__ = lazily(__name__, _HOMES)

__all__ = [
    "Card",
]


def __dir__() -> list[str]:
    return __all__
