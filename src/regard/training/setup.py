"""What a run is set up from: precision, dropout schedule, the random numbers of a step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from regard.nn import DropoutSchedule
from regard.training.config import TrainingConfig


def computes_in_bfloat16(config: TrainingConfig) -> bool:
    """Whether products are to be in bfloat16: where asked, or by "auto" where the machine has instructions for it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" in _cpu_flags()


def dropout_for(model: nn.Module, config: TrainingConfig) -> DropoutSchedule | None:
    """The guide's dropout that changes over the run, if it is asked for."""
    if config.dropout_start is None or config.dropout_end is None:
        return None
    return DropoutSchedule(model, config.dropout_start, config.dropout_end, steps=config.steps)


@contextmanager
def threads_of(config: TrainingConfig) -> Generator[None]:
    """As many threads in torch's products meanwhile as were asked for; torch's own choice otherwise."""
    before = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        yield
    finally:
        if config.threads is not None:
            torch.set_num_threads(before)


def seed_all(seed: int, step: int, process: int) -> None:
    """All random numbers of a step come from these three, so a resumed run draws what it would have drawn."""
    mixed = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    number = int.from_bytes(mixed[:8], "little") >> 1
    random.seed(number)
    cast("Any", torch).manual_seed(number)
    try:
        numpy: Any = import_module("numpy")
    except ImportError:
        return
    numpy.random.seed(number % 2**32)


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            lines = (line for line in file if line.startswith("flags"))
            return " ".join(word for word in next(lines, "").split() if word in {"avx512_bf16", "amx_bf16"})
    except OSError:
        return ""
