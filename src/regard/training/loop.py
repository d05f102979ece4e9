"""The training loop: one CPU, one GPU, or torchrun over many, unchanged.

    torchrun --nproc-per-node 2 -m regard train NAME          (data parallel)
    torchrun --nproc-per-node 2 -m regard train NAME --set sharding=full

accelerate chooses the device and wraps the model; what is ours is small: gradients that are exactly those of the mean
over the whole batch however it is cut, random numbers that depend on nothing but seed, step and process, and
checkpoints (`regard.training.checkpoint`) from which a run goes on to the same bits.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from regard._errors import CheckpointError, DataError
from regard.training.average import WeightAverage
from regard.training.checkpoint import Checkpoints
from regard.training.config import TrainingConfig
from regard.training.interruption import StopRequest
from regard.training.monitor import Monitor
from regard.training.optimizers import optimizer_for
from regard.training.processes import Processes
from regard.training.schedule import rate_at
from regard.training.setup import dropout_for, seed_all, threads_of
from regard.training.state import TrainingState, load_tensors, load_weights, whole_tensors, whole_weights
from regard.training.task import Batch, Task
from regard.training.whole_file import write_whole


@dataclass(frozen=True)
class Trained:
    """What became of a run.

    Attributes:
        step: steps done in all.
        finished: whether it came to its end, rather than being asked to stop (SIGTERM): then it can be resumed.
        best: the best value of the task's metric, and `metrics` all of the last evaluation's.
        model: on the CPU or the device, whole, with the weights that were evaluated last: the average, if one is kept.
        folder: where everything is.
    """

    step: int
    finished: bool
    best: float
    metrics: dict[str, float]
    model: nn.Module
    folder: Path


def train(task: Task, config: TrainingConfig, folder: Path, *, watched: bool = False) -> Trained:
    """Train a task's model in `folder`, going on from the newest good checkpoint there.

    Args:
        task: model, examples, loss and metric.
        config: see `TrainingConfig`.
        folder: for `checkpoints/`, `log.jsonl`, TensorBoard's `events`, `config.json`, and what the task keeps.
        watched: show a progress bar.

    Raises:
        CheckpointError: a checkpoint of another configuration, a second writer, a full disk.
        DataError: a task without batches, or a loss that is not finite.
    """
    with threads_of(config):
        return _Run(task, config, folder, watched=watched).go()


class _Objective(nn.Module):
    """Model and loss as one module: what data-parallel wrappers want is a forward that ends in the loss."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)


