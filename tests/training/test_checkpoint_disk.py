"""Rows F73 to F77 of the fault table: killed, full or broken disks, what is left behind, two writers.

The disk is made to fail at every call that changes it, one after another: none of them may cost a checkpoint.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from regard._errors import CheckpointError
from regard.training.checkpoint import Checkpoints
from tests.training.checkpoint_cases import DIGEST, assert_is, disk, filled, names, newest, save, tensors_of


class Killed(BaseException):
    """What follows it does not happen."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power, and fsync is what takes time; that it is called is counted all the same."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, with one to be kept beside the next."""
    return filled(tmp_path / "checkpoints", 1, 2)


def copied(folder: Path, name: object) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(str(name))))


def changes_of_a_save(folder: Path) -> list[str]:
    """What a save asks of the disk, call by call."""
    with Checkpoints(copied(folder, "counted")) as checkpoints, disk() as watched:
        save(checkpoints, 3)
    assert watched.done.count("fsync") == 7
    return watched.done


@pytest.mark.parametrize("half", [False, True])
def test_F73_killed_before_each_change_of_a_save(folder: Path, half: bool) -> None:
    """With `half`, a write is killed in its middle. Whenever it is: the old one or the new one, whole, and no rest."""
    done = changes_of_a_save(folder)
    steps: list[int] = []
    for at in range(len(done) + 1):
        place = copied(folder, at)
        checkpoints = Checkpoints(place).__enter__()
        with disk(at, Killed(), half=half, lasting=True):
            try:
                save(checkpoints, 3)
            except Killed:
                assert at < len(done)
        checkpoints.__exit__(None, None, None)
        saved = newest(place)  # a reader does not mind what lies about
        assert saved.skipped == []
        assert_is(saved, saved.step)
        steps.append(saved.step)
        with Checkpoints(place) as again:
            assert not [name for name in names(place) if ".tmp-" in name]
            assert_is(again.newest(), saved.step)
            save(again, saved.step + 1)
            assert_is(again.newest(), saved.step + 1)
        assert len([name for name in names(place) if name.startswith("ckpt-")]) == 2
    renamed = done.index("rename")
    assert steps == [2] * (renamed + 1) + [3] * (len(done) - renamed)


def test_F73_killed_while_what_was_left_is_removed(folder: Path) -> None:
    shutil.copytree(folder / "ckpt-000002", folder / "ckpt-000003.tmp-99")
    counted = copied(folder, "counted")
    with disk() as watched, Checkpoints(counted):
        pass
    assert len(watched.done) > 5
    for at in range(len(watched.done)):
        place = copied(folder, at)
        with disk(at, Killed(), lasting=True), pytest.raises(Killed), Checkpoints(place):
            pass
        assert_is(newest(place), 2)
        with Checkpoints(place):
            assert names(place) == ["LATEST", "ckpt-000001", "ckpt-000002"]


FAULTS = {
    errno.ENOSPC: "No space left on device",
    errno.EIO: "Input/output error",
    errno.EROFS: "Read-only file system",
}


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("number", FAULTS)
def test_F74_a_fault_in_each_change_of_a_save(folder: Path, number: int, lasting: bool) -> None:
    """Never silent; what is said is so; what was there is there; nothing is left behind if it can be removed."""
    done = changes_of_a_save(folder)
    renamed = done.index("rename")
    for at in range(len(done)):
        place = copied(folder, at)
        fault = OSError(number, os.strerror(number))
        with Checkpoints(place) as checkpoints:
            with disk(at, fault, half=True, lasting=lasting), pytest.raises(CheckpointError) as caught:
                save(checkpoints, 3)
            message = str(caught.value)
            if at <= renamed + 2:  # to the end of the fsync of the folder that the name is in
                said = f"the checkpoint of step 3 is not saved in {str(place)!r}: {FAULTS[number]}"
                assert message == f"{said}. The one of step 2 is intact."
            else:
                said = f"step 3 is saved in {str(place / 'ckpt-000003')!r}, but older ones cannot be put in order"
                assert message.startswith(f"{said}: {FAULTS[number]}")
            saved = newest(place)
            assert saved.skipped == []
            assert_is(saved, 2 if at <= renamed else 3)
            assert "ckpt-000002" in names(place)
            if not lasting and at <= renamed:
                assert names(place) == ["LATEST", "ckpt-000001", "ckpt-000002"]
            save(checkpoints, 4)  # once there is room it goes on
            assert_is(newest(place), 4)
            assert not [name for name in names(place) if ".tmp-" in name]


def test_F74_a_file_that_the_system_does_not_let_grow(folder: Path) -> None:
    """The kernel's own error in the middle of a write, as of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, {"model": {"a": torch.ones(10_000)}}, {}, digest=DIGEST)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            with pytest.raises(
                CheckpointError, match=r"is not saved in .*: File too large\. The one of step 3 is intact\."
            ):
                checkpoints.save(4, {"model": {"a": torch.ones(10_000)}}, {}, digest=DIGEST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert names(folder) == ["LATEST", "ckpt-000002", "ckpt-000003"]
        saved = checkpoints.newest()
    assert saved is not None
    assert saved.step == 3


def test_F74_the_first_checkpoint_of_all_has_none_before_it(tmp_path: Path) -> None:
    fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = r"step 1 is not saved in .*: No space left on device\. There was none before it\.$"
    with Checkpoints(tmp_path) as checkpoints, disk(5, fault), pytest.raises(CheckpointError, match=message):
        save(checkpoints, 1)
    assert names(tmp_path) == []


def test_F74_what_is_called_intact_is(folder: Path) -> None:
    (folder / "ckpt-000002" / "manifest.json").write_bytes(b"")
    fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        Checkpoints(folder) as checkpoints,
        disk(5, fault),
        pytest.raises(CheckpointError, match="The one of step 1 is"),
    ):
        save(checkpoints, 3)


