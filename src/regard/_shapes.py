"""The front door: tensors are checked here before anything computes on them.

torch's own scaled_dot_product_attention reads past the end of `key` when `value` is longer, drops
keys when it is shorter, and broadcasts heads and batches without a word. So nothing reaches it, or
any other backend, before every size, dtype and device has been compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_LAYOUT = "(batch, heads, length, head_dim)"


@dataclass(frozen=True)
class Sizes:
    """The sizes of one attention problem."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int

    @property
    def group(self) -> int:
        """Query heads served by one key/value head."""
        return self.heads // self.kv_heads if self.kv_heads else 1

    @property
    def grouped(self) -> bool:
        """Do several query heads share a key/value head?"""
        if self.heads == self.kv_heads:  # noqa: SIM103 - a branch is decided while torch.compile traces, a bool is not
            return False
        return True


def check_tensors(query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool) -> Sizes:
    """Compare query, key and value; return their sizes. Raises ShapeError."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_kind(name, tensor)
    _check_alike(query, key, value)
    _check_sizes(query, key, value)
    _check_heads(query.shape[1], key.shape[1], value.shape[1], enable_gqa=enable_gqa)
    return Sizes(
        batch=query.shape[0],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        q_len=query.shape[2],
        kv_len=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
    )


def shape_of(tensor: Tensor) -> str:
    """A shape as it is written: (2, 8, 128, 64)."""
    return str(tuple(tensor.shape))


def _check_kind(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ShapeError(
            name, expected="a torch.Tensor", got=type(tensor).__name__, do="Convert it with torch.as_tensor."
        )
    if tensor.is_nested or tensor.layout != torch.strided:
        raise ShapeError(
            f"{name} layout",
            expected="a dense (strided) tensor",
            got="a nested tensor" if tensor.is_nested else str(tensor.layout),
            do="Pad it with to_padded_tensor and pass mask=Padding(lengths), or call .to_dense().",
        )
    if tensor.dim() != 4:
        raise ShapeError(
            f"{name} dimensions",
            expected=f"4, {_LAYOUT}",
            got=f"{tensor.dim()}, {shape_of(tensor)}",
            do="Add the missing ones with [None], or split embed_dim into heads and head_dim.",
        )
    if tensor.dtype not in FLOATS:
        raise ShapeError(
            f"{name} dtype",
            expected="float16, bfloat16, float32 or float64",
            got=str(tensor.dtype),
            do="Convert it with .float() or .to(torch.bfloat16).",
        )


def _check_alike(query: Tensor, key: Tensor, value: Tensor) -> None:
    for what in ("dtype", "device"):
        kinds = {name: str(getattr(t, what)) for name, t in (("query", query), ("key", key), ("value", value))}
        if len(set(kinds.values())) > 1:
            raise ShapeError(
                f"query, key and value {what}",
                expected="the same for all three",
                got=", ".join(f"{name} {kind}" for name, kind in kinds.items()),
                do="Convert them with .to(...) first; nothing is cast or moved silently.",
            )


def _check_sizes(query: Tensor, key: Tensor, value: Tensor) -> None:
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ShapeError(
            "batch size",
            expected="the same for query, key and value",
            got=f"query {shape_of(query)}, key {shape_of(key)}, value {shape_of(value)}",
            do="Use .expand on the one that is to be shared; nothing is broadcast silently.",
        )
    if key.shape[2] != value.shape[2]:
        raise ShapeError(
            "kv_len",
            expected="as many values as keys",
            got=f"key {shape_of(key)}, value {shape_of(value)}",
            do="Each key needs its value: cut or pad one of them.",
        )
    if query.shape[3] != key.shape[3]:
        raise ShapeError(
            "head_dim",
            expected="the same for query and key",
            got=f"query {shape_of(query)}, key {shape_of(key)}",
            do="Project both to one width; only value may have another.",
        )
    if query.shape[3] == 0 or value.shape[3] == 0:
        raise ShapeError(
            "head_dim",
            expected="at least 1",
            got=f"query {shape_of(query)}, value {shape_of(value)}",
            do="An empty vector has no dot product: check how embed_dim was split into heads.",
        )


def _check_heads(heads: int, key_heads: int, value_heads: int, *, enable_gqa: bool) -> None:
    if heads == key_heads == value_heads:  # nothing is told yet: torch.compile would compile for each number told
        return
    got = f"query {heads}, key {key_heads}, value {value_heads}"
    if key_heads != value_heads:
        raise ShapeError(
            "heads", expected="as many value heads as key heads", got=got, do="Each key head needs its value head."
        )
    if not enable_gqa:
        raise ShapeError(
            "heads",
            expected="the same for query, key and value",
            got=got,
            do="Pass enable_gqa=True to let several query heads share a key/value head.",
        )
    if key_heads == 0 or heads % key_heads:
        raise ShapeError(
            "heads with enable_gqa",
            expected="a number of query heads that is a multiple of the key/value heads",
            got=got,
            do="Each key/value head serves the same number of query heads.",
        )


def check_bias(bias: Tensor, sizes: Sizes, query: Tensor, *, additive: bool) -> Tensor:
    """The bias as 4-D, broadcastable to (batch, heads, q_len, kv_len). Raises ShapeError or ArgumentError."""
    _check_bias_kind(bias, query)
    full = (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len)
    _check_ambiguous("bias", bias, sizes)
    shape = (1,) * (4 - bias.dim()) + tuple(bias.shape)
    if bias.dim() > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise ShapeError(
            "bias",
            expected=f"broadcastable to (batch, heads, q_len, kv_len) = {full}",
            got=shape_of(bias),
            do="Give it size 1 where it is shared.",
        )
    if not additive and _looks_boolean(bias):
        raise ArgumentError(
            "bias",
            expected="numbers to be added to the scores",
            got="a float tensor that holds only 0 and 1",
            do="If 1 means 'may attend', pass mask=bias.bool(); if 0 and 1 are to be added, pass additive=True.",
        )
    # One dtype for every backend: a number beyond it is -inf for all of them, or for none.
    return bias.reshape(shape).to(torch.float64 if query.dtype == torch.float64 else torch.float32)


def _check_bias_kind(bias: object, query: Tensor) -> None:
    if not isinstance(bias, Tensor) or bias.dtype not in FLOATS:
        raise ShapeError(
            "bias",
            expected="a float tensor",
            got=str(bias.dtype) if isinstance(bias, Tensor) else type(bias).__name__,
            do="A bool tensor says which pairs may attend: pass it as mask=.",
        )
    if bias.device != query.device:
        raise ShapeError("bias device", expected=str(query.device), got=str(bias.device), do="Move it with .to(...).")


def _check_ambiguous(name: str, tensor: Tensor, sizes: Sizes) -> None:
    """A 2-D tensor may be meant as (q_len, kv_len) or (batch, kv_len), a 3-D one as (heads, ...) or (batch, ...)."""
    if tensor.dim() == 2 and tensor.shape[0] == sizes.q_len == sizes.batch > 1:
        meanings = "(q_len, kv_len) or (batch, kv_len)", f"{name}[None, None] or {name}[:, None, None]"
    elif tensor.dim() == 3 and tensor.shape[0] == sizes.heads == sizes.batch > 1:
        meanings = "(heads, q_len, kv_len) or (batch, q_len, kv_len)", f"{name}[None] or {name}[:, None]"
    else:
        return
    raise ShapeError(
        name,
        expected="a shape with one meaning",
        got=f"{shape_of(tensor)}, which could be {meanings[0]}",
        do=f"Say which with {meanings[1]}.",
    )


def _looks_boolean(bias: Tensor) -> bool:
    """Only zeros and ones, with at least one 1. A tensor that is being learned is no mask in disguise."""
    if bias.requires_grad or torch.compiler.is_compiling() or bias.is_meta or bias.numel() == 0:
        return False
    try:
        sample = bias.flatten()[:256]
        if not bool(((sample == 0) | (sample == 1)).all()):
            return False
        return bool(((bias == 0) | (bias == 1)).all() & (bias == 1).any())
    except RuntimeError:  # inside vmap values cannot be read; the tensor was checked by its shape alone
        return False


def check_sink(sink: object, sizes: Sizes, query: Tensor) -> None:
    """One logit for each query head, (heads,). Raises ShapeError."""
    if not isinstance(sink, Tensor) or sink.dtype not in FLOATS or tuple(sink.shape) != (sizes.heads,):
        raise ShapeError(
            "sink",
            expected=f"a float tensor with one logit for each query head, ({sizes.heads},)",
            got=f"{sink.dtype} {shape_of(sink)}" if isinstance(sink, Tensor) else type(sink).__name__,
            do="A sink takes part in the softmax like one more key whose value is zero.",
        )
    if sink.device != query.device:
        raise ShapeError("sink device", expected=str(query.device), got=str(sink.device), do="Move it with .to(...).")


def check_scale(scale: float | None, head_dim: int) -> float:
    """The scale, 1 / sqrt(head_dim) unless given (guide 1.1). Raises ArgumentError when not finite."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not _is_number(scale) or not -math.inf < scale < math.inf:
        raise ArgumentError(
            "scale", expected="a finite number", got=repr(scale), do="Leave it out for 1/sqrt(head_dim)."
        )
    return float(scale)


