"""`flex`: torch's FlexAttention, with block lists made from the mask's structure.

FlexAttention's own create_block_mask evaluates every pair (seconds at 16k tokens); `Mask.blocks` gives
the same lists from the formula. Small problems run unfused, because compiling costs seconds.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from regard.backends._base import Backend, Problem, Support
from regard.masks import Mask
from regard.masks._base import Indices

BLOCK = 128
COMPILE_FROM_SCORES = 2**22
"""Below this many scores (batch * heads * q_len * kv_len) the unfused form beats the cost of compiling."""

_Mod = Callable[..., Tensor]
_attend = cast("Callable[..., Any]", flex_attention)  # its overloads carry a deprecated form
_first_call = threading.Lock()


class Flex(Backend):
    """torch's FlexAttention: fused, skips masked blocks; on CPU it only runs forward."""

    name: ClassVar[str] = "flex"

    def support(self, problem: Problem) -> Support:
        """Yes, unless an option cannot be said with its score and mask functions."""
        sizes = problem.sizes
        for refused, reason in (
            (problem.dropout_p > 0.0, "it has no dropout"),
            (problem.sink is not None, "it has no sink"),
            (problem.has_term("content"), f"it cannot add the content term of {type(problem.position).__name__}"),
            (problem.has_term("value"), f"it cannot add the value term of {type(problem.position).__name__}"),
            (0 in (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len), "it takes no empty input"),
            (
                problem.query.device.type == "cpu" and problem.wants_gradient,
                "it has no backward on CPU; detach the inputs or use torch.no_grad()",
            ),
            (
                problem.query.device.type == "cpu" and problem.return_lse and _worth_compiling(problem),
                "its fused CPU kernel gives no lse",
            ),
            (problem.query.dtype == torch.float64 and _worth_compiling(problem), "its kernels have no float64"),
            (problem.finite is False, "query, key or value holds NaN or Inf, which it lets through the mask"),
            (
                problem.finite is None or not _readable(problem.bias),
                "inside torch.compile and vmap its rules cannot be kept",
            ),
        ):
            if refused:
                return Support(ok=False, reason=reason)
        if _worth_compiling(problem):
            return Support(ok=True, reason="fused kernel that skips masked blocks; the first call compiles for seconds")
        return Support(ok=True, reason="unfused below 4 M scores, where compiling would cost more than it saves")

    def run(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """See `Backend.run`."""
        query, key = problem.rotated()
        value = problem.value
        if query.device.type == "cpu":  # where it looks at requires_grad even under torch.no_grad
            query, key, value = query.detach(), key.detach(), value.detach()
        arguments: dict[str, Any] = {
            "score_mod": _score_function(problem),
            "block_mask": None if problem.mask is None else block_mask(problem.mask, problem),
            "scale": problem.scale,
            "enable_gqa": problem.sizes.grouped,
        }
        call = _compiled(_signature(problem)) if _worth_compiling(problem) else _unfused
        output, lse = call(query, key, value, with_lse=problem.return_lse, **arguments)
        return output, None if lse is None else lse.to(torch.float32)


def _readable(tensor: Tensor | None) -> bool:
    """False inside vmap, where no value can be read and FlexAttention cannot be traced."""
    try:
        if tensor is not None and tensor.numel():
            bool(tensor.detach().flatten()[0].isnan())
    except RuntimeError:
        return False
    return True


def _worth_compiling(problem: Problem) -> bool:
    sizes = problem.sizes
    return sizes.batch * sizes.heads * sizes.q_len * sizes.kv_len >= COMPILE_FROM_SCORES


def _signature(problem: Problem) -> tuple[object, ...]:
    """What a compiled kernel depends on. A mask is an immutable value; a position is told apart by its kind."""
    added = problem.added()
    kind = None if added is None else tuple(added.shape)
    inputs = (problem.sizes, problem.query.dtype, problem.query.device)
    return (problem.mask, kind, problem.scale, problem.softcap, *inputs)


def _call(
    query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    if not with_lse:  # the fused CPU kernel cannot even be asked for it
        return _attend(query, key, value, **arguments), None
    output, aux = _attend(query, key, value, return_aux=AuxRequest(lse=True), **arguments)
    return output, aux.lse


@functools.lru_cache(maxsize=64)
def _compiled(signature: tuple[object, ...]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """One compiled function for each signature, so that one mask's recompilation never evicts another's."""
    del signature
    compiler = cast("Callable[..., Any]", torch.compile)  # pyright: ignore[reportUnknownMemberType] - half typed
    alone = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(compiler).parameters else {}
    return compiler(_call, fullgraph=True, dynamic=False, **alone)


def _unfused(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> tuple[Tensor, Tensor | None]:
    if torch.compiler.is_compiling():
        return _call(query, key, value, **arguments)
    with _first_call, warnings.catch_warnings():
        # It warns that this form is unfused; that is what was decided here.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _call(query, key, value, **arguments)


def _score_function(problem: Problem) -> _Mod | None:
    """softcap, then everything that is added, looked up by index."""
    softcap, added = problem.softcap, problem.added()
    if softcap is None and added is None:
        return None
    if added is not None:
        sizes = problem.sizes
        added = added.expand(sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len)

    def score(raw: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        capped = raw if softcap is None else softcap * torch.tanh(raw / softcap)
        return capped if added is None else capped + added[batch, head, query, key]

    return score


def mask_function(mask: Mask, q_len: int, kv_len: int) -> _Mod:
    """The mask as FlexAttention's mask_mod(batch, head, query, key)."""

    def mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = Indices(
            batch=batch if mask.batch_size is not None else torch.zeros_like(batch),
            head=head if mask.head_count is not None else torch.zeros_like(head),
            query=query,
            key=key,
            q_len=q_len,
            kv_len=kv_len,
        )
        return mask.keep(at)

    return mod


def block_mask(mask: Mask, problem: Problem) -> BlockMask:
    """FlexAttention's BlockMask, from the mask's structure instead of from every pair."""
    sizes, device = problem.sizes, problem.query.device
    blocks = mask.blocks(sizes.q_len, sizes.kv_len, BLOCK)
    # As torch does it: a last block that is cut short is never full, so that its elements are looked at.
    whole_rows = (torch.arange(blocks.full.shape[-2]) + 1) * BLOCK <= sizes.q_len
    whole_cols = (torch.arange(blocks.full.shape[-1]) + 1) * BLOCK <= sizes.kv_len
    full = blocks.full & whole_rows.unsqueeze(-1) & whole_cols
    partial_count, partial_index = _lists(blocks.partial | (blocks.full & ~full), device)
    full_count, full_index = _lists(full, device)
    return BlockMask.from_kv_blocks(
        partial_count,
        partial_index,
        full_count,
        full_index,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_function(mask, sizes.q_len, sizes.kv_len),
        seq_lengths=(sizes.q_len, sizes.kv_len),
    )


def _lists(chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each query block: how many key blocks are chosen, and their indices first."""
    count = chosen.sum(-1, dtype=torch.int32)
    index = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    return count.to(device), index.to(device)
