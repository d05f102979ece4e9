"""The training loop: the gradient of the whole batch however it is cut, one process or several, stop and go on."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard import CheckpointError, DataError
from regard.recipes.translation.pairs import Corpus
from regard.recipes.translation.recipe import task_of
from regard.recipes.translation.task import TranslationTask
from regard.training import train
from tests.recipes.translation_cases import pieces_of, tiny_task
from tests.training.run_translation import NO_CHANCE

ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "training"]


def trained(folder: Path, **settings: object):
    task, config = tiny_task(**{**NO_CHANCE, **settings})
    return train(task, config, folder)


def test_the_loss_falls_and_a_checkpoint_is_there(tmp_path):
    ended = trained(tmp_path, steps=30)
    curve = losses(tmp_path)
    assert len(curve) == 30
    assert curve[-1] < 0.85 * curve[0]
    assert ended.finished
    assert ended.step == 30
    assert set(ended.metrics) == {"loss", "bleu"}
    assert len(list((tmp_path / "checkpoints").glob("ckpt-*"))) == 2


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulating_gives_the_gradient_of_the_whole_batch(tmp_path, accumulate):
    trained(tmp_path / "whole", steps=5)
    trained(tmp_path / "parts", steps=5, accumulate=accumulate)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def torchrun(folder: Path, *settings: str, processes: int = 2) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.training.run_translation", str(folder), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("accumulate=2",),
        ("sharding=full",),
        ("average_decay=0",),
        ("optimizer=muon",),
        ("optimizer=muon", "sharding=full"),
    ],
)
def test_two_processes_train_as_one(tmp_path, settings):
    same = {"optimizer=muon": {"optimizer": "muon"}, "average_decay=0": {"average_decay": 0.0}}
    trained(tmp_path / "one", steps=5, **{key: value for name in settings for key, value in same.get(name, {}).items()})
    torchrun(tmp_path / "two", "steps=5", *settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_what_two_processes_began_one_goes_on_with(tmp_path):
    trained(tmp_path / "one", steps=8)
    torchrun(tmp_path / "both", "steps=8", "stop_after=4")
    trained(tmp_path / "both", steps=8)
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_what_sharded_processes_began_they_go_on_with(tmp_path):
    sharded = "steps=8", "optimizer=muon", "sharding=full"
    torchrun(tmp_path / "whole", *sharded)
    torchrun(tmp_path / "stopped", *sharded, "stop_after=4")
    torchrun(tmp_path / "stopped", *sharded)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_threads_are_those_that_were_afterwards(tmp_path):
    before = torch.get_num_threads()
    trained(tmp_path, steps=1, threads=before + 1)
    assert torch.get_num_threads() == before


def test_all_processes_end_when_one_cannot_write(tmp_path):
    """Started by hand: nobody stops the second process when the first one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.training.run_translation", str(tmp_path), "steps=3", "full_disk=yes"]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [1, 1]
    assert "CheckpointError: the disk is full" in told[0]
    assert "CheckpointError: the checkpoint of step 3 is not written; the process that writes says why" in told[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sigterm_saves_and_the_run_goes_on_to_the_same_bits(tmp_path, optimizer):
    with_chance = {"dropout_p": 0.1, "dropout_start": 0.3, "dropout_end": 0.1, "optimizer": optimizer}
    whole = trained(tmp_path / "whole", steps=10, **with_chance)
    task, config = tiny_task(**{**NO_CHANCE, "steps": 10, **with_chance})
    calls = []

    def interrupting(indices):
        calls.append(indices)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return type(task).units(task, indices)

    task.units = interrupting
    stopped = train(task, config, tmp_path / "stopped")
    assert not stopped.finished
    assert stopped.step == 4
    ended = trained(tmp_path / "stopped", steps=10, **with_chance)
    assert ended.finished
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for mine, expected in zip(ended.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    trained(tmp_path, steps=2)
    with pytest.raises(
        CheckpointError, match=r"another configuration \(steps: 2 -> 3; learning_rate: 0.0015 -> 0.01\)"
    ):
        trained(tmp_path, steps=3, learning_rate=0.01)
    trained(tmp_path, steps=2, log_every=5, keep=3)  # how a run is watched decides nothing


def test_other_data_are_refused_and_what_the_weights_need_stays(tmp_path):
    trained(tmp_path, steps=2)
    kept = (tmp_path / "tokenizer.json").read_bytes()
    task, config = tiny_task(**{**NO_CHANCE, "steps": 2})
    corpus = Corpus(task.corpus.train[1:], task.corpus.validation, task.corpus.test, {})
    other = task_of(config, corpus, pieces_of(corpus))
    with pytest.raises(CheckpointError, match=r"holds a run on other data: .* Give the data as they were"):
        train(other, config, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == kept
    assert train(task, config, tmp_path).finished


def test_a_checkpoint_that_does_not_tell_its_data_is_gone_on_with(tmp_path, monkeypatch):
    task, config = tiny_task(**{**NO_CHANCE, "steps": 2})
    monkeypatch.setattr(TranslationTask, "data_digest", None)
    train(task, config, tmp_path)
    monkeypatch.undo()
    assert trained(tmp_path, steps=2).finished


def test_a_full_disk_leaves_what_the_weights_need(tmp_path, monkeypatch):
    trained(tmp_path, steps=2)
    kept = (tmp_path / "tokenizer.json").read_bytes()

    def full(path, text, **_):
        path.open("w").close()  # as a disk that is full does: the file is there, and empty
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device. What is in it is as"):
        trained(tmp_path, steps=2)
    assert (tmp_path / "tokenizer.json").read_bytes() == kept
    assert not list(tmp_path.glob(".*.part"))


def test_a_key_younger_than_the_checkpoint_had_its_default(tmp_path):
    _task, config = tiny_task(**NO_CHANCE)
    before = config.model_dump(mode="json")
    del before["clip_norm"]
    assert config.differences(before) == []
    assert config.model_copy(update={"clip_norm": 2.0}).differences(before) == ["clip_norm: 1.0 -> 2.0"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    task, config = tiny_task(**{**NO_CHANCE, "steps": 10, "checkpoint_every": 2})
    loss = task.loss

    def spoiled(model, batch):
        return loss(model, batch) * (float("nan") if len(losses(tmp_path)) >= 5 else 1.0)

    task.loss = spoiled
    with pytest.raises(
        DataError, match=r"the loss of step \d+ is nan. The last checkpoint is good; lower learning_rate"
    ):
        train(task, config, tmp_path)
    assert trained(tmp_path, steps=10, checkpoint_every=2).finished


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    task, config = tiny_task(**{**NO_CHANCE, "steps": 50, "evaluate_every": 2, "patience": 3})
    task.evaluate = lambda _: {"bleu": 1.0}
    ended = train(task, config, tmp_path)
    assert (ended.step, ended.finished, ended.best) == (8, True, 1.0)
    again = train(task, config, tmp_path)  # it is over, and opening it once more trains nothing
    assert (again.step, again.finished, again.metrics) == (8, True, {"bleu": 1.0})
    assert len(losses(tmp_path)) == 8


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    task, config = tiny_task(**{**NO_CHANCE, "steps": 6, "checkpoint_every": 2})
    loss = task.loss

    def steep(model, batch):
        total = loss(model, batch)
        if len(losses(tmp_path)) == 3:
            total.register_hook(lambda gradient: gradient * float("inf"))
        return total

    task.loss = steep
    with pytest.raises(DataError, match=r"the gradient's norm of step 4 is (nan|inf). The last checkpoint is good"):
        train(task, config, tmp_path)
    ended = trained(tmp_path, steps=6, checkpoint_every=2)
    assert ended.finished
    assert all(bool(parameter.isfinite().all()) for parameter in ended.model.parameters())


def test_epochs_follow_one_another_and_empty_data_are_refused(tmp_path):
    task, config = tiny_task(**{**NO_CHANCE, "steps": 7})
    seen = []
    task.order = lambda epoch: seen.append(epoch) or [[0, 1], [2], [3, 4]]
    train(task, config, tmp_path)
    assert seen == [0, 1, 2]
    task.order = lambda _: []
    with pytest.raises(DataError, match="no batches"):
        train(task, config, tmp_path / "empty")


def test_a_second_run_in_one_process_may_want_another_precision(tmp_path):
    first = trained(tmp_path / "first", steps=2)
    second = trained(tmp_path / "second", steps=2, precision="bfloat16")
    assert first.finished
    assert second.finished
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "second"), rel=0.02)
    assert losses(tmp_path / "first") != losses(tmp_path / "second")
