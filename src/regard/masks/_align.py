"""Which query stands beside which key when there are not as many queries as keys."""

from __future__ import annotations

from typing import Literal

from regard._errors import MaskError

Align = Literal["top_left", "bottom_right"]


def known_align(name: str, align: Align | None) -> Align | None:
    """`align` itself, or MaskError when it is none of the known ones."""
    if align not in {None, "top_left", "bottom_right"}:
        raise MaskError(
            f"{name} align",
            expected="'top_left', 'bottom_right' or None",
            got=repr(align),
            do="Say 'bottom_right' when the queries are the last tokens (a KV cache), else 'top_left'.",
        )
    return align


def require_align(name: str, align: Align | None, q_len: int, kv_len: int) -> None:
    """Raise MaskError when the lengths differ and nobody said how they stand."""
    if align is None and q_len != kv_len:
        raise MaskError(
            f"{name} with q_len != kv_len",
            expected="align='top_left' or align='bottom_right'",
            got=f"no align, with q_len {q_len} and kv_len {kv_len}",
            do=f"Say {name}(..., align='bottom_right') when the queries are the last tokens (a KV cache), "
            "else align='top_left'.",
        )


def shift(align: Align | None, q_len: int, kv_len: int) -> int:
    """What to add to a query's index to get the index of the key beside it."""
    return kv_len - q_len if align == "bottom_right" else 0


def require_equal(name: str, q_len: int, kv_len: int) -> None:
    """Raise MaskError when a mask over one text is laid over two lengths."""
    if q_len != kv_len:
        raise MaskError(
            f"{name} with q_len != kv_len",
            expected="as many queries as keys",
            got=f"q_len {q_len} and kv_len {kv_len}",
            do="Use it for self-attention over the whole text.",
        )