def test_room_for_2_2_times_the_checkpoint_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in (folder / "ckpt-000002").iterdir())
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    need = int(2.2 * size)
    with Checkpoints(folder) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, need - 1))
        message = (
            rf"step 3 is not saved in .*: expected {need} bytes free on the disk, found {need - 1}\. The one of step 2"
        )
        with disk() as watched, pytest.raises(CheckpointError, match=message):
            save(checkpoints, 3)
        assert watched.done == []
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, need))
        save(checkpoints, 3)
    assert_is(newest(folder), 3)


def test_F74_a_folder_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    fault = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with disk(0, fault, lasting=True):
        message = r"checkpoints' cannot be written: Read-only file system\. What is in it is as it was\."
        with pytest.raises(CheckpointError, match=message), Checkpoints(folder):
            pass
        with pytest.raises(CheckpointError, match=r"new' cannot be written: Read-only"), Checkpoints(tmp_path / "new"):
            pass
        assert_is(newest(folder), 2)
        assert_is(Checkpoints(folder, writer=False).newest(), 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file' cannot be read: Not a directory"), Checkpoints(tmp_path / "file"):
        pass


def test_F75_what_is_written_stands_beside_its_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TMPDIR says: over two file systems nothing can be renamed."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    seen: list[Path] = []
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        seen.append(path)
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with Checkpoints(folder, keep=3) as checkpoints:
        save(checkpoints, 3)
    assert seen == [folder / f"ckpt-000003.tmp-{os.getpid()}"]


def test_F76_what_a_killed_writer_left_is_removed_and_never_loaded(folder: Path) -> None:
    shutil.copytree(folder / "ckpt-000002", folder / "ckpt-000003.tmp-4711")
    shutil.copytree(folder / "ckpt-000002", folder / f"ckpt-000004.tmp-{os.getpid()}")
    (folder / "LATEST.tmp-4711").write_bytes(b"ckpt-")
    (folder / "notes.tmp-1").write_text("of somebody else")
    (folder / "ckpt-5").mkdir()
    assert_is(newest(folder), 2)
    with Checkpoints(folder, writer=False) as reader:
        assert_is(reader.newest(), 2)
        assert (folder / "LATEST.tmp-4711").exists()
    with Checkpoints(folder) as checkpoints:
        assert names(folder) == ["LATEST", "ckpt-000001", "ckpt-000002", "ckpt-5", "notes.tmp-1"]
        save(checkpoints, 4)
    assert_is(newest(folder), 4)


def test_F77_a_second_writer_is_told_who_the_first_is(folder: Path) -> None:
    (folder / "ckpt-000003.tmp-4711").mkdir()
    with Checkpoints(folder) as checkpoints:
        (folder / "ckpt-000003.tmp-4711").mkdir()  # as if it was being written
        message = rf"checkpoints' is in use: process {os.getpid()} writes checkpoints there\. End it, or take another f"
        with pytest.raises(CheckpointError, match=message), Checkpoints(folder):
            pass
        assert (folder / "ckpt-000003.tmp-4711").exists()
        save(checkpoints, 4)
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 5)


HOLD = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.pwrite(descriptor, str(os.getpid()).encode(), 0)
print("held", flush=True)
time.sleep(600)
"""


def test_F77_the_lock_of_a_process_that_was_killed_is_none(folder: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"process {other.pid} writes"), Checkpoints(folder):
            pass
        assert_is(newest(folder), 2)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert (folder / ".lock").read_text() == str(other.pid)
    with Checkpoints(folder) as checkpoints:
        assert (folder / ".lock").read_text() == str(os.getpid())
        checkpoints.save(3, tensors_of(3), {"at": 3}, digest=DIGEST)


def test_F77_an_error_inside_of_the_context_gives_the_lock_back(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), Checkpoints(folder):
        raise ZeroDivisionError
    with Checkpoints(folder):
        pass
