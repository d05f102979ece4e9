"""`regard.passport.replay`: compute again what a passport holds, here, and compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard._errors import ArgumentError, CheckpointError
from regard.trust.passport.call_replay import CallReplay
from regard.trust.passport.contents import Made
from regard.trust.passport.folder import Passport, read
from regard.trust.passport.model_replay import ModelReplay, replay_model
from regard.trust.passport.provenance import made_here
from regard.trust.passport.recording import as_module
from regard.trust.passport.report import Report, Row
from regard.trust.passport.runs import Inputs
from regard.trust.passport.written import dtype_of, name_of, read_inputs
from regard.trust.target import as_target


def replay(
    path: str | Path,
    model: nn.Module | Callable[..., Any] | None = None,
    *,
    backend: object = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Report:
    """Compute again what a passport holds, here, and compare with what is true, in units of plain torch's errors.

    Given the model, every recorded layer is fed what is true, so that the piece that differs is named, and not what
    comes after it. Without the model the attention calls are replayed, each as a problem of its own; with the model,
    they are when a `backend` is named too. Devices other than the CPU are unproven.

    Args:
        path: the folder that `record` wrote.
        model: what was recorded, as it is here; it is left as it was.
        backend: who computes attention. For attention calls whatever `regard.verify` takes ("native", "sdpa", "eager",
            "flex", "auto", "module:function" or a callable), "auto" when left out. For a model "native"
            (`regard.activate`) or "sdpa", and with a transformers model "eager" or "flex" too.
        dtype: to compute in; that of the model, or of the passport. In another one the same numbers are rounded first.
        device: to compute on; that of the model, or the CPU.

    Raises:
        CheckpointError: the passport is truncated, changed, of another version, or none.
        ArgumentError: there is no attention in it to be replayed without the model; no such dtype or backend.
        UnsupportedError: the model cannot be computed by this backend, or not be copied.
    """
    passport = read(Path(path))
    wanted = None if dtype is None else dtype_of(dtype if isinstance(dtype, str) else name_of(dtype))
    place = None if device is None else _device(device)
    if model is None and not passport.contents.calls:
        raise ArgumentError(
            "model", expected="the model", got="None", do="This passport has no attention calls to replay without it."
        )
    if model is not None:
        found = replay_model(passport, as_module(model), _inputs(passport), backend, (wanted, place))
    else:
        found = ModelReplay([], [], [], _here(passport.contents.made, wanted, place))
    rows = found.rows
    if model is None or backend is not None:
        rows = rows + _call_rows(passport, backend, wanted, place)
    name = "" if backend is None else backend if isinstance(backend, str) else as_target(backend).name
    return Report(
        path=str(passport.folder),
        made=passport.contents.made,
        here=found.here,
        backend=name or ("auto" if model is None else ""),
        rows=tuple(rows),
        why=tuple(found.why),
        notes=tuple(found.notes),
    )


def _device(name: torch.device | str) -> torch.device:
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as problem:
        raise ArgumentError(
            "device",
            expected="one that is here",
            got=repr(str(name)),
            do=f"torch says: {str(problem).split(chr(10))[0]}.",
        ) from problem
    return place


def _call_rows(
    passport: Passport, backend: object, dtype: torch.dtype | None, device: torch.device | None
) -> list[Row]:
    target = as_target("auto" if backend is None else backend)
    replayed = CallReplay(target, dtype, device or torch.device("cpu"))
    return [row for call in passport.contents.calls for row in replayed.rows(call, passport)]


def _inputs(passport: Passport) -> Inputs:
    try:
        return read_inputs(passport.contents.inputs, passport.tensors)
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{str(passport.folder)!r}: the inputs are not readable ({problem}).") from problem


def _here(made: Made, dtype: torch.dtype | None, device: torch.device | None) -> Made:
    """This place, for calls that are replayed without their model."""
    now = made_here(
        nn.Module(),
        dtype or dtype_of(made.dtype),
        device or torch.device("cpu"),
        seed=made.seed,
        gradients=made.gradients,
    )
    return replace(now, model=made.model, implementation="")
