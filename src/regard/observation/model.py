"""`regard.observe`: see the attention of any torch model while its fused kernels stay on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Generator, Iterator
from types import TracebackType
from typing import Self, cast

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from regard._errors import ArgumentError, RegardError, UnsupportedError
from regard.observation.call import AttentionCall, remember
from regard.observation.huggingface import listening
from regard.observation.layer import ObservedLayer
from regard.observation.torch_functions import SeeAttention, invisible


class _Place(threading.local):
    """Where one thread is.

    path: names of the modules that it is inside of. times: how often each layer has called attention in this
    forward pass. quiet: above 0 inside of a call that a registry reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.times: dict[str, int] = {}
        self.quiet = 0


class Observation:
    """What `regard.observe` saw. A context manager; `layers` stays readable after it is closed."""

    def __init__(self, model: nn.Module, layers: Collection[int | str] | None = None) -> None:
        _check_model(model)
        self._model = model  # its modules are known by their ids, so they must live as long as this
        self._names = {id(module): name or type(module).__name__ for name, module in _modules(model)}
        self._chosen = _check_chosen(layers, set(self._names.values()))
        self._found: dict[tuple[str, int], ObservedLayer] = {}
        self.missed: list[str] = []
        """Attention calls that ran but could not be understood, one line each; they are not in `layers`."""
        self._order: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._state = _Place()
        self._stack: contextlib.ExitStack | None = None

    @property
    def layers(self) -> list[ObservedLayer]:
        """Every attention layer that ran, in the order in which each ran first; the last call of each.

        A layer that runs several times in one pass (shared weights) is listed once for each.
        """
        with self._lock:
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
            stack.enter_context(SeeAttention(self.record, self.miss))
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
        path = self._state.path
        if module is None and (self._state.quiet or not path):
            return
        name = path[-1] if module is None else self._names[id(module)]
        times = self._state.times
        again = times.get(name, 0)
        times[name] = again + 1
        with self._lock:
            order = self._order.setdefault((name, again), len(self._order))
            if self._wanted(name, order):
                shown = name if again == 0 else f"{name} (call {again + 1})"
                self._found[name, again] = ObservedLayer(shown, remember(call))

    def miss(self, name: str, problem: Exception) -> None:
        """Note an attention call that ran but could not be put in regard's terms."""
        self.missed.append(f"{name}: {type(problem).__name__}: {problem}")

    @contextlib.contextmanager
    def silent(self) -> Generator[None]:
        """While open, calls seen by the torch function mode are the inside of one seen by a registry."""
        self._state.quiet += 1
        try:
            yield
        finally:
            self._state.quiet -= 1

    def _enter_module(self, module: nn.Module, inputs: object) -> None:
        if id(module) not in self._names:
            return
        path = self._state.path
        if not path:  # a new forward pass: counting starts again
            self._state.times.clear()
        path.append(self._names[id(module)])

    def _leave_module(self, module: nn.Module, inputs: object, output: object) -> None:
        path = self._state.path
        if path and path[-1] == self._names.get(id(module)):
            path.pop()

    def _wanted(self, name: str, order: int) -> bool:
        if self._chosen is None:
            return True
        return any(
            order == entry if isinstance(entry, int) else name == entry or name.startswith(f"{entry}.")
            for entry in self._chosen
        )


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast("Iterator[tuple[str, nn.Module]]", model.named_modules())


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise ArgumentError("model", expected="a torch.nn.Module", got=got, do="Pass the model itself.")
    for name, module in _modules(model):
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            where = f"its module {name!r}" if name else "the model"
            reason = f"{where} is compiled, so no Python runs to look at"
            raise UnsupportedError({"observe": reason}, do="Observe the model before compiling it, or its _orig_mod.")


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
        layers: names of modules (with all that is below them), or positions in the order in which layers
            first run (those of `seen.layers` when all are observed); all when left out.

    Raises:
        ArgumentError: not a module, or no module of that name.
        UnsupportedError: the model is compiled.
    """
    return Observation(model, layers)
