"""A model computed by definition: its attention written out, in its own dtype, or all of it in float64.

By definition in float64 is the truth that a passport records. By definition in a lower dtype is plain eager torch, the
yardstick that errors are measured with.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regard import _attention, reference
from regard._errors import UnsupportedError
from regard.trust.plain import plain_attention

_NARROW = (torch.float32, torch.bfloat16, torch.float16)


class ByDefinition(TorchFunctionMode):
    """While open, attention is written out; `exact`: by the reference, and nothing is rounded to a narrower dtype.

    Models cast to float32 in places (a softmax, a norm), and a float64 truth must not.
    """

    def __init__(self, *, exact: bool) -> None:
        super().__init__()
        self._exact = exact

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or what it means."""
        named = kwargs or {}
        if self._exact:
            func = torch.Tensor.double if func in _CASTS else func
            args = tuple(_widened(entry) for entry in args)
            named = {name: _widened(entry) for name, entry in named.items()}
        if func is F.scaled_dot_product_attention:
            return sdpa_by_definition(*args, **named)
        if func is _attention.attention:
            return self._attention(*args, **named)
        if func is F.multi_head_attention_forward and not self._exact:
            return _multihead_written_out(*args, **named)
        return func(*args, **named)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Any:
        named.pop("backend", None)
        with_lse, options = named.pop("return_lse", False), named
        options.pop("additive", None)
        if not self._exact:
            return plain_attention(query, key, value, **options, return_lse=with_lse)
        found = reference.attention(query, key, value, **options)
        return (found.output, found.lse) if with_lse else found.output


_CASTS = frozenset((torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16))


def _widened(entry: Any) -> Any:
    return torch.float64 if isinstance(entry, torch.dtype) and entry in _NARROW else entry


def sdpa_by_definition(  # noqa: PLR0917 - torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - a passport is of what a model computes, not of its dropout
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What F.scaled_dot_product_attention means, for any number of dimensions; a row that sees nothing gives 0."""
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    if is_causal:
        allowed = allowed.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        scores, allowed = scores + attn_mask.to(scores.dtype), allowed & (attn_mask != -math.inf)
    empty = ~allowed.any(-1, keepdim=True)
    weights = scores.masked_fill(~allowed, -math.inf).masked_fill(empty, 0.0).softmax(-1)
    return weights.masked_fill(empty, 0.0) @ value


_MULTIHEAD = inspect.signature(F.multi_head_attention_forward)


def _multihead_written_out(*args: Any, **named: Any) -> Any:
    """nn.MultiheadAttention writes its attention out when it is asked for the weights."""
    bound = _MULTIHEAD.bind(*args, **named)
    wanted = bound.arguments.get("need_weights", True)
    bound.arguments["need_weights"] = True
    output, weights = cast("Any", F.multi_head_attention_forward)(*bound.args, **bound.kwargs)
    return output, weights if wanted else None


def copied(model: nn.Module, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
    """The model with its parameters in another dtype, on another device.

    Buffers that are not saved with it (frequencies of rotary positions, masks) keep their dtype below float64, as they
    do when a model is loaded in that dtype.
    """
    try:
        other = copy.deepcopy(model)
    except Exception as problem:
        reason = f"the model cannot be copied ({type(problem).__name__}: {problem})"
        raise UnsupportedError({"passport": reason}, do="Record one of its modules, or a callable.") from problem
    kept = [] if dtype == torch.float64 else list(_derived_buffers(other))
    _cast(other, dtype, device)
    for module, name, buffer in kept:
        setattr(module, name, buffer.to(device))  # .to() casts all of them alike
    return other.eval()


def _cast(model: nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
    """As .to() does, but complex numbers (rotations) stay complex, which .to() would cut to their real part."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast_tensor(tensor: Tensor) -> Tensor:
        wanted = dtype if tensor.is_floating_point() else complex_dtype if tensor.is_complex() else tensor.dtype
        return tensor.to(device=device, dtype=wanted)

    cast("Any", model)._apply(cast_tensor)  # noqa: SLF001 - what .to() itself calls


def _derived_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (module, name, buffer)
        for module in cast("Any", model.modules())
        for name, buffer in module._buffers.items()  # noqa: SLF001 - the only place that says which are not saved
        if buffer is not None and name in module._non_persistent_buffers_set  # noqa: SLF001
    ]


def by_definition(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the model on the CPU whose attention `ByDefinition` can read."""
    other: Any = copied(model, dtype)
    config = getattr(other, "config", None)
    if getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        _choose(other.set_attn_implementation, "sdpa", "eager")
    if getattr(config, "_experts_implementation", None) not in (None, "eager"):
        _choose(other.set_experts_implementation, "eager")  # the others have kernels for some dtypes only
    return other


def _choose(choose: Callable[[str], None], *names: str) -> None:
    """The first that the model takes."""
    for name in names:
        try:
            choose(name)
        except ValueError:
            continue
        return
