"""`regard.observe`: see the attention of any torch model while its fused kernels stay on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from regard._errors import ArgumentError, RegardError, UnsupportedError
from regard._front_door import build_problem
from regard.observation.call import AttentionCall, remember
from regard.observation.huggingface import listening
from regard.observation.statistics import Statistics, statistics
from regard.observation.tiles import Selection, row_lse, select, weight_tile
from regard.observation.torch_functions import SeeAttention, invisible

TOLERANCE = 1e-5
"""Largest difference between weights . value and what the layer gave, in float32 (FAULTS F68), relative to its size."""


class ObservedLayer:
    """One attention layer as it ran last. Weights are computed when asked for, exact, in O(tile) memory."""

    def __init__(self, name: str, call: AttentionCall) -> None:
        self.name = name
        self.call = call
        self._problem = build_problem(
            call.query, call.key, call.value, **{**call.options, "enable_gqa": True, "additive": True}
        )
        self._checked = False

    @property
    def heads(self) -> int:
        """Query heads."""
        return self._problem.sizes.heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads; fewer than `heads` with grouped queries."""
        return self._problem.sizes.kv_heads

    @property
    def q_len(self) -> int:
        """Number of queries."""
        return self._problem.sizes.q_len

    @property
    def kv_len(self) -> int:
        """Number of keys."""
        return self._problem.sizes.kv_len

    def weights(self, heads: Selection = None, rows: Selection = None, cols: Selection = None) -> Tensor:
        """The weights of chosen query heads, queries and keys, (batch, heads, rows, cols).

        float32 (float64 for a float64 model), recomputed from q, k and the row's normaliser; before dropout.
        The first call also compares weights . value with what the layer gave, on a few rows.

        Raises:
            ArgumentError: an index out of range.
            RegardError: q or k was changed in place since, or the weights do not explain the layer's output.
        """
        self.call.unchanged()
        device = self.call.query.device
        chosen = select("heads", heads, self.heads, device)
        at_rows = select("rows", rows, self.q_len, device)
        at_cols = select("cols", cols, self.kv_len, device)
        with torch.no_grad():
            if not self._checked:
                self.check()
            return weight_tile(self._problem, chosen, at_rows, at_cols, row_lse(self._problem, chosen, at_rows))

    def lse(self, heads: Selection = None, rows: Selection = None) -> Tensor:
        """The log of each row's normaliser, (batch, heads, rows)."""
        self.call.unchanged()
        device = self.call.query.device
        with torch.no_grad():
            return row_lse(
                self._problem, select("heads", heads, self.heads, device), select("rows", rows, self.q_len, device)
            )

    def statistics(
        self,
        *,
        want: Sequence[str] = ("entropy", "received", "max_logit", "sink_share", "distance"),
        topk: int = 0,
        pooled: int | None = None,
    ) -> Statistics:
        """`regard.statistics` of this layer."""
        self.call.unchanged()
        with torch.no_grad():
            return statistics(
                self.call.query,
                self.call.key,
                self.call.value,
                want=want,
                topk=topk,
                pooled=pooled,
                **self.call.options,
            )

    def check(self, rows: int = 4) -> float:
        """Largest relative difference between weights . value and the layer's output, on a few rows.

        Returns 0.0 where the output cannot be seen (fused layers) or holds dropout. Raises RegardError when
        the difference is more than rounding explains: then the weights are not those that the layer used.
        """
        self._checked = True
        output = self.call.output
        if output is None or self.call.dropout_p > 0.0 or 0 in output.shape:
            return 0.0
        device = output.device
        at = torch.linspace(0, self.q_len - 1, min(rows, self.q_len), device=device).long()
        heads, cols = torch.arange(self.heads, device=device), torch.arange(self.kv_len, device=device)
        found = weight_tile(self._problem, heads, at, cols, row_lse(self._problem, heads, at))
        value = self.call.value.to(found.dtype).repeat_interleave(self._problem.sizes.group, dim=1)
        error = _relative_error(found @ value, output[:, :, at].to(found.dtype))
        allowed = TOLERANCE if output.dtype in (torch.float32, torch.float64) else 64 * torch.finfo(output.dtype).eps
        if error > allowed:
            message = (
                f"{self.name}: the recomputed weights do not give the layer's own output (relative error {error:.1e}, "
                f"allowed {allowed:.0e}). Its attention function ({self.call.implementation}) does something that its "
                "arguments do not say."
            )
            raise RegardError(message)
        return error

    def __repr__(self) -> str:
        kv = "" if self.kv_heads == self.heads else f", kv_heads={self.kv_heads}"
        return (
            f"ObservedLayer({self.name!r}, heads={self.heads}{kv}, q_len={self.q_len}, kv_len={self.kv_len}, "
            f"implementation={self.call.implementation!r})"
        )


def _relative_error(found: Tensor, output: Tensor) -> float:
    both = found.isfinite() & output.isfinite()
    if not bool(both.any()):
        return 0.0
    size = float(output[both].abs().max())
    return float((found - output)[both].abs().max()) / max(size, 1e-6)


