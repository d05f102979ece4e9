"""Where and by what a passport is made, and which weights a model has."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import NativeError
from regard._version import __version__
from regard.backends import _library
from regard.integrations.torch_sdpa import is_active
from regard.trust.passport.contents import Made
from regard.trust.passport.runs import Inputs
from regard.trust.passport.written import name_of

_DIGITS = 16


def made_here(model: nn.Module, dtype: torch.dtype, device: torch.device, *, seed: int, gradients: bool) -> Made:
    """By this process, now."""
    transformers = sys.modules.get("transformers")  # not imported: then it is no transformers model
    return Made(
        regard=__version__,
        torch=torch.__version__,
        transformers=str(getattr(transformers, "__version__", "")),
        python=platform.python_version(),
        platform=platform.platform(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        isa=isa(),
        torch_isa=str(torch.backends.cpu.get_cpu_capability()),
        threads=torch.get_num_threads(),
        seed=seed,
        dtype=name_of(dtype),
        model=model_name(model),
        implementation=implementation_of(model),
        active=is_active(),
        gradients=gradients,
    )


def isa() -> str:
    """The instruction set of the native core; "" where that is absent."""
    try:
        return _library.isa()
    except NativeError:
        return ""


def model_name(model: nn.Module) -> str:
    """Of the class, or of the callable that stands for a model."""
    function = getattr(model, "function", None)
    return type(model).__name__ if function is None else str(getattr(function, "__name__", function))


def implementation_of(model: nn.Module) -> str:
    """Who computes attention in a transformers model; "" where that is no choice."""
    return str(getattr(getattr(model, "config", None), "_attn_implementation", None) or "")


def dtype_and_device(model: nn.Module, inputs: Inputs) -> tuple[torch.dtype, torch.device]:
    """Those of the model's first float tensor, or of the inputs'."""
    found = next(
        (tensor for tensor in chain(model.parameters(), tensors_in(inputs)) if tensor.is_floating_point()), None
    )
    return (torch.float32, torch.device("cpu")) if found is None else (found.dtype, found.device)


def tensors_in(inputs: Inputs) -> Iterator[Tensor]:
    """Every tensor among the inputs."""
    waiting: list[Any] = [*inputs.args, *inputs.named.values()]
    while waiting:
        entry = waiting.pop(0)
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, dict):
            waiting += entry.values()
        elif isinstance(entry, (list, tuple)):
            waiting += entry


def digests(model: nn.Module) -> dict[str, str]:
    """The first digits of the sha256 of each tensor that is saved with the model."""
    return {name: _digest(tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _digest(tensor: Tensor) -> str:
    flat: Any = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(flat).hexdigest()[:_DIGITS]
