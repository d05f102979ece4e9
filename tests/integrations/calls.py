"""Calls of F.scaled_dot_product_attention: those the native core serves, and those torch goes on serving."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor

from regard.backends import _library
from regard.trust import budget

BATCH, HEADS, WIDTH = 2, 4, 8


@dataclass(frozen=True)
class Call:
    """Tensors (query, key, value) and the options of scaled_dot_product_attention."""

    tensors: Callable[[], list[Tensor]]
    options: Callable[[], dict[str, Any]] = dict

    def made(self, dtype: torch.dtype, *, gradient: bool) -> tuple[list[Tensor], dict[str, Any]]:
        """The same numbers every time, as leaves that learn when `gradient` is asked for."""
        torch.manual_seed(3)
        tensors = [leaf(tensor, dtype, gradient) for tensor in self.tensors()]
        options = self.options()
        mask = options.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            options["attn_mask"] = leaf(mask, dtype, gradient and mask.requires_grad)
        return tensors, options


def leaf(tensor: Tensor, dtype: torch.dtype, gradient: bool) -> Tensor:
    """The tensor in another dtype, with its strides, as a leaf."""
    held = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
    if 0 in tensor.stride():  # a view that repeats itself is filled where it lies
        held = tensor.detach().to(dtype).as_strided(tensor.shape, tensor.stride())
    else:
        held.copy_(tensor.detach())
    return held.requires_grad_(gradient)


def sized(
    q_len: int = 9, kv_len: int = 9, *, kv_heads: int = HEADS, value_dim: int = WIDTH
) -> Callable[[], list[Tensor]]:
    """Unit-normal tensors of these lengths."""
    return lambda: [
        torch.randn(BATCH, HEADS, q_len, WIDTH),
        torch.randn(BATCH, kv_heads, kv_len, WIDTH),
        torch.randn(BATCH, kv_heads, kv_len, value_dim),
    ]


def masked(*shape: int, gradient: bool = False, kind: str = "bool") -> Callable[[], dict[str, Any]]:
    """A mask of this shape in which no query is left without a key."""

    def make() -> dict[str, Any]:
        if kind == "bool":
            mask = torch.rand(shape) < 0.7
            mask[..., 0] = True
            return {"attn_mask": mask}
        mask = torch.randn(shape)
        if kind == "forbidding":
            mask[..., 1] = -math.inf
        return {"attn_mask": mask.requires_grad_(gradient)}

    return make


def fixed(**options: Any) -> Callable[[], dict[str, Any]]:
    """Options that hold no tensor."""
    return lambda: dict(options)


def _slices() -> list[Tensor]:
    return [torch.randn(BATCH, 9, HEADS, WIDTH).transpose(1, 2), torch.randn(BATCH, HEADS, 18, WIDTH)[:, :, ::2],
            torch.randn(BATCH, HEADS, WIDTH, 9).transpose(2, 3)]  # fmt: skip


def _repeated() -> list[Tensor]:
    return [torch.randn(1, 1, 9, WIDTH).expand(BATCH, HEADS, 9, WIDTH) for _ in range(3)]


def _unbatched() -> list[Tensor]:
    return [torch.randn(HEADS, length, WIDTH) for length in (5, 9, 9)]


SERVED = {
    "dense": Call(sized()),
    "other-lengths": Call(sized(5, 13)),
    "one-query": Call(sized(1, 33)),
    "long": Call(sized(130, 150)),
    "causal": Call(sized(), fixed(is_causal=True)),
    "causal-fewer-queries": Call(sized(5, 9), fixed(is_causal=True)),
    "causal-more-queries": Call(sized(9, 5), fixed(is_causal=True)),
    "scale": Call(sized(), fixed(scale=0.3)),
    "scale-zero": Call(sized(), fixed(scale=0.0)),
    "bool-2d": Call(sized(5, 9), masked(5, 9)),
    "bool-3d": Call(sized(5, 9), masked(HEADS, 5, 9)),
    "bool-4d": Call(sized(5, 9), masked(BATCH, HEADS, 5, 9)),
    "bool-of-keys": Call(sized(5, 9), masked(BATCH, 1, 1, 9)),
    "bool-of-queries": Call(sized(5, 9), masked(BATCH, HEADS, 5, 1)),
    "float-2d": Call(sized(5, 9), masked(5, 9, kind="float")),
    "float-4d": Call(sized(5, 9), masked(BATCH, 1, 5, 9, kind="forbidding")),
    "float-of-keys": Call(sized(5, 9), masked(1, HEADS, 1, 9, kind="float")),
    "float-that-learns": Call(sized(5, 9), masked(HEADS, 5, 9, gradient=True, kind="float")),
    "grouped": Call(sized(5, 9, kv_heads=2), fixed(enable_gqa=True)),
    "grouped-causal": Call(sized(kv_heads=1), fixed(enable_gqa=True, is_causal=True)),
    "value-of-another-width": Call(sized(value_dim=5)),
    "unbatched": Call(_unbatched),
    "unbatched-mask": Call(_unbatched, masked(5, 9)),
    "not-contiguous": Call(_slices),
    "repeated": Call(_repeated),
}


def _broadcast() -> list[Tensor]:
    return [torch.randn(BATCH, HEADS, 5, WIDTH), *(torch.randn(1, 1, 9, WIDTH) for _ in range(2))]


def _more_key_dimensions() -> list[Tensor]:
    return [torch.randn(2, 4, 5, WIDTH), *(torch.randn(2, 2, 4, 7, WIDTH) for _ in range(2))]


PASSED_ON = {
    "broadcast": Call(_broadcast),
    "no-queries": Call(sized(0, 5)),
    "no-keys": Call(sized(5, 0)),
    "two-dimensions": Call(lambda: [torch.randn(5, WIDTH) for _ in range(3)]),
    "five-dimensions": Call(lambda: [torch.randn(2, 2, 3, 5, WIDTH) for _ in range(3)]),
    "more-key-dimensions": Call(_more_key_dimensions),
    "more-key-dimensions-grouped": Call(_more_key_dimensions, fixed(enable_gqa=True)),
    "more-query-dimensions": Call(lambda: [torch.randn(2, 2, 4, 5, WIDTH), *(torch.randn(2, 4, 5, WIDTH),) * 2]),
    "mask-and-causal": Call(sized(), lambda: {**masked(9, 9)(), "is_causal": True}),
}

QUERY = torch.zeros(BATCH, HEADS, 5, WIDTH)
INVALID: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "dtypes": ([QUERY, QUERY.double(), QUERY], {}),
    "integers": ([QUERY.int()] * 3, {}),
    "widths": ([QUERY, QUERY[..., :3], QUERY], {}),
    "mask-shape": ([QUERY] * 3, {"attn_mask": torch.ones(3, 3, dtype=torch.bool)}),
    "mask-dtype": ([QUERY] * 3, {"attn_mask": torch.ones(5, 5, dtype=torch.int64)}),
    "mask-of-one-dimension": ([QUERY] * 3, {"attn_mask": torch.ones(5)}),
    "probability": ([QUERY] * 3, {"dropout_p": 1.5}),
    "groups": ([QUERY, QUERY[:, :3], QUERY[:, :3]], {"enable_gqa": True}),
    "heads": ([QUERY, QUERY[:, :2], QUERY[:, :2]], {}),
    "devices": ([QUERY, QUERY.to("meta"), QUERY], {}),
    "longer-keys": ([QUERY, torch.zeros(BATCH, HEADS, 900, WIDTH), QUERY], {"attn_mask": torch.ones(5, 5).bool()}),
    "one-dimension": ([torch.zeros(5)] * 3, {}),
}


NOT_DENSE: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "sparse-mask": ([QUERY] * 3, {"attn_mask": torch.ones(5, 5).to_sparse()}),
    "sparse-bool-mask": ([QUERY] * 3, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).to_sparse()}),
    "sparse-query": ([QUERY.to_sparse(), QUERY, QUERY], {}),
    "sparse-value": ([QUERY, QUERY, QUERY.to_sparse()], {"dropout_p": 0.1}),
    "mkldnn-query": ([QUERY.to_mkldnn(), QUERY, QUERY], {}),
}


def outcome(call: Call, dtype: torch.dtype, *, gradient: bool) -> list[Tensor]:
    """The output, and the gradients of everything that learns."""
    tensors, options = call.made(dtype, gradient=gradient)
    output = F.scaled_dot_product_attention(*tensors, **options)
    if not gradient:
        return [output]
    learned = [*tensors, *(each for each in options.values() if isinstance(each, Tensor) and each.requires_grad)]
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad((output * weights.to(dtype)).sum(), learned)]


class Counted:
    """How often the native core was called since this was made, forward and backward."""

    def __init__(self) -> None:
        self._before = _library.calls()

    @property
    def forward(self) -> int:
        return _library.calls()[0] - self._before[0]

    @property
    def backward(self) -> int:
        return _library.calls()[1] - self._before[1]


def kernels() -> str:
    """What torch's dispatcher holds for the operators that are replaced."""
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    names = ("scaled_dot_product_attention", fused, f"{fused}_backward", "_native_multi_head_attention")
    return "\n".join(torch._C._dispatch_dump(f"aten::{name}") for name in names)


def assert_near(found, exact, plain):
    """Within the budget of regard.trust.budget: twice torch's own error, three times for gradients, and roundings."""
    assert len(found) == len(exact) == len(plain)
    for number, (have, want, torchs) in enumerate(zip(found, exact, plain, strict=True)):
        assert have.dtype == torchs.dtype
        assert have.shape == torchs.shape
        if want.numel() == 0:
            continue
        error, own = (float((each.double() - want).abs().max()) for each in (have, torchs))
        floor = max(budget.floor(other, have.dtype) for other in exact)
        limit = 1e-11 if have.dtype == torch.float64 else (3.0 if number else 2.0) * own + 2.0 * floor
        assert error <= limit, f"result {number}: error {error:.3g} above {limit:.3g}"
