"""What a run tells of itself while it trains.

`log.jsonl`: one JSON value a line, each with "kind", "step" and "seconds" (of training since the run began, whatever
it was interrupted by; pauses do not count):

    start, resume   "time" (UTC), "torch", "threads"; resume also "skipped": checkpoints that could not be used
    training        "loss", "learning_rate", "gradient_norm", "epoch", "units" and "units_per_second" since the line
                    before, and memory in bytes: "peak_rss" and with CUDA "cuda_allocated", "cuda_reserved", "cuda_peak"
    evaluation      "metrics"
    health          "layers", "gates" and "unseen" of `regard.training.health`, or a "problem"

A number that is not finite is null. `events/`: the same as curves, and maps of attention as images, for
`tensorboard --logdir FOLDER/events`.

The log never ends a run. When it cannot be written one line on stderr says so, and what could not be written is tried
again (`regard.training.journal`); `position` then names the place up to which it is on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from regard._errors import CheckpointError, RegardError
from regard.training.events import Events
from regard.training.health import task_health
from regard.training.journal import Journal
from regard.training.memory import memory_in_use
from regard.training.progress import ProgressLine
from regard.training.task import Task


class Monitor:
    """The log, TensorBoard and the progress line of one run: a context manager.

    Args:
        folder: gets `log.jsonl` and `events/`.
        steps: of the whole run.
        enabled: without it nothing is written and nothing shown: for all processes but the first.
        watched: a progress line on stderr, where that is a terminal.
    """

    def __init__(self, folder: Path, *, steps: int, enabled: bool, watched: bool) -> None:
        self._folder, self._enabled = folder, enabled
        self._steps, self._watched = steps, watched
        self._clock = _Clock()
        self._step = 0
        self._open: _Open | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def start(self, position: Mapping[str, Any] | None, skipped: Iterable[object] = ()) -> None:
        """Open the files.

        Args:
            position: what `position` gave when the checkpoint was saved from which the run goes on: what was logged
                after it is cut off, for it comes again. None: a new run; a log that is there is renamed to
                `log.jsonl.before`.
            skipped: newer checkpoints that could not be used; logged, and told on stderr.

        Raises:
            DataError: the log cannot be opened for writing.
            CheckpointError: the position is none.
            DependencyError: tensorboard or rich is absent.
        """
        if not self._enabled:
            return
        kept: int | None = None
        seconds = since_line = 0.0
        if position is not None:
            try:
                kept, self._step = int(position["bytes"]), int(position["step"])
                seconds, since_line = float(position["seconds"]), float(position["since_line"])
            except (TypeError, KeyError, ValueError) as problem:
                raise CheckpointError(f"the checkpoint's place in the log is {position!r}, which is none.") from problem
        self._open = _Open(self._folder, self._steps, kept, self._step, watched=self._watched)
        self._clock = _Clock(seconds, since_line)
        left_out = [str(entry) for entry in skipped]
        self._log(
            "start" if position is None else "resume",
            self._step,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            **({} if position is None else {"skipped": left_out}),
        )
        for entry in left_out:
            self._open.progress.say(f"skipped a checkpoint that cannot be used: {entry}")

    def training(
        self, step: int, *, loss: float, learning_rate: float, gradient_norm: float, epoch: int, units: int
    ) -> None:
        """One line and a point on each curve.

        Args:
            step: steps done.
            loss: mean over the units since the last line.
            learning_rate, gradient_norm: of this step; the norm before clipping.
            epoch: that this step belongs to, from 0.
            units: target tokens, images, ... since the last line.
        """
        opened = self._open
        if opened is None:
            return
        speed = units / max(self._clock.line(step), 1e-9)
        facts: dict[str, float] = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "epoch": epoch,
            "units_per_second": speed,
        }
        memory = memory_in_use()
        self._log("training", step, **facts, units=units, **memory)
        opened.events.scalars(step, {f"train/{name}": value for name, value in facts.items()})
        opened.events.scalars(step, {f"memory/{name}": float(value) for name, value in memory.items()})
        opened.progress.show(step, {"loss": f"{loss:.4g}", "units/s": f"{speed:,.0f}"})

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, a point on the curve of each metric; the first is shown beside the progress."""
        opened = self._open
        if opened is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._log("evaluation", step, metrics=values)
        opened.events.scalars(step, {f"validation/{name}": value for name, value in values.items()})
        opened.progress.show(step, {name: f"{value:.4g}" for name, value in list(values.items())[:1]})
        self._clock.looked(step)

    def health(self, step: int, model: nn.Module, task: Task) -> None:
        """Look at the attention of the model (`regard.training.health`): a line, curves, a map of each layer.

        A model that cannot be observed (one that is compiled) ends nothing: its line has a "problem".
        """
        opened = self._open
        if opened is None:
            return
        try:
            seen = task_health(model, task)
        except RegardError as problem:
            self._log("health", step, problem=str(problem))
            return
        self._log("health", step, **seen.facts())
        opened.events.scalars(step, seen.curves())
        for name, pixels in seen.maps.items():
            opened.events.image(step, f"attention_map/{name}", pixels)
        self._clock.looked(step)

    def position(self) -> dict[str, float] | None:
        """The place in the log, as JSON: everything before it is on the disk. None where nothing is logged.

        "bytes" of the file, the last "step" that was logged, "seconds" of training, and those "since_line".
        """
        opened = self._open
        if opened is None:
            return None
        opened.events.flush()
        return {
            "bytes": opened.journal.position(),
            "step": self._step,
            "seconds": self._clock.seconds(),
            "since_line": self._clock.since_line(),
        }

    def _log(self, kind: str, step: int, **facts: object) -> None:
        if self._open is not None:
            self._step = max(self._step, step)
            seconds = round(self._clock.seconds(), 3)
            self._open.journal.add({"kind": kind, "step": step, "seconds": seconds, **facts})


class _Open:
    """What is open between `start` and the end."""

    def __init__(self, folder: Path, steps: int, kept: int | None, step: int, *, watched: bool) -> None:
        with ExitStack() as stack:
            self.progress = ProgressLine(steps, watched=watched)
            folder.mkdir(parents=True, exist_ok=True)
            self.journal = Journal(folder / "log.jsonl", kept, self.progress.say)
            stack.callback(self.journal.close)
            first = 0 if kept is None else step + 1
            self.events = Events(folder / "events", first_step=first, warn=self.progress.say)
            stack.callback(self.events.close)
            self.progress.start(step)
            stack.callback(self.progress.stop)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()


class _Clock:
    """Seconds of training over all the times that a run was resumed.

    Args:
        before: seconds before it was resumed.
        since_line: those of them after the last line.
    """

    def __init__(self, before: float = 0.0, since_line: float = 0.0) -> None:
        now = time.monotonic()
        self._began, self._line_at, self._line_step = now - before, now - since_line, -1

    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def since_line(self) -> float:
        """Since the last line."""
        return time.monotonic() - self._line_at

    def line(self, step: int) -> float:
        """Since the last line; and there is one now, of this step."""
        passed = self.since_line()
        self._line_at, self._line_step = time.monotonic(), step
        return passed

    def looked(self, step: int) -> None:
        """An evaluation ends. When it came right after a line its time is no part of the speed of the next."""
        if self._line_step == step:
            self._line_at = time.monotonic()
