"""`eager`: the reference, in plain torch operations. Honours every option; costs O(q_len * kv_len) memory."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard import reference
from regard.backends._base import Backend, Problem, Support


class Eager(Backend):
    """Plain torch operations on the whole score matrix: every option, every derivative, quadratic memory."""

    name: ClassVar[str] = "eager"

    def support(self, problem: Problem) -> Support:
        """Always yes."""
        return Support(ok=True, reason="plain torch operations; memory grows with q_len x kv_len")

    def run(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """See `Backend.run`."""
        result = reference.attention(
            problem.query,
            problem.key,
            problem.value,
            mask=problem.mask,
            position=problem.position,
            bias=problem.bias,
            scale=problem.scale,
            softcap=problem.softcap,
            sink=problem.sink,
            dropout_p=problem.dropout_p,
            seed=problem.seed,
            enable_gqa=problem.sizes.grouped,
        )
        return result.output, result.lse.to(torch.float32) if problem.return_lse else None
