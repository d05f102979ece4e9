"""The `mask` of a token mixer's call, as one value of `regard.masks`.

A caller gives a `Mask`, or a bool tensor, True = may attend: (batch, kv_len) says which tokens are real, (q_len,
kv_len) which pairs may attend, four dimensions say it for each sample and head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard._errors import MaskError, UnsupportedError
from regard._shapes import shape_of
from regard.masks import Dense, Keys, Mask, Padding


def token_mask(mask: Mask | Tensor | None, *, batch: int, q_len: int, kv_len: int) -> Mask | None:
    """The mask of a call as a Mask, or None where there is none.

    Raises:
        MaskError: no mask and no bool tensor; a tensor of other sizes, or of sizes with two meanings.
    """
    if mask is None or isinstance(mask, Mask):
        return mask
    _require_bool(mask)
    if mask.dim() == 2:
        return _two_dimensional(mask, batch, q_len, kv_len)
    if mask.dim() != 4 or mask.shape[2] not in (1, q_len) or mask.shape[3] not in (1, kv_len):
        raise _other_shape(mask, batch, q_len, kv_len)
    return Dense(mask.expand(-1, -1, q_len, kv_len))


def padding_mask(name: str, mask: Mask | Tensor | None, *, batch: int, length: int) -> Mask | None:
    """The mask of a call that may say which tokens are real, and nothing else.

    Raises:
        UnsupportedError: a mask of pairs; `name` is the mechanism that cannot honour it.
        MaskError: as `token_mask`, and a mask for another batch or length.
    """
    if isinstance(mask, Tensor):
        _require_bool(mask)
        if tuple(mask.shape) != (batch, length):
            raise MaskError(
                "mask",
                expected=f"a bool tensor (batch, length) = {(batch, length)}, True = a real token",
                got=shape_of(mask),
                do="This mechanism takes padding only: regard.masks.Padding(lengths), or such a tensor.",
            )
        return Keys(mask)
    if mask is None:
        return None
    if not all(isinstance(part, Padding | Keys) for part in mask.conjuncts):
        raise UnsupportedError(
            {name: f"it honours padding, and no other mask; got {mask!r}"},
            do="Pass Padding(lengths) or a bool tensor (batch, length), or take MultiHeadAttention.",
        )
    mask.check(length, length)
    if mask.batch_size != batch:
        raise MaskError("mask batch", expected=str(batch), got=str(mask.batch_size), do="Build it for this batch.")
    return mask


def both(left: Mask | None, right: Mask | None) -> Mask | None:
    """The pairs that both keep; None keeps all."""
    if left is None or right is None:
        return right if left is None else left
    return left & right


def _require_bool(mask: object) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise MaskError(
            "mask",
            expected="a regard.masks value or a bool tensor (True = may attend)",
            got=str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__,
            do="For a tensor of 0 and 1 call .bool() where 1 means may attend.",
        )


def _two_dimensional(mask: Tensor, batch: int, q_len: int, kv_len: int) -> Mask:
    shape = tuple(mask.shape)
    if shape == (batch, kv_len) == (q_len, kv_len) and batch > 1:
        raise MaskError(
            "mask",
            expected="a shape with one meaning",
            got=f"{shape}, which could be (batch, kv_len) or (q_len, kv_len)",
            do="Say which: mask[:, None, None] for real tokens, mask[None, None] for pairs.",
        )
    if shape == (q_len, kv_len) and q_len != batch:
        return Dense(mask)
    if shape == (batch, kv_len):
        return Keys(mask)
    raise _other_shape(mask, batch, q_len, kv_len)


def _other_shape(mask: Tensor, batch: int, q_len: int, kv_len: int) -> MaskError:
    return MaskError(
        "mask",
        expected=f"(batch, kv_len) = {(batch, kv_len)}, (q_len, kv_len) = {(q_len, kv_len)}, or (batch or 1, heads or "
        "1, q_len or 1, kv_len or 1)",
        got=shape_of(mask),
        do="Build it for the tokens of this call.",
    )
