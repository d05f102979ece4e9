"""`sdpa`: torch.nn.functional.scaled_dot_product_attention, with what it gets wrong kept away from it.

Its fused kernels turn a query or key full of NaN into zeros, and let a NaN in a masked key or value
through. So where values can be read, anything that is not finite is refused; where they cannot (inside
torch.compile or vmap) the kernel gets finite numbers only and the NaN is put where it belongs.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor

from regard._finite import finite_part
from regard.backends._base import Backend, Problem, Support
from regard.backends._direct import is_transformed_twice
from regard.backends._forward_mode import follows_tangent
from regard.masks import Causal

_replaced = False


def set_replaced(*, replaced: bool) -> None:
    """Say whether F.scaled_dot_product_attention on CPU is torch's own no more, so that it is not taken for torch's."""
    global _replaced  # noqa: PLW0603 - torch's dispatcher is one for the process
    _replaced = replaced


_WHY_REPLACED = "regard.activate() has put the native core in its place; call regard.deactivate() first"


class Sdpa(Backend):
    """torch's scaled_dot_product_attention."""

    name: ClassVar[str] = "sdpa"

    def support(self, problem: Problem) -> Support:
        """Yes, unless an option has no counterpart in SDPA, or the values are not finite."""
        for refused, reason in (
            (_replaced and problem.query.device.type == "cpu", _WHY_REPLACED),
            (problem.dropout_p > 0.0, "its dropout takes no seed, so backward and other backends could not repeat it"),
            (problem.softcap is not None, "it has no softcap"),
            (problem.sink is not None, "it has no sink"),
            (problem.has_term("content"), f"it cannot add the content term of {_name(problem)}"),
            (problem.has_term("value"), f"it cannot add the value term of {_name(problem)}"),
            (problem.return_lse, _why_no_lse(problem)),
            (follows_tangent(problem), "it has no forward-mode derivative"),
            (is_transformed_twice(), "it has no second derivative, which a transform within another may be"),
            (problem.finite is False, "query, key or value holds NaN or Inf, which its kernels turn to zeros or leak"),
        ):
            if refused and reason:
                return Support(ok=False, reason=reason)
        return Support(ok=True, reason=_cost(problem))

    def run(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """See `Backend.run`."""
        query, key = problem.rotated()
        if problem.finite:
            return self._finite(problem, query, key, problem.value)
        output, lse = self._finite(problem, *(finite_part(t) for t in (query, key, problem.value)))
        bad_row, bad_channel = _touched(problem, query, key)
        output = output * _nan_where(bad_row | bad_channel, output)
        return output, None if lse is None else lse * _nan_where(bad_row[..., 0], lse)

    def _finite(self, problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        mask, is_causal = _mask_argument(problem)
        if problem.return_lse:
            return _flash_with_lse(problem, query, key, value, mask, is_causal=is_causal)
        output = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=is_causal, scale=problem.scale, enable_gqa=problem.sizes.grouped
        )
        return output, None


def _name(problem: Problem) -> str:
    return type(problem.position).__name__


def _why_no_lse(problem: Problem) -> str:
    if problem.query.device.type != "cpu":
        return "only its CPU kernel gives the lse"
    if problem.wants_gradient:
        return "its lse has no gradient"
    if problem.sizes.value_dim != problem.sizes.head_dim:
        return "its kernel that gives the lse wants a value as wide as the key"
    if 0 in (problem.sizes.batch, problem.sizes.heads, problem.sizes.q_len, problem.sizes.kv_len):
        return "its kernel that gives the lse takes no empty input"
    return ""


def _cost(problem: Problem) -> str:
    if problem.sizes.value_dim != problem.sizes.head_dim:
        return "exact, but a value of another width takes its unfused path: memory grows with q_len x kv_len"
    if problem.bias is not None and problem.bias.requires_grad:
        return "exact, but a bias that needs a gradient takes its unfused path: memory grows with q_len x kv_len"
    if problem.mask is None and problem.bias is None and not problem.has_term("bias"):
        return "fused kernel"
    return "fused kernel" if _as_flag(problem) else "fused kernel over a dense mask of q_len x kv_len"


def _as_flag(problem: Problem) -> bool:
    """Can the mask be said with is_causal=True, whose corner is the top left?"""
    mask = problem.mask
    if not isinstance(mask, Causal) or problem.bias is not None or problem.has_term("bias"):
        return False
    if problem.scale <= 0:  # the CPU kernel scales the -inf of the flag too: 0 makes it NaN, -1 makes it +inf
        return False
    return problem.sizes.q_len == problem.sizes.kv_len or mask.align == "top_left"


def _mask_argument(problem: Problem) -> tuple[Tensor | None, bool]:
    """SDPA's attn_mask (bool, or float to be added) and is_causal."""
    if _as_flag(problem):
        return None, True
    added, allowed = problem.added(), problem.allowed()
    if added is None:
        return allowed, False
    half = problem.query.dtype in (torch.float16, torch.bfloat16)  # where -1e9 may become -inf: keep it in float32
    added = added.to(torch.float32 if half and problem.query.device.type == "cpu" else problem.query.dtype)
    if allowed is not None:
        added = torch.where(allowed, added, -math.inf)
    return added.expand(-1, -1, problem.sizes.q_len, problem.sizes.kv_len), False


def _flash_with_lse(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """The CPU kernel behind SDPA, which also returns the lse; it wants one key head for each query head."""
    key, value = (tensor.repeat_interleave(problem.sizes.group, dim=1) for tensor in (key, value))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001 - the one that tells
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=problem.scale
    )
    empty = None if mask is None else (mask == -math.inf).all(-1)
    lse = lse.to(torch.float32)
    return output, lse if empty is None else lse.masked_fill(empty, -math.inf)


def _touched(problem: Problem, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """What depends on a number that is not finite.

    Returns the rows that do by their query or keys, (batch, heads, q_len, 1), and the output channels that do by
    their values, (batch, heads, q_len or 1, value_dim). An Inf counts as a NaN here.
    """
    bad = torch.cat([~key.isfinite().all(-1, keepdim=True), ~problem.value.isfinite()], dim=-1)
    bad = bad.repeat_interleave(problem.sizes.group, dim=1).to(torch.float32)
    bad_query = ~query.isfinite().all(-1, keepdim=True)
    allowed = _allowed_by_mask_and_bias(problem)
    if allowed is None:
        seen = bad.sum(-2, keepdim=True) > 0
    else:
        seen = allowed.to(torch.float32) @ bad > 0
        bad_query = bad_query & allowed.any(-1, keepdim=True)
    return bad_query | seen[..., :1], seen[..., 1:]


def _allowed_by_mask_and_bias(problem: Problem) -> Tensor | None:
    """A bias of -inf forbids as a mask does."""
    allowed = problem.allowed()
    if problem.bias is None:
        return allowed
    open_pairs = (problem.bias != -math.inf).expand(-1, -1, problem.sizes.q_len, problem.sizes.kv_len)
    return open_pairs if allowed is None else allowed & open_pairs


def _nan_where(touched: Tensor, like: Tensor) -> Tensor:
    return torch.where(touched, math.nan, 1.0).to(like.dtype)
