"""The log as a file: what is killed, cut, or written to a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from regard._errors import DataError
from regard.training.journal import Journal


def _journal(folder: Path, kept: int | None = None) -> tuple[Journal, list[str]]:
    told: list[str] = []
    return Journal(folder / "log.jsonl", kept, told.append), told


def _lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_bytes().splitlines(keepends=True)]


def _fails(number: int) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def test_a_line_can_be_read_at_once(tmp_path: Path) -> None:
    journal, told = _journal(tmp_path)
    journal.add({"step": 1, "text": "中文\n"})
    assert _lines(tmp_path) == [{"step": 1, "text": "中文\n"}]
    assert told == []
    journal.close()


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path)
    journal.add({"a": float("nan"), "b": [float("inf"), {"c": -float("inf")}], "d": (1.5,)})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": None, "b": [None, {"c": None}], "d": [1.5]}
    journal.close()


def test_position_counts_bytes_and_comes_after_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = _journal(tmp_path)
    journal.add({"text": "é"})
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    place = journal.position()
    assert place == len('{"text": "é"}\n'.encode())
    assert sizes == [place]
    journal.add({"step": 2})
    assert journal.position() == (tmp_path / "log.jsonl").stat().st_size


def test_what_follows_the_position_is_cut_off(tmp_path: Path) -> None:
    journal, _ = _journal(tmp_path)
    journal.add({"step": 1})
    place = journal.position()
    journal.add({"step": 2})
    journal.close()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    again, told = _journal(tmp_path, place)
    again.add({"step": 20})
    assert _lines(tmp_path) == [{"step": 1}, {"step": 20}]
    assert told == []


@pytest.mark.parametrize("missing", [1, 5, 14])
def test_a_log_shorter_than_its_checkpoint_is_mended_to_whole_lines_and_told(tmp_path: Path, missing: int) -> None:
    journal, _ = _journal(tmp_path)
    journal.add({"step": 1})
    first = journal.position()
    journal.add({"step": 2})
    place = journal.position()
    journal.close()
    os.truncate(tmp_path / "log.jsonl", place - missing)
    again, told = _journal(tmp_path, place)
    again.add({"step": 3})
    kept = [{"step": 1}] if place - missing >= first else []
    assert _lines(tmp_path) == [*kept, {"step": 3}]
    assert len(told) == 1
    assert f"the checkpoint counted {place}" in told[0]


def test_a_new_run_keeps_the_old_log_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 7}\n')
    journal, _ = _journal(tmp_path)
    journal.add({"step": 1})
    assert _lines(tmp_path) == [{"step": 1}]
    assert (tmp_path / "log.jsonl.before").read_text() == '{"step": 7}\n'


def test_a_disk_without_room_costs_one_warning_and_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, told = _journal(tmp_path)
    journal.add({"step": 1})
    place = journal.position()
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", _fails(errno.ENOSPC))
        journal.add({"step": 2})
        journal.add({"step": 3})
        assert journal.position() == place
    assert len(told) == 1
    assert "No space left on device" in told[0]
    journal.add({"step": 4})
    assert journal.position() == (tmp_path / "log.jsonl").stat().st_size
    assert _lines(tmp_path) == [{"step": number} for number in (1, 2, 3, 4)]
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", _fails(errno.ENOSPC))
        journal.add({"step": 5})
    assert len(told) == 2, "trouble that comes again is told again"


def test_half_a_line_on_a_full_disk_is_finished_later(tmp_path: Path) -> None:
    journal, told = _journal(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal.add({"step": 1})
    place = journal.position()
    resource.setrlimit(resource.RLIMIT_FSIZE, (place + 5, before[1]))  # the system takes five bytes, then EFBIG
    try:
        journal.add({"step": 2})
        assert journal.position() == place
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "log.jsonl").stat().st_size == place + 5
    assert len(told) == 1
    journal.close()
    assert _lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_what_fsync_did_not_take_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the system may drop what it had and call the next fsync a success."""
    journal, told = _journal(tmp_path)
    journal.add({"step": 1})
    place = journal.position()
    journal.add({"step": 2})
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _fails(errno.EIO))
        assert journal.position() == place
        assert journal.position() == place
    assert len(told) == 1
    os.truncate(tmp_path / "log.jsonl", place)  # it is gone
    assert journal.position() > place
    assert _lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl.before").mkdir()
    (tmp_path / "log.jsonl.before" / "x").touch()
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(DataError, match=r"log\.jsonl' cannot be written: Is a directory\. Make room or give another"):
        _journal(tmp_path)


_WRITER = """
import sys, pathlib
from regard.training.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]), None, print)
for step in range(10**9):
    journal.add({"step": step, "text": "x" * (step % 50)})
    if step % 7 == 0:
        print(journal.position(), step, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3, 20])
def test_F73_killed_at_any_moment_the_position_told_last_holds(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            place, step = map(int, writer.stdout.readline().split())
        writer.send_signal(signal.SIGKILL)
    assert [json.loads(line)["step"] for line in path.read_bytes()[:place].splitlines()] == list(range(step + 1))
    journal, told = _journal(tmp_path, place)
    journal.close()
    assert path.stat().st_size == place
    assert told == []
