"""What a run tells of itself: lines, curves, the line at the terminal."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import regard.nn
from regard._errors import CheckpointError, UnsupportedError
from regard.training.monitor import Monitor


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr("regard.training.monitor.time", SimpleNamespace(monotonic=told.monotonic))
    return told


def _monitor(folder: Path, *, watched: bool = False, enabled: bool = True) -> Monitor:
    return Monitor(folder, steps=100, enabled=enabled, watched=watched)


def _train(monitor: Monitor, step: int, *, loss: float = 1.0, units: int = 100) -> None:
    monitor.training(step, loss=loss, learning_rate=0.1, gradient_norm=2.0, epoch=3, units=units)


def _lines(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def _curves(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "events"), size_guidance={"images": 0, "scalars": 0}).Reload()


def _points(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in _curves(folder).Scalars(name)]


class AttentionTask:
    """Four tokens, one layer of attention."""

    metric = "accuracy"

    def __init__(self) -> None:
        self.model = regard.nn.MultiHeadAttention(8, 2, gate="head")
        self.seen: list[list[int]] = []

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        return [list(range(100, 112))]

    def units(self, indices: Sequence[int]) -> int:
        return len(indices)

    def batch(self, indices: Sequence[int]) -> Tensor:
        self.seen.append(list(indices))
        return torch.randn(len(indices), 4, 8)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"accuracy": 0.5}


def test_a_training_line_holds_what_was_given_and_what_was_measured(tmp_path: Path, clock: Clock) -> None:
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        clock.now += 4.0
        _train(monitor, 10, loss=2.5)
        clock.now += 1.0
        monitor.evaluation(10, {"bleu": 7.0, "chrf": float("nan")})
    start, training, evaluation = _lines(tmp_path)
    assert (start["kind"], start["step"], start["seconds"], start["torch"]) == ("start", 0, 0.0, torch.__version__)
    assert training.pop("peak_rss") > 2**20
    assert training == {
        "kind": "training",
        "step": 10,
        "seconds": 4.0,
        "loss": 2.5,
        "learning_rate": 0.1,
        "gradient_norm": 2.0,
        "epoch": 3,
        "units": 100,
        "units_per_second": 25.0,
    }
    assert evaluation == {"kind": "evaluation", "step": 10, "seconds": 5.0, "metrics": {"bleu": 7.0, "chrf": None}}


def test_curves_hold_the_same_numbers(tmp_path: Path, clock: Clock) -> None:
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        clock.now += 4.0
        _train(monitor, 10, loss=2.5)
        monitor.evaluation(10, {"bleu": 7.0})
    assert set(_curves(tmp_path).Tags()["scalars"]) == {
        *(f"train/{name}" for name in ("loss", "learning_rate", "gradient_norm", "epoch", "units_per_second")),
        "memory/peak_rss",
        "validation/bleu",
    }
    assert _points(tmp_path, "train/loss") == [(10, 2.5)]
    assert _points(tmp_path, "train/units_per_second") == [(10, 25.0)]
    assert _points(tmp_path, "validation/bleu") == [(10, 7.0)]
    assert _points(tmp_path, "memory/peak_rss")[0][1] > 2**20


def test_memory_of_cuda_is_in_lines_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"peak_rss": 5, "cuda_allocated": 1, "cuda_reserved": 3, "cuda_peak": 2}
    monkeypatch.setattr("regard.training.monitor.memory_in_use", lambda: there)
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        _train(monitor, 10)
    assert {name: _lines(tmp_path, "training")[0][name] for name in there} == there
    assert {name: _points(tmp_path, f"memory/{name}") for name in there} == {
        name: [(10, float(value))] for name, value in there.items()
    }


def test_evaluation_right_after_a_line_does_not_slow_the_next(tmp_path: Path, clock: Clock) -> None:
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        clock.now += 10.0
        _train(monitor, 10)
        clock.now += 30.0
        monitor.evaluation(10, {"bleu": 1.0})
        clock.now += 5.0
        _train(monitor, 20)
        clock.now += 15.0
        monitor.evaluation(25, {"bleu": 1.0})  # in the middle: nobody knows how many units came before it
        clock.now += 5.0
        _train(monitor, 30)
    speeds = [line["units_per_second"] for line in _lines(tmp_path, "training")]
    assert speeds == [10.0, 20.0, 5.0]
    assert [line["seconds"] for line in _lines(tmp_path, "training")] == [10.0, 45.0, 65.0]


def test_resuming_goes_on_with_seconds_speed_and_lines(tmp_path: Path, clock: Clock) -> None:
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        clock.now += 10.0
        _train(monitor, 10)
        clock.now += 2.0
        place = json.loads(json.dumps(monitor.position()))
        clock.now += 2.0
        _train(monitor, 20, loss=99.0)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"kind": "trai')
    clock.now += 5000.0
    with _monitor(tmp_path) as monitor:
        monitor.start(place)
        clock.now += 3.0
        _train(monitor, 20, loss=5.0)
    lines = _lines(tmp_path)
    assert [(line["kind"], line["step"], line["seconds"]) for line in lines] == [
        ("start", 0, 0.0),
        ("training", 10, 10.0),
        ("resume", 10, 12.0),
        ("training", 20, 15.0),
    ]
    assert lines[-1]["loss"] == 5.0
    assert lines[-1]["units_per_second"] == pytest.approx(100 / 5.0)
    assert _points(tmp_path, "train/loss") == [(10, 1.0), (20, 5.0)]


def test_a_new_run_in_an_old_folder_voids_its_curves(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with _monitor(tmp_path) as monitor:
            monitor.start(None)
            _train(monitor, 10, loss=loss)
    assert _points(tmp_path, "train/loss") == [(10, 2.0)]
    assert [line["loss"] for line in _lines(tmp_path, "training")] == [2.0]


def test_skipped_checkpoints_are_logged_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        place = monitor.position()
    with _monitor(tmp_path) as monitor:
        monitor.start(place, ["step-20: [bold]model.safetensors is truncated"])
    assert _lines(tmp_path, "resume")[0]["skipped"] == ["step-20: [bold]model.safetensors is truncated"]
    told = capsys.readouterr()
    assert told.err == "skipped a checkpoint that cannot be used: step-20: [bold]model.safetensors is truncated\n"
    assert told.out == ""


@pytest.mark.parametrize("place", [17, {"bytes": 1}, {"bytes": "x", "step": 1, "seconds": 1.0, "since_line": 0.0}])
def test_a_place_that_is_none_is_refused(tmp_path: Path, place: Any) -> None:
    with _monitor(tmp_path) as monitor, pytest.raises(CheckpointError, match=r"place in the log is .*, which is none"):
        monitor.start(place)


def test_all_processes_but_the_first_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with _monitor(folder, enabled=False, watched=True) as monitor:
        monitor.start({"bytes": 17}, ["x"])
        _train(monitor, 10)
        monitor.evaluation(10, {"bleu": 1.0})
        monitor.health(10, nn.Linear(1, 1), AttentionTask())
        assert monitor.position() is None
    assert not folder.exists()
    assert capsys.readouterr().err == ""


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        _train(monitor, 10)
        before = monitor.position()
        assert before is not None
        with monkeypatch.context() as disk:
            disk.setattr(os, "pwrite", full)
            disk.setattr("torch.utils.tensorboard.writer.SummaryWriter.add_scalar", full)
            _train(monitor, 20)
            _train(monitor, 30)
            during = monitor.position()
            assert during is not None
            assert during["bytes"] == before["bytes"]
        _train(monitor, 40)
        after = monitor.position()
        assert after is not None
        assert after["bytes"] == (tmp_path / "log.jsonl").stat().st_size
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition("device. ")[2] for line in told] == [
        "Training goes on; lines are kept and written when it can be.",
        "TensorBoard gets nothing more.",
    ]
    assert [line["step"] for line in _lines(tmp_path, "training")] == [10, 20, 30, 40]
    assert _points(tmp_path, "train/loss") == [(10, 1.0)]


def test_health_becomes_a_line_curves_and_images(tmp_path: Path) -> None:
    task = AttentionTask()
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        monitor.health(10, task.model, task)
    (line,) = _lines(tmp_path, "health")
    assert [layer["name"] for layer in line["layers"]] == ["MultiHeadAttention"]
    assert [gate["name"] for gate in line["gates"]] == ["MultiHeadAttention"]
    assert line["unseen"] == []
    assert task.seen == [list(range(100, 108))]
    curves = _curves(tmp_path)
    for kind in ("entropy", "entropy_part", "sink_share", "max_logit", "query_dependence"):
        (point,) = curves.Scalars(f"attention_{kind}/MultiHeadAttention")
        assert point.step == 10
        assert point.value == pytest.approx(line["layers"][0][kind], rel=1e-6)
    assert curves.Scalars("attention_dead_heads/MultiHeadAttention")[0].value == len(line["layers"][0]["dead_heads"])
    assert curves.Scalars("gate_mean/MultiHeadAttention")[0].value == pytest.approx(line["gates"][0]["mean"], rel=1e-6)
    assert "gate_spread/MultiHeadAttention" in curves.Tags()["scalars"]
    (image,) = curves.Images("attention_map/MultiHeadAttention")
    assert (image.step, image.width, image.height) == (10, 9, 4)


def test_a_model_that_cannot_be_observed_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module) -> None:
        raise UnsupportedError({"observe": "the model is compiled"})

    monkeypatch.setattr("regard.training.health.observe", refuse)
    task = AttentionTask()
    with _monitor(tmp_path) as monitor:
        monitor.start(None)
        monitor.health(10, task.model, task)
    assert "observe: the model is compiled" in _lines(tmp_path, "health")[0]["problem"]


@pytest.mark.parametrize(
    ("watched", "terminal", "drawn"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_progress_line_is_drawn_on_a_terminal_that_is_watched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    watched: bool,
    terminal: bool,
    drawn: bool,
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    monkeypatch.setenv("COLUMNS", "160")
    with _monitor(tmp_path, watched=watched) as monitor:
        monitor.start(None)
        _train(monitor, 40, loss=3.25)
        monitor.evaluation(40, {"[b]bleu": 12.5, "chrf": 3.0})
    told = capsys.readouterr()
    assert told.out == ""
    for part in ("40/100", "loss 3.25", "units/s", "[b]bleu 12.5"):
        assert (part in told.err) == drawn
    assert "chrf" not in told.err
    assert drawn or told.err == ""
