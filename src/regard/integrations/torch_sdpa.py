"""`regard.activate()`: every F.scaled_dot_product_attention on CPU, from any model, runs on the native core.

Two operators of torch are replaced through its own dispatcher: `aten::scaled_dot_product_attention`, which sees every
call, so that dropout, a learnable bias and a value of another width no longer leave the fused path; and
`aten::_scaled_dot_product_flash_attention_for_cpu` with its backward, which graphs compiled earlier call by name.
Destroying the registration restores torch exactly. What the core does not serve (other devices, nested tensors, sizes
that torch broadcasts, torch.func) goes on to torch as before.

The inference fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer calls neither; its own operator is
replaced by one that does (`_torch_multihead.py`).
"""

from __future__ import annotations

import threading
import warnings
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import library as operator_library
from torch.nn import attention as torch_attention

from regard._errors import NativeError
from regard.backends import _library, sdpa
from regard.integrations import _torch_multihead as multihead
from regard.integrations import _torch_sdpa_calls as calls
from regard.integrations._torch_cache_tag import CacheTag
from regard.integrations._torch_kernels import FUSED, FusedKernels

_NAME = "regard"  # in torch's list of attention implementations


class Activation:
    """One opening of what `activate` does: a context manager, and the handle that torch's own registry removes."""

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> Self:
        """Activates again if this handle was removed."""
        self._depth += 1
        _open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.remove()

    def remove(self) -> None:
        """Restore torch, unless another handle is open; nothing happens the second time."""
        with _lock:
            if self in _openings:
                _openings.remove(self)
                _restore_torch_if_unused()


_lock = threading.Lock()
_openings: set[Activation] = set()
_undo: ExitStack | None = None


def activate() -> Activation:
    """Run every `F.scaled_dot_product_attention` on CPU on the native core, forward and backward.

    Also a context manager: `with regard.activate(): ...` restores torch at its end. Of several that are open the last
    one to be removed restores torch; `regard.deactivate()` removes all. The seed of a dropout is drawn from torch's
    generator, so torch.manual_seed decides it; which weights are dropped differs from torch's own choice.

    Naming it (`regard.activate`, or `import regard.integrations.torch_sdpa`) also enters "regard" in torch's own list:
    `torch.nn.attention.activate_flash_attention_impl("regard")` does the same, and `restore_flash_attention_impl()`
    undoes it.

    While it is active:

    - `sdpa_kernel(SDPBackend.MATH)`, and whatever else disables torch's flash kernel, leaves the calls inside to torch.
      With FLASH_ATTENTION alone the core also takes dropout and a value of another width, which torch refuses.
    - A second derivative is refused, as torch's fused kernel refuses it; under `sdpa_kernel(SDPBackend.MATH)` there is
      one.
    - A call with a mask or a dropout keeps its output for backward, as torch's fused kernel does and its formula does
      not: an output that is written to in place raises there.
    - In the fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer a token that may attend to nothing gets
      the projection of 0, where torch has NaN.
    - `backend="sdpa"` of `regard.attention` is refused on CPU, since torch's own attention is not there to be run.
    - A graph that torch.compile made with a mask or a dropout stays on the core afterwards, until torch compiles again.
      In torch's caches such code has a tag of its own, so that no other process is handed it.
    - Switch while no other thread computes: torch's dispatcher does not guard calls against a change of its kernels.

    Raises:
        NativeError: the native core is absent; the message says why.
    """
    handle = Activation()
    _open(handle)
    return handle


def deactivate() -> None:
    """Restore torch's own attention, whatever is open; nothing happens when regard is not active."""
    with _lock:
        _openings.clear()
        _restore_torch_if_unused()
    if torch_attention.current_flash_attention_impl() == _NAME:  # torch would go on saying so
        torch_attention.restore_flash_attention_impl()


def is_active() -> bool:
    """Is every scaled_dot_product_attention on CPU regard's?"""
    return _undo is not None


def _open(handle: Activation) -> None:
    global _undo  # noqa: PLW0603 - torch's dispatcher is one for the process
    reason = _library.why_absent()
    if reason is not None:
        raise NativeError(reason)
    with _lock:
        if _undo is None:
            _undo = _replace_torchs()
        _openings.add(handle)


def _restore_torch_if_unused() -> None:
    global _undo
    if _undo is not None and not _openings:
        undo, _undo = _undo, None
        undo.close()


torch_attention.register_flash_attention_impl(_NAME, register_fn=activate)


# ----------------------------------------------------------------------------------- what is switched


def _replace_torchs() -> ExitStack:
    """Everything that is switched, as a stack of what restores it; if one step fails, those before it are undone."""
    with ExitStack() as undo:
        undo.callback(_forget_what_was_resolved)
        with warnings.catch_warnings():  # torch warns that a kernel is replaced; that is what was asked for
            warnings.filterwarnings("ignore", category=UserWarning)
            library: Any = operator_library.Library("aten", "IMPL")
            undo.callback(library._destroy)  # noqa: SLF001 - what torch's own implementations do
            for key in ("CPU", "AutogradCPU"):
                library.impl("scaled_dot_product_attention", calls.attention, key, allow_override=True)
            for key in multihead.KEYS:
                library.impl(multihead.NAME, multihead.multi_head_attention, key, allow_override=True)
            undo.callback(FusedKernels().remove)
        undo.callback(CacheTag().remove)
        sdpa.set_replaced(replaced=True)
        undo.callback(sdpa.set_replaced, replaced=False)
        _forget_what_was_resolved()
        return undo.pop_all()


def _forget_what_was_resolved() -> None:
    """torch's Python side remembers which kernel it found for a key, and is not told when that changes."""
    for name in ("scaled_dot_product_attention", FUSED, f"{FUSED}_backward", multihead.NAME):
        operator: Any = getattr(torch.ops.aten, name).default
        operator._dispatch_cache.clear()  # noqa: SLF001 - torch has no public way
