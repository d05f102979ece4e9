"""A whole model computed again: every recorded tensor of it, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from regard.observation import ObservedLayer, observe
from regard.trust.passport import units
from regard.trust.passport.computed_by import computed_by
from regard.trust.passport.contents import Item, Made
from regard.trust.passport.definition import copied
from regard.trust.passport.differences import asked_otherwise, weights_differ
from regard.trust.passport.examination import Kept, Key, Pieces, Runner, StoppedError, piecewise, thinned, through
from regard.trust.passport.folder import Passport
from regard.trust.passport.provenance import digests, dtype_and_device, made_here
from regard.trust.passport.report import Row
from regard.trust.passport.runs import Inputs


@dataclass(frozen=True)
class ModelReplay:
    """What was found: rows, what is known of the first that differs, what else is to be said, and where."""

    rows: list[Row]
    why: list[str]
    notes: list[str]
    here: Made


def replay_model(
    passport: Passport,
    model: nn.Module,
    inputs: Inputs,
    backend: object,
    place: tuple[torch.dtype | None, torch.device | None],
) -> ModelReplay:
    """Every recorded tensor of the model, computed in this dtype on this device (None: the model's own)."""
    contents, weights = passport.contents, digests(model)
    own = dtype_and_device(model, inputs)
    dtype, device = place[0] or own[0], place[1] or own[1]
    if (dtype, device) != own:
        model = copied(model, dtype, device)
    seed, gradients = contents.made.seed, contents.made.gradients
    runner = Runner(model, inputs.moved(dtype, device), seed, gradients, lambda: computed_by(model, backend))
    with computed_by(model, backend):
        here = made_here(model, dtype, device, seed=seed, gradients=gradients)
    truth = _truth(passport)
    try:
        with observe(model) as seen:
            pieces = piecewise(runner, truth)
    except StoppedError as problem:
        return ModelReplay([_stopped_row(contents.items, problem)], [], [], here)
    whole = through(runner, truth.of_layers("forward").keys())
    rows = [_row(item, pieces, here.dtype, _same_bits(item, whole, passport)) for item in contents.items]
    known = weights if here.dtype == contents.made.dtype else {}
    rows, why = _explained(rows, passport, known, seen.layers)
    return ModelReplay(rows, why, _end_to_end(passport, whole, here.dtype), here)


def _explained(
    rows: list[Row], passport: Passport, weights: Mapping[str, str], layers: Iterable[ObservedLayer]
) -> tuple[list[Row], list[str]]:
    """What is known of the first difference. Attention that is asked something else gets a row of its own before it:

    it is no module, so that it shows in the output of the one that reads it.
    """
    place = next((place for place, row in enumerate(rows) if row.state == "differs"), None)
    if place is None:
        return rows, []
    name = rows[place].name
    asked = asked_otherwise(name, passport, layers)
    none = math.nan
    before = [
        Row("attention", call, "problem", "forward", "differs", none, none, none, note="; ".join(lines))
        for call, lines in asked.items()
    ]
    lines = [f"the attention of {call}: {line}" for call, told in asked.items() for line in told]
    return [*rows[:place], *before, *rows[place:]], lines or weights_differ(name, passport, weights)


def _truth(passport: Passport) -> Kept:
    items = {_key(item): item for item in passport.contents.items}
    values = {
        key: passport.tensors[item.truth].reshape(item.shape if item.kind == "layer" else (-1,))
        for key, item in items.items()
    }
    every, shapes = {key: item.every for key, item in items.items()}, {key: item.shape for key, item in items.items()}
    return Kept(values, every, shapes)


def _key(item: Item) -> Key:
    return item.kind, item.name, item.side


def _row(item: Item, pieces: Pieces, dtype: str, same_bits: bool | None) -> Row:  # noqa: FBT001 - None where unknown
    key, plain = _key(item), item.plain.get(dtype)
    limit = math.inf if plain is None else plain.limit(item.side)
    row = Row(item.kind, item.name, "output", item.side, "differs", math.nan, limit, math.inf, item.recorder, same_bits)
    if key not in pieces.errors:
        return replace(row, note="there is none" if item.side == "gradient" else "it did not run")
    error, shape = pieces.errors[key], pieces.shapes.get(key, item.shape)
    if shape != item.shape:
        return replace(row, note=f"expected shape {list(item.shape)}, got {list(shape)}")
    if plain is None or limit == math.inf:
        return replace(row, state="not judged", error=error, note=f"plain torch does not get there in {dtype}")
    ratio = units.ratio(error, plain, item.side)
    return replace(row, state="passed" if error <= limit else "differs", error=error, ratio=ratio)


def _stopped_row(items: tuple[Item, ...], stopped: StoppedError) -> Row:
    """The model does not even run to its end: the first recorded layer that it did not reach."""
    layers = [item.name for item in items if (item.kind, item.side) == ("layer", "forward")]
    name = next((name for name in layers if name not in stopped.met), "output")
    note = f"the model stopped: {stopped}"
    return Row("layer", name, "output", "forward", "differs", math.nan, math.nan, math.inf, note=note)


# --------------------------------------------------------------------------------- from end to end


def _same_bits(item: Item, whole: Mapping[Key, Tensor], passport: Passport) -> bool | None:
    """Whether it is what was recorded, to the last bit; None in another dtype, or where there is none."""
    found, made = whole.get(_key(item)), passport.tensors[item.made].reshape(-1)
    if found is None or found.dtype != made.dtype or tuple(found.shape) != item.shape:
        return None
    return torch.equal(_bits(thinned(found, item.every)), _bits(made))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _end_to_end(passport: Passport, whole: Mapping[Key, Tensor], dtype: str) -> list[str]:
    """How far the outputs are from the truth when nothing is put right on the way.

    This is told and not judged: rounding adds up to more or less by chance.
    """
    told: list[str] = []
    for item in passport.contents.items:
        plain, found = item.plain.get(dtype), whole.get(_key(item))
        if item.kind == "output" and plain is not None and plain.through is not None and found is not None:
            same = tuple(found.shape) == item.shape
            error = units.gap(thinned(found, item.every), passport.tensors[item.truth]) if same else math.inf
            told.append(f"output {item.name} from end to end: error {error:.2e}, plain torch's {plain.through:.2e}")
    return told