def check_softcap(softcap: float | None) -> float | None:
    """None, or a finite positive number. Raises ArgumentError."""
    if softcap is None:
        return None
    if not _is_number(softcap) or not 0.0 < softcap < math.inf:
        raise ArgumentError("softcap", expected="a positive number", got=repr(softcap), do="Leave it out for no cap.")
    return float(softcap)


def check_dropout(dropout_p: float) -> float:
    """A probability. Raises ArgumentError."""
    if not _is_number(dropout_p) or not 0.0 <= dropout_p <= 1.0:
        raise ArgumentError(
            "dropout_p", expected="a probability from 0 to 1", got=repr(dropout_p), do="Pass 0.0 outside training."
        )
    return float(dropout_p)


def check_seed(seed: int | Tensor | None) -> int | Tensor | None:
    """None, an int of 64 bits, or an integer tensor with one element. Raises ArgumentError."""
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63):
        return seed
    if isinstance(seed, Tensor) and seed.numel() == 1 and seed.dtype in _INTEGERS:
        wide = seed.reshape(()).to(torch.int64)
        if not _seen_negative(wide):
            return wide
    # a tensor's numbers are not known while torch.compile traces, and the error must be worded all the same
    got = f"a {seed.dtype} tensor {tuple(seed.shape)}" if isinstance(seed, Tensor) else repr(seed)
    raise ArgumentError(
        "seed", expected="an integer from 0 to 2**63 - 1", got=got, do="Leave it out to draw one from torch."
    )


def _seen_negative(seed: Tensor) -> bool:
    if torch.compiler.is_compiling() or seed.is_meta:
        return False
    try:
        return int(seed) < 0
    except RuntimeError:  # inside vmap
        return False


def _is_number(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool)
