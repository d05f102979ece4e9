"""Who computes the attention inside of a model, for as long as a run takes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import nn

from regard._errors import UnsupportedError
from regard.integrations.torch_sdpa import activate, is_active
from regard.trust.implementation import implemented

IMPLEMENTATIONS: Mapping[str, str] = {"native": "sdpa", "sdpa": "sdpa", "eager": "eager", "flex": "flex_attention"}
"""What a transformers model is set to, so that a backend of regard's computes its attention."""


@contextmanager
def computed_by(model: nn.Module, backend: object) -> Generator[None]:
    """While open, the model's attention is computed by this backend; None leaves it as it is.

    Raises:
        UnsupportedError: that cannot be arranged.
    """
    if backend is None:
        yield
        return
    if not isinstance(backend, str) or backend not in IMPLEMENTATIONS:
        raise UnsupportedError(
            {"passport": f"attention inside of a model cannot be given to {backend!r}"},
            do=f"Name one of {', '.join(IMPLEMENTATIONS)}, or replay without the model.",
        )
    if backend == "sdpa" and is_active():
        raise UnsupportedError(
            {"passport": "regard is active, so sdpa is not torch's"}, do="regard.deactivate() first."
        )
    with ExitStack() as stack:
        stack.enter_context(_implemented(model, IMPLEMENTATIONS[backend], needed=backend in ("eager", "flex")))
        around: AbstractContextManager[object] = activate() if backend == "native" else nullcontext()
        stack.enter_context(around)
        yield


@contextmanager
def _implemented(model: nn.Module, name: str, *, needed: bool) -> Generator[None]:
    """A transformers model set to an implementation, and back; another model as it is, unless that is not enough."""
    config = getattr(model, "config", None)
    if not hasattr(model, "set_attn_implementation") or getattr(config, "_attn_implementation", None) is None:
        if needed:
            reason = f"the model has no choice of implementations, so {name!r} cannot be taken"
            raise UnsupportedError({"passport": reason}, do="Replay without the model.")
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(implemented(model, name))
        except (ValueError, ImportError) as problem:
            raise UnsupportedError({"passport": str(problem)}, do="Name another backend.") from problem
        yield
