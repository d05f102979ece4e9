"""The layers of others that mechanisms are compared with; a package that is not there is named, and nothing breaks."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
import types
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import Cannot

PACKAGES = ("transformers", "timm", "linformer", "performer-pytorch", "axial-attention")
"""As they are named where packages are listed; their versions go into the results."""


def package(name: str) -> Any:
    """A module of another package. Raises Cannot where it is not installed or does not load."""
    try:
        # What packages warn of while they load (performer-pytorch of distutils) and print is not our result.
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise Cannot(f"not installed: {missing.name}; pip install 'regard[bench]'") from missing
    except ImportError as failure:
        raise Cannot(f"{name} does not load: {failure}") from failure


def timm_layer(room: str) -> Any:
    """The module timm.layers.<room>. Raises Cannot.

    timm's package imports torchvision, of which no compared layer needs more than the name of one class; so where
    torchvision is not installed an empty one stands in while the layers are loaded.
    """
    if importlib.util.find_spec("timm") is None:
        raise Cannot("not installed: timm; pip install --no-deps timm")
    if importlib.util.find_spec("torchvision") is not None:
        return package(f"timm.layers.{room}")
    if room not in _LAYERS:
        _LAYERS[room] = _with_stand_in(f"timm.layers.{room}")
    return _LAYERS[room]


_LAYERS: dict[str, Any] = {}
_STAND_INS = ("torchvision", "torchvision.ops", "torchvision.ops.misc")


def _with_stand_in(name: str) -> Any:
    found = importlib.util.find_spec("timm")
    if found is None or found.submodule_search_locations is None:
        raise Cannot("not installed: timm; pip install --no-deps timm")
    before = dict(sys.modules)
    for each in [each for each in sys.modules if each.split(".")[0] == "timm"]:
        del sys.modules[each]
    sys.modules["timm"] = whole = types.ModuleType("timm")
    whole.__path__ = list(found.submodule_search_locations)
    for each in _STAND_INS:
        sys.modules[each] = types.ModuleType(each)
        sys.modules[each].__path__ = []
    vars(sys.modules["torchvision.ops.misc"])["FrozenBatchNorm2d"] = nn.BatchNorm2d
    try:
        return package(name)
    finally:  # nobody else is to meet half a package
        for each in [each for each in sys.modules if each.split(".")[0] in {"timm", "torchvision"}]:
            del sys.modules[each]
        sys.modules.update({each: kept for each, kept in before.items() if each.split(".")[0] == "timm"})


_FFT: Any = torch.fft  # torch leaves it untyped


class PublicS4D(nn.Module):
    """The public minimal S4D, on (batch, channels, length): the convolution with a kernel as long as the text.

    The formula of models/s4/s4d.py in github.com/state-spaces/s4 (Gu, Gupta, Goel, Re 2022), with its names of weights,
    so that a state_dict of either is one of the other. Its cost is the table of channels * state / 2 * length complex
    numbers that the kernel is summed from.
    """

    def __init__(self, channels: int, state_dim: int = 64) -> None:
        super().__init__()
        modes = state_dim // 2
        self.D = nn.Parameter(torch.randn(channels))
        self.kernel = nn.ParameterDict(
            {
                "C": torch.randn(channels, modes, 2) * math.sqrt(0.5),
                "log_dt": torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)),
                "log_A_real": torch.full((channels, modes), math.log(0.5)),
                "A_imag": math.pi * torch.arange(modes, dtype=torch.float32).repeat(channels, 1),
            }
        )
        self.output_linear = nn.Sequential(nn.Conv1d(channels, 2 * channels, 1), nn.GLU(dim=-2))

    def forward(self, signal: Tensor) -> Tensor:
        """The same shape."""
        length, fft = signal.shape[-1], _FFT
        spectrum = fft.rfft(self._kernel(length), n=2 * length) * fft.rfft(signal, n=2 * length)
        convolved = fft.irfft(spectrum, n=2 * length)[..., :length]
        return self.output_linear(functional.gelu(convolved + signal * self.D[:, None]))

    def _kernel(self, length: int) -> Tensor:
        decay = torch.complex(-self.kernel["log_A_real"].exp(), self.kernel["A_imag"])
        rate = decay * self.kernel["log_dt"].exp()[:, None]
        entry = torch.view_as_complex(self.kernel["C"]) * (rate.exp() - 1) / decay
        table = (rate[..., None] * torch.arange(length, device=rate.device)).exp()
        return 2 * torch.einsum("cm,cml->cl", entry, table).real


class Mapped(nn.Module):
    """An attention of others without a last map, and that map."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention, self.output = attention, nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length, width)."""
        return self.output(self.attention(tokens)[0])
