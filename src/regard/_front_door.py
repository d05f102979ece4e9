"""From the arguments of `regard.attention` to a `Problem`: everything is checked here, before any kernel."""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from torch import Tensor

from regard import _dropout, _shapes
from regard._errors import ArgumentError, MaskError, ShapeError
from regard.backends import Problem
from regard.masks import Dense, Mask
from regard.positions import Position


class Options(TypedDict, total=False):
    """The options of `regard.attention` that say what is computed, with its names and meanings."""

    mask: Mask | Tensor | None
    position: Position | None
    bias: Tensor | None
    scale: float | None
    softcap: float | None
    sink: Tensor | None
    dropout_p: float
    seed: int | Tensor | None
    enable_gqa: bool
    additive: bool


def build_problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_lse: bool = False,
    **options: Unpack[Options],
) -> Problem:
    """Check every argument; raise ShapeError, MaskError or ArgumentError, or return the problem.

    Inside torch.autocast query, key and value are first cast to its dtype, as torch's own attention does.
    """
    query, key, value = _cast_by_autocast(query, key, value)
    sizes = _shapes.check_tensors(query, key, value, enable_gqa=options.get("enable_gqa", False))
    dropout_p = _shapes.check_dropout(options.get("dropout_p", 0.0))
    seed = _shapes.check_seed(options.get("seed"))
    bias, sink = options.get("bias"), options.get("sink")
    if sink is not None:
        _shapes.check_sink(sink, sizes, query)
    if bias is not None:
        bias = _shapes.check_bias(bias, sizes, query, additive=options.get("additive", False))
    return Problem(
        query=query,
        key=key,
        value=value,
        sizes=sizes,
        mask=_as_mask(options.get("mask"), sizes, query),
        position=_check_position(options.get("position"), sizes, query),
        bias=bias,
        scale=_shapes.check_scale(options.get("scale"), sizes.head_dim),
        softcap=_shapes.check_softcap(options.get("softcap")),
        sink=sink,
        dropout_p=dropout_p,
        seed=_dropout.draw_seed().to(query.device) if dropout_p > 0.0 and seed is None else seed,
        return_lse=return_lse,
    )


def _cast_by_autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kind = query.device.type if isinstance(query, Tensor) else "cpu"  # pyright: ignore[reportUnnecessaryIsInstance] - checked later
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)
    query, key, value = (tensor.to(dtype) if _is_castable(tensor) else tensor for tensor in (query, key, value))
    return query, key, value


def _is_castable(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64


def _as_mask(mask: object, sizes: _shapes.Sizes, query: Tensor) -> Mask | None:
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        _check_mask_tensor(mask, sizes, query)
        mask = Dense(_spread(mask, sizes))
    if not isinstance(mask, Mask):
        raise MaskError(
            "mask", expected="a regard.masks value or a bool tensor", got=type(mask).__name__, do="See regard.masks."
        )
    mask.check(sizes.q_len, sizes.kv_len)
    for what, have, want in (("batch", mask.batch_size, sizes.batch), ("heads", mask.head_count, sizes.heads)):
        if have is not None and have != want:
            raise MaskError(
                f"mask {what}",
                expected=f"{want}, as query has",
                got=f"{have}, in {mask!r}",
                do="Build it for this batch.",
            )
    return mask


def _spread(mask: Tensor, sizes: _shapes.Sizes) -> Tensor:
    """A 4-D mask with size 1 where it is shared by the queries or the keys, as a view over all of them."""
    if mask.dim() != 4:
        return mask
    lengths = (sizes.q_len, sizes.kv_len)
    return mask.expand(
        -1, -1, *(want if have == 1 else have for have, want in zip(mask.shape[-2:], lengths, strict=True))
    )


def _check_mask_tensor(mask: Tensor, sizes: _shapes.Sizes, query: Tensor) -> None:
    if mask.device != query.device:
        raise MaskError("mask device", expected=str(query.device), got=str(mask.device), do="Move it with .to(...).")
    if mask.is_floating_point():
        raise MaskError(
            "mask",
            expected="a bool tensor (True = may attend)",
            got=str(mask.dtype),
            do="Numbers to be added to the scores are bias=; for a 0/1 mask call .bool().",
        )
    if mask.dim() == 2 and mask.shape[0] == sizes.q_len == sizes.batch > 1:
        raise MaskError(
            "mask",
            expected="a shape with one meaning",
            got=f"{_shapes.shape_of(mask)}, which could be (q_len, kv_len) or (batch, kv_len)",
            do="Say which: mask[None, None] for pairs, mask[:, None, None] or regard.masks.Padding for keys.",
        )


def _check_position(position: object, sizes: _shapes.Sizes, query: Tensor) -> Position | None:
    if position is None:
        return None
    if not isinstance(position, Position):
        raise ArgumentError(
            "position", expected="a regard.positions module", got=type(position).__name__, do="See regard.positions."
        )
    position.check(
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        value_dim=sizes.value_dim,
        q_len=sizes.q_len,
        kv_len=sizes.kv_len,
    )
    for name, tensor in (*position.named_parameters(), *position.named_buffers()):
        if tensor.device != query.device:
            raise ShapeError(
                f"position {name} device",
                expected=str(query.device),
                got=str(tensor.device),
                do="Move the module with .to(...).",
            )
    return position
