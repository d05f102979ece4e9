"""Variants of a recipe, trained one after the other at equal budget; an interrupted comparison goes on where it was.

Each variant has a folder of its own: that of its training run, from whose checkpoints it goes on, and `result.json`
when it is finished, which is not computed again while the configuration is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate.utils import send_to_device  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from regard._errors import DataError
from regard.training.config import TrainingConfig
from regard.training.loop import train
from regard.training.optimizers import optimizer_for
from regard.training.saved_datasets import data_files, is_saved_dataset
from regard.training.setup import computes_in_bfloat16, threads_of
from regard.training.sources import sha256_of
from regard.training.task import Task
from regard.training.whole_file import write_whole

C = TypeVar("C", bound=TrainingConfig)
T = TypeVar("T", bound=Task)
Result = dict[str, Any]
RESULT = "result.json"


@dataclass(frozen=True)
class Variant(Generic[C]):
    """One of those that are compared: a name, which is its folder's too, and its configuration."""

    name: str
    config: C


def compare_variants(
    variants: Sequence[Variant[C]],
    folder: Path,
    *,
    make_task: Callable[[C], T],
    report: Callable[[T, torch.nn.Module, C], Mapping[str, Any]],
    say: Callable[[str], None],
    watched: bool = False,
    data: str = "",
) -> dict[str, Result] | None:
    """Train what is not trained yet; the result of each by its name. None when it was asked to stop (SIGTERM).

    A result is the report with `parameters`, `steps` and `seconds` (of this session's training) added. `data` is by
    which data that may change are told from others: a result on others is none.
    """
    results = {variant.name: _finished(folder / variant.name, variant.config, data) for variant in variants}
    waiting = [variant for variant in variants if results[variant.name] is None]
    say(f"{len(variants)} variants, {len(variants) - len(waiting)} of them finished.")
    if waiting:
        say(f"Expected: {told_time(_expected_seconds(waiting, make_task))} on this machine.")
    for variant in waiting:
        begun = time.monotonic()
        task = make_task(variant.config)
        trained = train(task, variant.config, folder / variant.name, watched=watched)
        if not trained.finished:
            say(f"{variant.name}: stopped at step {trained.step}; the same command goes on from there.")
            return None
        seconds = round(time.monotonic() - begun, 1)
        with threads_of(variant.config):
            told = report(task, trained.model, variant.config)
        result: Result = {
            "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
            "steps": trained.step,
            "seconds": seconds,
            **told,
        }
        _write(folder / variant.name, variant.config, data, result)
        results[variant.name] = result
        say(f"{variant.name}: finished after {told_time(result['seconds'])}.")
    return {name: result for name, result in results.items() if result is not None}


def expected_seconds(task: Task, config: TrainingConfig, *, tries: int = 3) -> float:
    """How long this training would take, from a few steps on a copy of nothing: the model's weights are put back.

    A step is as many parts as `accumulate` says, one after another, and each process has its share of each: a part is
    tried, so that this takes no more memory than the training, and on the device that trains.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.model.to(device)
    kept = {name: value.clone() for name, value in task.model.state_dict().items()}
    drawn = torch.get_rng_state()
    optimizer = optimizer_for(task.model, config)
    order = task.order(0)
    if not order:
        raise DataError("the task has no batches: its data are fewer than one batch. Give more, or lower batch_size.")
    indices = order[0][:: config.accumulate * int(os.environ.get("WORLD_SIZE", "1"))]
    spent: list[float] = []
    with threads_of(config):
        for _ in range(tries + 1):
            begun = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(config)):
                loss = task.loss(task.model.train(), send_to_device(task.batch(indices), device))
            torch.autograd.backward(loss / task.units(indices))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(loss.detach())  # a device works on while the clock is read, unless it is waited for
            spent.append(time.perf_counter() - begun)
    task.model.load_state_dict(kept)
    task.model.to("cpu")
    torch.set_rng_state(drawn)
    return statistics.median(spent[1:]) * config.accumulate * config.steps


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for people; numbers stand right."""
    ruled = ["|".join(["", *cells, ""]) for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    return "\n".join(ruled) + "\n"


def _expected_seconds(variants: Sequence[Variant[C]], make_task: Callable[[C], T]) -> float:
    """Those that differ in nothing but the seed take the same time and are tried once."""
    known: dict[str, float] = {}
    total = 0.0
    for variant in variants:
        alike = json.dumps({**variant.config.decisive(), "seed": 0}, sort_keys=True)
        if alike not in known:
            known[alike] = expected_seconds(make_task(variant.config), variant.config)
        total += known[alike]
    return total


def own_data(path: str | None) -> str:
    """By which data of somebody's own are told from what was there before; nothing for data that are pinned."""
    if path is None or not Path(path).exists():
        return ""
    files = data_files(Path(path)) if is_saved_dataset(Path(path)) else [Path(path)]
    digests = [sha256_of(each) for each in files if each.is_file()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _finished(folder: Path, config: TrainingConfig, data: str) -> Result | None:
    try:
        saved = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        same = saved["digest"] == config.digest() and saved.get("data", data) == data
        return saved["result"] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, config: TrainingConfig, data: str, result: Result) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        saved = {"digest": config.digest(), "data": data, "config": config.decisive(), "result": result}
        write_whole(folder / RESULT, json.dumps(saved, indent=1, ensure_ascii=False))


def told_time(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
