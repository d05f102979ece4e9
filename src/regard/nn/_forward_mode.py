"""Forward-mode differentiation of operators that have no rule for it: refused, where torch would answer with zeros.

torch's `register_autograd` knows backward only. A tangent that comes in is dropped without a word there, and
what comes out looks as if it depended on nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard._errors import UnsupportedError
from regard.backends._direct import has_tangent


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """UnsupportedError where forward mode (torch.func.jvp, jacfwd) follows one of these into the operator `name`."""
    if not torch.compiler.is_compiling() and has_tangent(*tensors):
        raise UnsupportedError(
            {name: "it has no rule for forward-mode differentiation"},
            do="Take reverse mode: torch.autograd.grad, or torch.func.vjp where it is allowed.",
        )
