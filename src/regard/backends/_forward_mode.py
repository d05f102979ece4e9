"""Forward-mode differentiation (jvp, jacfwd, hessian): who follows a tangent, which the fused kernels cannot."""

from __future__ import annotations

from regard.backends._base import Problem
from regard.backends._direct import has_tangent


def follows_tangent(problem: Problem) -> bool:
    """Has one of the tensors of a problem, or of what its position has learned, a tangent?"""
    learned = () if problem.position is None else problem.position.parameters()
    return has_tangent(problem.query, problem.key, problem.value, problem.bias, problem.sink, *learned)
