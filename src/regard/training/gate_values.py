"""What the gates of a model let through: mean and spread of each, while the model runs.

- Gates of tokens: `GatedAttention` (near 1 a token keeps itself), `OutputGatedAttention` and
  `MultiHeadAttention(gate=...)` (near 0 a head is silent), `ForgettingAttention` (near 1 the past is kept).
- Gates of images, which scale them: what comes out divided by what went in, where that is not 0. BAM's goes from 1
  to 2.
- Gates that are weights: those of `KNNMemory` (near 1 it lives on what it recalls), a learned `MemoryAttention.decay`,
  and tanh(a) of `GatedCrossAttention`, which begin at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from regard.nn import (
    BAM,
    CBAM,
    ChannelGate,
    CoordinateAttention,
    EffectiveSqueezeExcitation,
    EfficientChannel,
    ForgettingAttention,
    GatedAttention,
    GatedCrossAttention,
    GatherExcite,
    KNNMemory,
    MemoryAttention,
    MultiHeadAttention,
    OutputGatedAttention,
    SpatialGate,
    SqueezeExcitation,
)
from regard.observation.model import Observation

_OF_IMAGES = (
    BAM,
    CBAM,
    ChannelGate,
    CoordinateAttention,
    EffectiveSqueezeExcitation,
    EfficientChannel,
    GatherExcite,
    SpatialGate,
    SqueezeExcitation,
)


@dataclass(frozen=True)
class GateHealth:
    """One gate.

    Attributes:
        name: of its module, and of the gate where a module has two.
        mean: of all its numbers, over tokens or pixels, channels or heads, and the batch.
        spread: their standard deviation.
    """

    name: str
    mean: float
    spread: float


class GateValues:
    """While it is open, notes what the gates of a model let through in each pass; a context manager.

    Args:
        model: any model.
        seen: the open observation of the same model, which is not to see what is computed here again.
    """

    def __init__(self, model: nn.Module, seen: Observation) -> None:
        self._model, self._seen = model, seen
        self._stack = ExitStack()
        self._found: dict[str, GateHealth] = {}

    def __enter__(self) -> Self:
        """Start to listen."""
        for name, module in cast("Iterator[tuple[str, nn.Module]]", self._model.named_modules()):
            read = _reader(module)
            if read is not None:
                hook = self._hook(name or type(module).__name__, read)
                self._stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        return self

    def __exit__(self, *what: object) -> None:
        """Stop to listen."""
        self._stack.close()

    def found(self) -> list[GateHealth]:
        """Each gate that was passed; of a layer that ran several times, the last."""
        return list(self._found.values())

    def _hook(self, name: str, read: _Read) -> Callable[..., None]:
        def hook(module: nn.Module, *call: Any) -> None:
            with self._seen.silent(), torch.no_grad():
                for part, gate in read(_Call(module, *call)).items():
                    named = f"{name}.{part}" if part else name
                    self._found[named] = _summary(named, gate)

        return hook


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module, as torch's hooks tell it."""

    module: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    output: Any

    def given(self, name: str) -> Tensor:
        """The first argument, whose name this is."""
        return self.arguments[0] if self.arguments else self.options[name]


_Read = Callable[[_Call], dict[str, Tensor]]


def _of_tokens(call: _Call) -> dict[str, Tensor]:
    return {"": call.module.forward(*call.arguments, **{**call.options, "return_gate": True})[1]}


def _of_multihead(call: _Call) -> dict[str, Tensor]:
    return {"": torch.sigmoid(call.module.gate_proj.forward(call.given("query")))}


def _of_image(call: _Call) -> dict[str, Tensor]:
    image, scaled = call.given("image"), cast("Tensor", call.output)
    there = image.abs() > torch.finfo(image.dtype).tiny
    return {"": scaled[there].double() / image[there].double()}


def _of_memory(call: _Call) -> dict[str, Tensor]:
    return {"decay": call.module.decay}


def _of_nearest(call: _Call) -> dict[str, Tensor]:
    return {"": call.module.gate}


def _of_flamingo(call: _Call) -> dict[str, Tensor]:
    module = call.module
    return {"attention_gate": module.attention_gate.tanh(), "feedforward_gate": module.feedforward_gate.tanh()}


_READERS: tuple[tuple[tuple[type[nn.Module], ...], _Read], ...] = (
    ((GatedAttention, OutputGatedAttention, ForgettingAttention), _of_tokens),
    ((MultiHeadAttention,), _of_multihead),
    (_OF_IMAGES, _of_image),
    ((MemoryAttention,), _of_memory),
    ((KNNMemory,), _of_nearest),
    ((GatedCrossAttention,), _of_flamingo),
)


def _reader(module: nn.Module) -> _Read | None:
    """How the gates of this module are found from a call of it; None where it has none."""
    if isinstance(module, MultiHeadAttention) and module.gate_proj is None:
        return None
    if isinstance(module, MemoryAttention) and module.decay_logit is None:
        return None
    return next((read for kinds, read in _READERS if isinstance(module, kinds)), None)


def _summary(name: str, gate: Tensor) -> GateHealth:
    numbers = gate.detach().double()
    return GateHealth(name, float(numbers.mean()), float(numbers.std(correction=0)))
