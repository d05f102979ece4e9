"""The border to accelerate: device, precision and processes, as torchrun's environment and the configuration say.

accelerate has no types, so its objects are `Any` in this file, and only here.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from regard._errors import DependencyError
from regard.training.config import TrainingConfig
from regard.training.setup import computes_in_bfloat16
from regard.training.task import Batch


class Processes:
    """The processes that train together; one, unless torchrun started more.

    Raises:
        DependencyError: accelerate is absent.
    """

    def __init__(self, config: TrainingConfig) -> None:
        try:
            accelerate: Any = import_module("accelerate")
            self._utils: Any = import_module("accelerate.utils")
            self._state: Any = import_module("accelerate.state")
        except ImportError as problem:
            raise DependencyError("accelerate", "train") from problem
        sharded = self._utils.FullyShardedDataParallelPlugin(fsdp_version=2) if config.sharding == "full" else None
        self._accelerator: Any = accelerate.Accelerator(
            mixed_precision="bf16" if computes_in_bfloat16(config) else "no",
            fsdp_plugin=sharded,
            cpu=not torch.cuda.is_available(),
        )
        self.count: int = self._accelerator.num_processes
        self.number: int = self._accelerator.process_index
        self.first: bool = self._accelerator.is_main_process
        self.device: torch.device = self._accelerator.device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget device and precision, which accelerate keeps for the process: the next run may want others."""
        self._accelerator.free_memory()
        self._state.AcceleratorState._reset_state(reset_partial_state=self.count == 1)  # noqa: SLF001 - no other way

    def prepared(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrapped for this device, precision and these processes."""
        return self._accelerator.prepare(objective, optimizer)

    def moved(self, batch: Batch) -> Batch:
        """All tensors of a batch, on the device."""
        return self._utils.send_to_device(batch, self.device)

    def keeping_gradients(self, objective: nn.Module) -> AbstractContextManager[None]:
        """While it lasts, backward adds to this process's own gradients only; the next one outside adds them up."""
        return self._accelerator.no_sync(objective)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss; over several processes their mean."""
        self._accelerator.backward(loss)

    def total(self, value: Tensor) -> float:
        """The sum of a number over the processes."""
        return float(self._accelerator.reduce(value, "sum"))

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Scale gradients down to a norm; the norm before."""
        norm: Any = self._accelerator.clip_grad_norm_(parameters, limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
