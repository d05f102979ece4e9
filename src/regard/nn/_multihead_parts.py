"""The parts of `MultiHeadAttention` that need no weights: checks, views, masks that join, positions with a cache."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any, Literal, overload

from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.masks import Dense, Mask
from regard.positions import Position, RoPE

Norm = Literal["rms", "layer"]
States = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, (batch, heads, length, width) each."""


def checked_position(position: Position | None, *, heads: int, widths: tuple[int, int], pad_to: int) -> Position | None:
    """The position, if it is one and was made for these heads and (head_dim, value_dim)."""
    if position is None:
        return None
    if not isinstance(position, Position):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(
            "position",
            expected="a regard.positions module",
            got=type(position).__name__,
            do="Build one, such as RoPE(head_dim) or T5Bias(num_heads).",
        )
    head_dim, value_dim = widths
    position.check(heads=heads, head_dim=head_dim, value_dim=value_dim, q_len=1, kv_len=1)
    tables = sorted(position.terms & {"content", "value"})
    if tables and (head_dim % pad_to or value_dim % pad_to):
        raise ArgumentError(
            "pad_to",
            expected=f"a divisor of head_dim {head_dim} and value_dim {value_dim}, "
            f"since the tables of {type(position).__name__} ({' and '.join(tables)}) are as wide",
            got=str(pad_to),
            do="Leave pad_to out, or take RoPE or a bias, which are the same for wider heads.",
        )
    return position


def require_groups(num_heads: int, kv_heads: int) -> None:
    """The key and value heads divide the query heads, or ArgumentError."""
    if num_heads % kv_heads:
        raise ArgumentError(
            "kv_heads",
            expected=f"a divisor of num_heads {num_heads}",
            got=str(kv_heads),
            do="Each key and value head serves the same number of query heads.",
        )


def norm_of(kind: Norm | None, width: int, made: dict[str, Any]) -> nn.Module:
    """The norm of each head's queries or keys, or nothing."""
    if kind is None:
        return nn.Identity()
    if kind not in {"rms", "layer"}:
        raise ArgumentError(
            "qk_norm", expected="'rms', 'layer' or None", got=repr(kind), do="Leave it out for no norm."
        )
    return nn.RMSNorm(width, **made) if kind == "rms" else nn.LayerNorm(width, **made)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * width) as (batch, heads, length, width), a view."""
    batch, length, width = states.shape
    return states.view(batch, length, heads, width // heads).transpose(1, 2)


@overload
def joined(first: Mask | None, second: Mask | None, states: States) -> Mask | None: ...
@overload
def joined(first: Mask | None, second: Mask | Tensor | None, states: States) -> Mask | Tensor | None: ...
def joined(first: Mask | None, second: Mask | Tensor | None, states: States) -> Mask | Tensor | None:
    """The intersection; a tensor is spread over the pairs first, as `regard.attention` reads it."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(second, Tensor):
        lengths = (states[0].shape[2], states[1].shape[2])
        if second.dim() == 4:
            own = zip(second.shape[2:], lengths, strict=True)
            second = second.expand(-1, -1, *(want if have == 1 else have for have, want in own))
        second = Dense(second)
    return first & second


def turns_once(position: Position) -> bool:
    """Is it a rotation that is the same however long the text becomes? Then keys are stored already turned."""
    return type(position) is RoPE and not (position.scaling is not None and position.scaling.depends_on_length)


def mask_at_the_end(mask: Mask | Tensor | None) -> Mask | Tensor | None:
    """The mask with the queries as the last tokens, where nothing was said of how the two stand."""
    if not isinstance(mask, Mask):
        return mask
    placed = copy.copy(mask)
    for field in fields(mask) if is_dataclass(mask) else ():
        part = getattr(mask, field.name)
        if isinstance(part, Mask):  # of a mask that was joined or turned round
            object.__setattr__(placed, field.name, mask_at_the_end(part))
        elif field.name == "align" and part is None:
            object.__setattr__(placed, field.name, "bottom_right")
    return placed


def at_the_end(position: Position | None) -> Position | None:
    """The position with the queries as the last tokens; a view that shares its tables."""
    if position is None or position.align is not None:
        return position
    placed = copy.copy(position)
    placed.align = "bottom_right"
    return placed
