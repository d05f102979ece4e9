"""How a callable is called with a question: each option by the parameter that serves it, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard._errors import ArgumentError, UnsupportedError
from regard.masks import Mask
from regard.masks._align import Align
from regard.masks._band import Band
from regard.masks._lowering import lower
from regard.trust.question import Question
from regard.trust.signature import Signature

Layout = Literal["bhnd", "bnhd"]


@dataclass(frozen=True)
class Calling:
    """A callable with what is known of its parameters; see `as_target` for layout and corner."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    layout: Layout
    corner: Align | None

    def output(self, question: Question) -> Tensor:
        """What it computes, (batch, heads, q_len, value_dim)."""
        returned = self._called(question, {})
        return self._turned(self._tensor(returned[0] if type(returned) in {tuple, list} else returned))

    def output_and_lse(self, question: Question) -> tuple[Tensor, Tensor]:
        """The same with the lse, (batch, heads, q_len)."""
        name = self.signature.parameters["return_lse"]
        output, lse = self._called(question, {} if name is None else {name: True})[:2]
        return self._turned(self._tensor(output)), self._tensor(lse)

    def _tensor(self, returned: object) -> Tensor:
        if isinstance(returned, Tensor):
            return returned
        raise ArgumentError(
            f"what {self.name} returns",
            expected="a tensor, or a tuple that begins with one",
            got=type(returned).__name__,
            do="Pass adapter= a function from a Question to the output.",
        )

    def _called(self, question: Question, more: Mapping[str, Any]) -> Any:
        tensors = (self._turned(tensor) for tensor in (question.query, question.key, question.value))
        return self.function(*tensors, **self._keywords(question), **more)

    def _turned(self, tensor: Tensor) -> Tensor:
        return tensor if self.layout == "bhnd" else tensor.transpose(1, 2)

    def _keywords(self, question: Question) -> dict[str, Any]:
        asked = question.asked()
        said = self._of_mask(asked.pop("mask"), asked, question) if "mask" in asked else {}
        for option, value in asked.items():
            if option not in self.signature.parameters:
                raise self._refusal(f"it has no parameter for {option}")
            name = self.signature.parameters[option]
            if name is not None:
                said[name] = value
        return said

    def _refusal(self, reason: str) -> UnsupportedError:
        return UnsupportedError({self.name: reason}, do="Pass adapter= if it can be asked in another way.")

    def _of_mask(self, mask: Mask | Tensor, asked: dict[str, Any], question: Question) -> dict[str, Any]:
        """The parameters that say the mask; a bias that shares its parameter is taken out of `asked` and joined."""
        name = self.signature.parameters.get("mask")
        if self.signature.takes_masks and name is not None:
            return {name: mask}
        with_bias = name is not None and name == self.signature.parameters.get("bias") and "bias" in asked
        flags = None if with_bias or isinstance(mask, Tensor) else self._as_flags(mask, question)
        if flags is not None:
            return flags
        if name is None:
            raise self._refusal(f"it has no parameter that can say {mask!r}")
        allowed = dense_mask(mask, question)
        if not with_bias:
            return {name: allowed}
        bias = asked.pop("bias")
        return {name: torch.where(allowed, bias, torch.full_like(bias, -math.inf))}

    def _as_flags(self, mask: Mask, question: Question) -> dict[str, Any] | None:
        """A band of distances by `causal` or a window, or None where they cannot say it."""
        sizes, parameters = question.sizes, self.signature.parameters
        band = _band(mask, sizes.q_len, sizes.kv_len)
        if band is None:
            return None
        causal = (band.before, band.after) == (None, 0)
        if causal and band.offset == 0 and "is_causal" in parameters:
            return _said(parameters["is_causal"], value=True)
        own = {"top_left": 0, "bottom_right": sizes.kv_len - sizes.q_len}.get(self.corner or "")
        if sizes.q_len != sizes.kv_len and band.offset != own:
            return None
        if causal and "causal" in parameters:
            return _said(parameters["causal"], value=True)
        return self._as_window(band)

    def _as_window(self, band: Band) -> dict[str, Any] | None:
        parameters = self.signature.parameters
        if "window" in parameters:
            return _said(
                parameters["window"], tuple(-1 if side is None else side for side in (band.before, band.after))
            )
        if "sliding_window" not in parameters or band.before is None or band.after != 0:
            return None
        flag = parameters.get("is_causal", parameters.get("causal"))
        return _said(parameters["sliding_window"], band.before + 1) | _said(flag, value=True)


def _said(parameter: str | None, value: object) -> dict[str, Any]:
    return {} if parameter is None else {parameter: value}


def _band(mask: Mask, q_len: int, kv_len: int) -> Band | None:
    """The mask as a band of distances, or None when it is more than one."""
    form = lower(mask, q_len, kv_len)
    if any(part is not None for part in (form.intervals, form.tiles, form.dense)):
        return None
    return Band(form.before, form.after, form.offset)


def dense_mask(mask: Mask | Tensor, question: Question) -> Tensor:
    """The mask as a bool tensor (batch or 1, heads or 1, q_len, kv_len), True = may attend."""
    sizes = question.sizes
    if not isinstance(mask, Tensor):
        mask = mask.dense(sizes.q_len, sizes.kv_len, device=question.query.device)
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return mask.expand(-1, -1, sizes.q_len, sizes.kv_len)
