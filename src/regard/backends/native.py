"""`native`: the compiled core. Fused on CPU forward and backward, every option, memory that grows with length."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.backends import (
    _library,
    _ops,  # noqa: F401  # pyright: ignore[reportUnusedImport] - registers the operators: a compiled graph names them
)
from regard.backends._base import Backend, Problem, Support
from regard.backends._direct import attend, is_transformed
from regard.backends._forward_mode import follows_tangent
from regard.backends._native_inputs import inputs_of

_compiler: Any = torch.compiler  # whose decorators have no types


# The compiler cannot trace a call of the library; the answer stays what it is while it compiles.
@_compiler.assume_constant_result
def _why_absent() -> str | None:
    return _library.why_absent()


class Native(Backend):
    """regard's own CPU kernels (csrc/)."""

    name: ClassVar[str] = "native"

    def support(self, problem: Problem) -> Support:
        """Yes on CPU, unless the library is absent or a transform of torch.func is at work."""
        absent = _why_absent()
        for refused, reason in (
            (problem.query.device.type != "cpu", f"it runs on cpu, not on {problem.query.device.type}"),
            (absent is not None, f"it is absent: {absent}"),
            (is_transformed(), "it has no rule for torch.func's transforms (vmap, grad, jvp)"),
            (follows_tangent(problem), "it has no forward-mode derivative"),
            (_differentiates_infinity(problem), "it has no gradient through an Inf in query, key or value"),
            (max(problem.sizes.q_len, problem.sizes.kv_len) >= 2**31, "its indices are 32 bits wide"),
        ):
            if refused:
                return Support(ok=False, reason=reason)
        return Support(ok=True, reason="fused kernel that skips masked blocks; memory grows with length")

    def run(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """See `Backend.run`."""
        output, lse = attend(inputs_of(problem), with_lse=problem.return_lse)
        return output, None if lse is None else lse.to(torch.float32)


def _differentiates_infinity(problem: Problem) -> bool:
    if not problem.wants_gradient or problem.finite is not False:
        return False
    return any(bool(tensor.isinf().any()) for tensor in (problem.query, problem.key, problem.value))