class _Run:
    """One call of `train`."""

    def __init__(self, task: Task, config: TrainingConfig, folder: Path, *, watched: bool) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.processes = Processes(config)
        self.watched = watched and self.processes.first
        apart = bool(config.average_decay) or config.sharding != "none"
        self.evaluated = copy.deepcopy(task.model) if apart else task.model
        self.objective, self.optimizer = self.processes.prepared(_Objective(task), optimizer_for(task.model, config))
        self.evaluated.to(self.processes.device)
        self.average = WeightAverage(task.model, config.average_decay) if config.average_decay else None
        self.dropout = dropout_for(task.model, config)
        digest: Callable[[], str] | None = getattr(task, "data_digest", None)
        self.data = None if digest is None else digest()
        self.state = TrainingState()
        self.saved_at, self.saved_step = time.monotonic(), -1

    def go(self) -> Trained:
        monitor = Monitor(self.folder, steps=self.config.steps, enabled=self.processes.first, watched=self.watched)
        checkpoints = Checkpoints(self.folder / "checkpoints", keep=self.config.keep, writer=self.processes.first)
        with self.processes, checkpoints, monitor, StopRequest() as stop:
            self._resume(checkpoints, monitor)
            self._describe()
            finished = self._steps(checkpoints, monitor, stop)
            if finished and self.state.evaluated != self.state.step:  # a stop leaves no trace in the curve
                self._evaluate(monitor)
            if self.saved_step != self.state.step:
                self._save(checkpoints, monitor)
        state = self.state
        return Trained(state.step, finished, state.best, dict(state.metrics), self._usable(), self.folder)

    def _steps(self, checkpoints: Checkpoints, monitor: Monitor, stop: StopRequest) -> bool:
        """Steps to the end, or until a stop is asked for; whether it came to the end."""
        for batch in self._batches():
            self._step(batch, monitor)
            self._look(checkpoints, monitor)
            if self._agreed(stop.asked):
                return False
        return True

    def _batches(self) -> Iterator[Sequence[int]]:
        """Whole batches from where the state is, epoch after epoch; all processes see the same ones."""
        state = self.state
        while not self._over():
            order = self.task.order(state.epoch)
            if not order:
                raise DataError("the task has no batches: its data are empty.")
            while state.batch < len(order) and not self._over():
                yield order[state.batch]
            if state.batch >= len(order):
                state.epoch, state.batch = state.epoch + 1, 0

    def _over(self) -> bool:
        """Whether all steps are done, or patience is: also of a run that is opened again, which then does nothing."""
        config, state = self.config, self.state
        if state.step >= config.steps:
            return True
        return bool(config.patience) and self._agreed(state.waited >= config.patience)

    def _step(self, indices: Sequence[int], monitor: Monitor) -> None:
        """Change the weights once."""
        config, state = self.config, self.state
        step = state.step + 1
        rate = rate_at(
            step, highest=config.learning_rate, warmup=config.warmup_steps, steps=config.steps, final=config.final_rate
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        units = self.task.units(indices)
        seed_all(config.seed, step, self.processes.number)
        loss = self._gradient(indices, units)
        _require_finite("loss", loss, step)
        norm = self.processes.clip(self.objective.parameters(), config.clip_norm or math.inf)
        _require_finite("gradient's norm", norm, step)  # or the weights were lost, and the next checkpoint with them
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        if self.dropout is not None:
            self.dropout.step()
        state.step, state.batch = step, state.batch + 1
        state.losses, state.units = state.losses + loss * units, state.units + units
        if step % config.log_every == 0 or step == config.steps:
            monitor.training(
                step,
                loss=state.losses / state.units,
                learning_rate=rate,
                gradient_norm=norm,
                epoch=state.epoch,
                units=state.units,
            )
            state.losses, state.units = 0.0, 0

    def _gradient(self, indices: Sequence[int], units: int) -> float:
        """The gradient of the mean loss over a batch, cut into processes * accumulate parts; and that mean.

        Wrappers average gradients over processes, so each part's sum counts `processes` times.
        """
        processes, accumulate = self.processes, self.config.accumulate
        self.objective.train()
        total = torch.zeros((), device=processes.device)
        for turn in range(accumulate):
            mine = indices[processes.number + turn * processes.count :: processes.count * accumulate]
            last = turn == accumulate - 1
            with nullcontext() if last else processes.keeping_gradients(self.objective):
                total += self._backward(mine, processes.count / units)
        return processes.total(total) / units

    def _backward(self, indices: Sequence[int], scale: float) -> Tensor:
        """Add the gradient of these examples; of none it is 0, but computed, for the other processes wait for it."""
        batch = self.processes.moved(self.task.batch(indices or [0]))
        total = self.objective(batch) * float(bool(indices))
        self.processes.backward(total * scale)
        return total.detach().to(torch.float32)

    def _look(self, checkpoints: Checkpoints, monitor: Monitor) -> None:
        """What is due after this step: evaluation, a look at attention, a checkpoint."""
        step, config = self.state.step, self.config
        if step % config.evaluate_every == 0:
            self._evaluate(monitor)
        if config.health_every and step % config.health_every == 0:
            self._health(monitor)
        minutes = (time.monotonic() - self.saved_at) / 60
        late = bool(config.checkpoint_minutes) and minutes > config.checkpoint_minutes
        if step % config.checkpoint_every == 0 or self._agreed(late):
            self._save(checkpoints, monitor)

    def _agreed(self, wish: bool) -> bool:  # noqa: FBT001 - a wish is a bool
        """Whether any process wishes it: no process's clock or signal may decide for itself."""
        if self.processes.count == 1:
            return wish
        return self.processes.total(torch.tensor(float(wish), device=self.processes.device)) > 0

    def _evaluate(self, monitor: Monitor) -> None:
        """Metrics of the weights as they would be used."""
        state = self.state
        model = self._usable()
        with torch.no_grad():
            metrics = dict(self.task.evaluate(model.eval()))
        if self.task.metric not in metrics:
            raise DataError(f"evaluate() gave {sorted(metrics)}, without the task's metric {self.task.metric!r}.")
        value = metrics[self.task.metric]
        better = not state.metrics or value > state.best
        state.best, state.waited = (value, 0) if better else (state.best, state.waited + 1)
        state.metrics, state.evaluated = metrics, state.step
        monitor.evaluation(state.step, metrics)

    def _health(self, monitor: Monitor) -> None:
        model = self._usable()
        if self.processes.first:
            monitor.health(self.state.step, model.eval(), self.task)

    def _usable(self) -> nn.Module:
        """The model that is evaluated, with today's weights: the average, if one is kept; whole, if they are spread."""
        if self.evaluated is not self.task.model:
            load_weights(self.evaluated, whole_weights(self.task.model, self.average))
        return self.evaluated

    def _save(self, checkpoints: Checkpoints, monitor: Monitor) -> None:
        """All processes gather, one writes; all end when it cannot."""
        tensors = whole_tensors(self.task.model, self.optimizer, self.average)
        facts = {
            "state": self.state.saved(),
            "log": monitor.position(),
            "dropout": None if self.dropout is None else self.dropout.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "data": self.data,
        }
        failed: Exception | None = None
        try:
            checkpoints.save(self.state.step, tensors, facts, digest=self.config.digest())
        except Exception as problem:  # raised below, when the others know, who would wait for ever
            failed = problem
        if self._agreed(failed is not None):
            raise failed or CheckpointError(
                f"the checkpoint of step {self.state.step} is not written; the process that writes says why. "
                "The last one is as it was."
            )
        self.saved_at, self.saved_step = time.monotonic(), self.state.step

    def _describe(self) -> None:
        """What the weights are of no use without; not before the folder is known to be this run's."""
        if not self.processes.first:
            return
        keep: Callable[[Path], None] | None = getattr(self.task, "keep", None)
        try:
            if keep is not None:
                keep(self.folder)
            write_whole(self.folder / "config.json", self.config.model_dump_json(indent=2) + "\n")
        except OSError as problem:
            raise CheckpointError(
                f"{str(self.folder)!r} cannot be written: {problem.strerror}. What is in it is as it was."
            ) from problem

    def _resume(self, checkpoints: Checkpoints, monitor: Monitor) -> None:
        saved = checkpoints.newest()
        if saved is None:
            monitor.start(None)
            return
        changed = self.config.differences(saved.facts.get("config", {}))
        if changed:
            raise CheckpointError(
                f"{str(self.folder)!r} holds a run of another configuration ({'; '.join(changed)}). "
                "Take its configuration, or another folder."
            )
        data = saved.facts.get("data")  # absent where a task does not tell, and in checkpoints older than the question
        if None not in (data, self.data) and data != self.data:
            raise CheckpointError(
                f"{str(self.folder)!r} holds a run on other data: the examples are not those that it began with, or "
                "their vocabulary is another. Give the data as they were, or another folder."
            )
        load_tensors(self.task.model, self.optimizer, self.average, saved.tensors)
        self.state = TrainingState.restored(saved.facts["state"])
        if self.dropout is not None:
            self.dropout.load_state_dict(saved.facts["dropout"])
        self.saved_step = self.state.step
        monitor.start(saved.facts["log"], skipped=saved.skipped)


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise DataError(f"the {what} of step {step} is {value}. The last checkpoint is good; lower learning_rate.")
