"""Checkpoints that are complete and verified, or are not there.

Training may be killed at any moment, the disk may be full, a bit may turn over: what was saved before stays usable.
One checkpoint is written beside the others under another name, each file and then the manifest brought to the disk
(fsync), and only then gets its name, in one step that cannot be half done (rename). Reading verifies every byte and
goes back to the checkpoint before when one does not hold.

    folder/
        ckpt-000100/ ckpt-000200/       see regard.training._checkpoint_folder
        ckpt-000300.tmp-4711/           being written; if process 4711 died, removed by the next writer
        LATEST                          the name of the newest, for people and scripts; nothing is read from it
        .lock                           held by the one process that writes

Only safetensors and JSON are read; a pickle runs code when it is opened and is never. Tensors come back bit for bit on
any machine and with any version of torch, but another version, or another number of threads or processes, may round
otherwise from there on: `Saved.torch` says which it was.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from regard._errors import ArgumentError, CheckpointError
from regard._sealed_folder import MANIFEST, CorruptCheckpointError, sync_folder
from regard._tensor_file import write_durably
from regard.training._checkpoint_folder import Draft, Manifest, load, verify

_NAME = re.compile(r"ckpt-(\d{6}|[1-9]\d{6,})")
_TEMPORARY = ".tmp-"
_OURS = re.compile(r"(ckpt-\d{6,}|LATEST)(\.tmp-.*)?")
_ROOM = 2.2
"""Free space that is asked for, as a multiple of the checkpoint's size: others write to the disk too."""
_FEWEST = 2
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint.

    Attributes:
        step: training steps that were done.
        digest: of the configuration it was trained with.
        facts: what was handed to `save`, as JSON gives it back.
        tensors: files, and the tensors in each, on the CPU.
        skipped: newer checkpoints that are corrupt, one line each: file, what was expected, what was found.
        folder: where it is.
        torch: the version it was written with.
    """

    step: int
    digest: str
    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    skipped: list[str]
    folder: Path
    torch: str


class Checkpoints:
    """The checkpoints of one run: a context manager, within which one process writes and others may read.

    Args:
        folder: made if absent.
        keep: how many good checkpoints stay, 2 or more.
        writer: whether this process saves; of the processes of a run only one does. A writer holds a lock, and removes
            what a writer left behind that was killed.

    Raises:
        CheckpointError: on entering: another process writes here, the folder cannot be written, or there is a symbolic
            link in the place of something of ours.
    """

    def __init__(self, folder: Path, *, keep: int = _FEWEST, writer: bool = True) -> None:
        if keep < _FEWEST:
            raise ArgumentError(
                "keep", expected=f"{_FEWEST} or more", got=str(keep), do="One checkpoint alone has nothing behind it."
            )
        self._folder, self._keep, self._writer = folder, keep, writer
        self._lock: int | None = None
        self._good: set[Path] = set()

    def __enter__(self) -> Self:
        if self._writer:
            try:
                _refuse_links(self._folder)
                _make_folder(self._folder)
                self._lock = _locked(self._folder)
                self._remove_orphans()
            except OSError as problem:
                self._unlock()
                raise CheckpointError(
                    f"{str(self._folder)!r} cannot be written: {problem.strerror}. What is in it is as it was."
                ) from problem
            except BaseException:
                self._unlock()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unlock()

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any], *, digest: str
    ) -> None:
        """Write a checkpoint, and remove those beyond the newest `keep`. In a process that is no writer: nothing.

        Args:
            step: steps done; more than those of any good checkpoint here.
            tensors: files, and the tensors in each, of any dtype, strides and device.
            facts: anything else, as JSON can hold it.
            digest: of the configuration, which a resumed run must have too.

        Raises:
            CheckpointError: the disk is full, broken or read-only, or this step was saved before. The checkpoints
                that were there are as they were.
            ArgumentError: something that a checkpoint cannot hold; nothing was touched.
        """
        if not self._writer:
            return
        if self._lock is None:
            raise CheckpointError(f"{str(self._folder)!r} is not open: save inside of `with Checkpoints(...)`.")
        draft = Draft.of(step, tensors, facts, digest)
        target = self._folder / f"ckpt-{step:06d}"
        try:
            self._remove_orphans()  # of a fault that did not let this process remove them
            self._make_way(target)
            self._check_room(draft)
            self._write(draft, target)
        except OSError as problem:
            raise CheckpointError(self._failure(step, _reason(problem))) from problem
        self._good.add(target)
        try:
            self._tell(target)
            self._prune()
        except OSError as problem:
            raise CheckpointError(
                f"step {step} is saved in {str(target)!r}, but older ones cannot be put in order: {_reason(problem)}."
            ) from problem

    def newest(self) -> Saved | None:
        """The newest good checkpoint; None where there is none at all.

        Raises:
            CheckpointError: there are checkpoints, and each is corrupt.
        """
        saved = _newest(self._folder)
        if saved is not None:
            self._good.add(saved.folder)
        return saved

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _remove_orphans(self) -> None:
        for path in _entries(self._folder):
            if _OURS.fullmatch(path.name) and _TEMPORARY in path.name:
                _remove(path)

    def _make_way(self, target: Path) -> None:
        """A run that went back to an older checkpoint meets the corrupt ones that it left: they go."""
        for path in _checkpoints(self._folder):
            if _step(path) < _step(target):
                return
            if self._is_good(path):
                raise CheckpointError(
                    f"{str(path)!r} is there already, a good checkpoint of step {_step(path)}: step {_step(target)} "
                    "would not be the newest. Resume from it, or take another folder."
                )
            self._discard(path)

    def _check_room(self, draft: Draft) -> None:
        free, need = shutil.disk_usage(self._folder).free, int(_ROOM * draft.size)
        if free < need:
            raise CheckpointError(self._failure(draft.step, f"expected {need} bytes free on the disk, found {free}"))

    def _write(self, draft: Draft, target: Path) -> None:
        temporary = _temporary(target)
        try:
            temporary.mkdir()
            draft.write(temporary)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self._folder)

    def _tell(self, target: Path) -> None:
        latest = self._folder / "LATEST"
        temporary = _temporary(latest)
        try:
            write_durably(temporary, [f"{target.name}\n".encode()])
            temporary.replace(latest)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self._folder)

    def _prune(self) -> None:
        """Remove what is older than the newest good ones; one that is corrupt does not count as one of them."""
        kept = 0
        for path in _checkpoints(self._folder):
            if kept == self._keep:
                self._discard(path)
            elif self._is_good(path):
                kept += 1

    def _is_good(self, path: Path) -> bool:
        """Verified now, or before by this process."""
        if path not in self._good:
            try:
                verify(path, _step(path))
            except CorruptCheckpointError:
                return False
            self._good.add(path)
        return True

    def _discard(self, path: Path) -> None:
        """First the name, so that what is half removed is no checkpoint."""
        temporary = _temporary(path)
        path.rename(temporary)
        self._good.discard(path)
        _remove(temporary)

    def _failure(self, step: int, reason: str) -> str:
        before = (path for path in _checkpoints(self._folder) if _step(path) < step and self._is_good(path))
        good = (f"The one of step {_step(path)} is intact" for path in before)
        intact = next(good, "There was none before it")
        return f"the checkpoint of step {step} is not saved in {str(self._folder)!r}: {reason}. {intact}."


def read_checkpoint(folder: Path) -> Saved:
    """A checkpoint, or the newest good one of a run, to use its weights; a run that goes on is not disturbed.

    Args:
        folder: `.../ckpt-000123` itself (which may have been renamed), a run's folder, or the `checkpoints` in it.

    Raises:
        CheckpointError: there is none, or none that is good.
    """
    if folder.is_file():
        raise CheckpointError(f"{str(folder)!r}: expected a folder, got a file. {_advice([folder])}")
    if (folder / MANIFEST).exists():
        manifest = verify(folder)
        return _saved(folder, manifest, [])
    for place in (folder / "checkpoints", folder):
        if (saved := _newest(place)) is not None:
            return saved
    raise CheckpointError(f"{str(folder)!r}: no checkpoint in it. {_advice(_entries(folder))}")


def _newest(folder: Path) -> Saved | None:
    skipped: list[str] = []
    gone = False
    for path in _checkpoints(folder):
        try:
            return _saved(path, verify(path, _step(path)), skipped)
        except CorruptCheckpointError as problem:
            skipped.append(problem.line)
            gone |= path not in _entries(folder)
    if gone:  # a writer removed one while it was read, so there are newer ones by now
        return _newest(folder)
    if skipped:
        raise CheckpointError(
            f"{str(folder)!r}: no checkpoint is good: {'; '.join(skipped)}. Take another folder, or remove these to "
            "begin anew."
        )
    return None


def _saved(path: Path, manifest: Manifest, skipped: list[str]) -> Saved:
    return Saved(
        manifest.step, manifest.digest, manifest.facts, load(path, manifest), skipped, path, torch=manifest.torch
    )


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing, if there is none."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise CheckpointError(f"{str(folder)!r} cannot be read: {problem.strerror}.") from problem


def _checkpoints(folder: Path) -> Iterator[Path]:
    """What is called a checkpoint, the newest first."""
    named = [path for path in _entries(folder) if _NAME.fullmatch(path.name)]
    return iter(sorted(named, key=_step, reverse=True))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("ckpt-"))


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}{_TEMPORARY}{os.getpid()}")


def _make_folder(folder: Path) -> None:
    """With all above it, each brought to the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refuse_links(folder: Path) -> None:
    ours = (path for path in _entries(folder) if _OURS.fullmatch(path.name))
    for path in (folder, *ours):
        if path.is_symlink():
            raise CheckpointError(
                f"{str(path)!r} is a symbolic link, and those are not followed. Name the place itself, or remove it."
            )


def _locked(folder: Path) -> int:
    """The descriptor of a lock file that is locked; the system unlocks it when its process ends, however it does."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError as problem:
        writer = os.pread(descriptor, 32, 0).decode("ascii", errors="replace") or "of unknown number"
        os.close(descriptor)
        raise CheckpointError(
            f"{str(folder)!r} is in use: process {writer} writes checkpoints there. End it, or take another folder."
        ) from problem
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reason(problem: OSError) -> str:
    where = "" if problem.filename is None else f" ({Path(os.fsdecode(problem.filename)).name})"
    return f"{problem.strerror or problem}{where}"


def _advice(paths: list[Path]) -> str:
    pickled = next((path.name for path in paths if path.suffix in _PICKLES), None)
    if pickled is not None:
        return f"{pickled!r} may be a pickle, and opening one runs the code in it: it is not read."
    return "Give the folder of a run of `regard train`."
