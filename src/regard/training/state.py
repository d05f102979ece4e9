"""Everything that a run is at one moment, as tensors and plain values that a checkpoint can hold.

Weights spread over processes (FSDP2) are gathered on saving and spread again on loading, so a run may be resumed with
another number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from regard._errors import CheckpointError
from regard.training.average import WeightAverage

Tensors = dict[str, Tensor]


@dataclass
class TrainingState:
    """How far a run is.

    Attributes:
        step: steps done.
        epoch, batch: the place in the data: `batch` batches of this epoch are done.
        losses, units: sum of losses, and what it is a sum over, since the last line of the log.
        best: the best metric so far.
        waited: evaluations since then.
        evaluated: the step of the last evaluation, and `metrics` what it gave.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    losses: float = 0.0
    units: int = 0
    best: float = 0.0
    waited: int = 0
    evaluated: int = -1
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def saved(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def restored(cls, facts: Mapping[str, Any]) -> TrainingState:
        """From JSON."""
        return cls(**facts)


def whole_weights(model: nn.Module, average: WeightAverage | None) -> Tensors:
    """Parameters (averaged, if an average is kept) and buffers, gathered. Tied weights come once."""
    averaged = {} if average is None else average.tensors
    named = {name: averaged.get(name, parameter) for name, parameter in model.named_parameters()}
    return {name: _whole(tensor) for name, tensor in (*named.items(), *_buffers(model).items())}


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Into a model, spread or not."""
    wanted = {**dict(model.named_parameters()), **_buffers(model)}
    _check_names("weights", set(wanted), set(tensors))
    for name, into in wanted.items():
        _put(into, tensors[name])


def whole_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> dict[str, Tensors]:
    """Files of a checkpoint: "model", "optimizer" (parameter/entry), "average"."""
    files = {"model": whole_weights(model, None), "optimizer": Tensors()}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            files["optimizer"][f"{name}/{entry}"] = _whole(value)
    if average is not None:
        files["average"] = {name: _whole(tensor) for name, tensor in average.tensors.items()}
    return files


@torch.no_grad()
def load_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    files: Mapping[str, Tensors],
) -> None:
    """Put a checkpoint's tensors back."""
    load_weights(model, files["model"])
    of_parameters: dict[str, Tensors] = {}
    for name, tensor in files["optimizer"].items():
        parameter_name, _, entry = name.rpartition("/")
        of_parameters.setdefault(parameter_name, {})[entry] = tensor
    named = dict(model.named_parameters())
    if not set(of_parameters) <= set(named):
        _check_names("optimizer", set(named), set(of_parameters))
    for name, entries in of_parameters.items():
        parameter = named[name]
        optimizer.state[parameter] = {entry: _like(parameter, tensor) for entry, tensor in entries.items()}
    if average is not None:
        _check_names("average", set(average.tensors), set(files.get("average", {})))
        for name, into in average.tensors.items():
            _put(into, files["average"][name])


def _buffers(model: nn.Module) -> Tensors:
    """Buffers that a state_dict keeps."""
    kept = set(model.state_dict(keep_vars=True))
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put(into: Tensor, whole: Tensor) -> None:
    if tuple(into.shape) != tuple(whole.shape):
        raise CheckpointError(f"a tensor of the checkpoint is {tuple(whole.shape)}, the model's {tuple(into.shape)}.")
    into.copy_(_like(into, whole))


def _like(parameter: Tensor, whole: Tensor) -> Tensor:
    """On the parameter's device, and spread as it is. An optimizer's step count is one number and stays whole."""
    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor) and whole.dim():
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return whole


def _check_names(what: str, expected: set[str], got: set[str]) -> None:
    if expected != got:
        missing, extra = sorted(expected - got)[:3], sorted(got - expected)[:3]
        raise CheckpointError(
            f"{what} of the checkpoint do not fit the model: missing {missing or 'none'}, unknown {extra or 'none'}. "
            "Resume with the model that was trained."
        )