class Observation:
    """What `regard.observe` saw. A context manager; `layers` stays readable after it is closed."""

    def __init__(self, model: nn.Module, layers: Collection[int | str] | None = None) -> None:
        _check_model(model)
        self._names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self._chosen = _check_chosen(layers, set(self._names.values()))
        self._found: dict[tuple[str, int], ObservedLayer] = {}
        self._state = threading.local()
        self._stack: contextlib.ExitStack | None = None

    @property
    def layers(self) -> list[ObservedLayer]:
        """Every attention layer that ran, in the order in which each ran first; the last call of each.

        A layer that runs several times in one pass (shared weights) is listed once for each.
        """
        return list(self._found.values())

    def __enter__(self) -> Self:
        """Start to observe, in this thread and in any thread for Hugging Face models."""
        if self._stack is not None:
            message = "this observation is already open; make another with regard.observe(model)"
            raise RegardError(message)
        with contextlib.ExitStack() as stack:
            stack.enter_context(invisible())
            stack.enter_context(listening(self))
            stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
            stack.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
            stack.enter_context(SeeAttention(self.record))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop observing; everything of torch and transformers is as it was."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"Observation({len(self._found)} layers)"

    # What the registries and the torch function mode call.

    def knows(self, module: nn.Module) -> bool:
        """Is this module part of the observed model?"""
        return id(module) in self._names

    def record(self, call: AttentionCall, module: nn.Module | None = None) -> None:
        """Keep a call, unless it is the inside of another or was not asked for."""
        path: list[str] = self._path()
        if module is None and (getattr(self._state, "quiet", 0) or not path):
            return
        name = path[-1] if module is None else self._names[id(module)]
        order, again = self._number(name)
        if self._wanted(name, order):
            self._found[name, again] = ObservedLayer(name if again == 0 else f"{name} (call {again + 1})", remember(call))

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """While open, calls seen by the torch function mode are the inside of one seen by a registry."""
        self._state.quiet = getattr(self._state, "quiet", 0) + 1
        try:
            yield
        finally:
            self._state.quiet -= 1

    def _path(self) -> list[str]:
        if not hasattr(self._state, "path"):
            self._state.path = []
        return self._state.path

    def _enter_module(self, module: nn.Module, inputs: object) -> None:
        if id(module) not in self._names:
            return
        path = self._path()
        if not path:  # a new forward pass: counting starts again
            self._state.order, self._state.times = 0, {}
        path.append(self._names[id(module)])

    def _leave_module(self, module: nn.Module, inputs: object, output: object) -> None:
        path = self._path()
        if path and path[-1] == self._names.get(id(module)):
            path.pop()

    def _number(self, name: str) -> tuple[int, int]:
        """How many attention calls came before this one in the pass, and how many of them of the same layer."""
        if not hasattr(self._state, "times"):
            self._state.order, self._state.times = 0, {}
        order, again = self._state.order, self._state.times.get(name, 0)
        self._state.order, self._state.times[name] = order + 1, again + 1
        return order, again

    def _wanted(self, name: str, order: int) -> bool:
        if self._chosen is None:
            return True
        return any(
            order == entry if isinstance(entry, int) else name == entry or name.startswith(f"{entry}.")
            for entry in self._chosen
        )


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError("model", expected="a torch.nn.Module", got=type(model).__name__, do="Pass the model itself.")
    if isinstance(model, torch._dynamo.OptimizedModule):  # noqa: SLF001 - the type has no public name
        raise UnsupportedError({"observe": "a compiled model runs no Python to look at; pass model._orig_mod"})


def _check_chosen(layers: Collection[int | str] | None, names: set[str]) -> tuple[int | str, ...] | None:
    if layers is None:
        return None
    for entry in layers:
        if isinstance(entry, str) and entry not in names:
            raise ArgumentError(
                "layers",
                expected="names of modules of the model, or positions in the order they run",
                got=repr(entry),
                do="model.named_modules() lists the names.",
            )
    return tuple(layers)


def observe(model: nn.Module, layers: Collection[int | str] | None = None) -> Observation:
    """See the attention of a model without taking its fused kernels away.

    `with regard.observe(model) as seen: model(**inputs)`, then `seen.layers[i].weights(heads=, rows=, cols=)`.

    The model's output is the same to the last bit. Hugging Face models are seen through their attention
    registries, nn.MultiheadAttention and nn.TransformerEncoderLayer (also in their inference fast path),
    `regard.attention`, and everything that calls torch's scaled_dot_product_attention. What is kept are
    references to each layer's q, k and v: O(n), not O(n^2), and no copy.

    Args:
        model: any torch model that is not compiled.
        layers: names of modules (with all that is below them), or positions in the order in which attention
            runs; all when left out.

    Raises:
        ArgumentError: not a module, or no module of that name.
        UnsupportedError: the model is compiled.
    """
    return Observation(model, layers)

