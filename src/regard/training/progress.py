"""What somebody at a terminal sees of a run: one line that moves, and messages above it, on stderr."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

from regard._errors import DependencyError

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, track
except ImportError as problem:
    raise DependencyError("rich", "train") from problem

Item = TypeVar("Item")

_SPEED_OVER_SECONDS = 300.0
"""The time that is left is told from the speed over so many seconds, evaluations and checkpoints included."""


class ProgressLine:
    """Steps done, time left, loss, units a second and the last metric.

    Args:
        steps: of the whole run.
        watched: draw the line. Without, and where stderr is no terminal, there are messages only.
    """

    def __init__(self, steps: int, *, watched: bool) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        self._facts: dict[str, str] = {}
        if watched and self._console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
                speed_estimate_period=_SPEED_OVER_SECONDS,
            )
        self._task = TaskID(0) if self._bar is None else self._bar.add_task("", total=steps, facts="")

    def start(self, step: int) -> None:
        """Draw from `step` on."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            self._bar.start()

    def show(self, step: int, facts: dict[str, str]) -> None:
        """So far it is, and these facts are new; a fact stays until it is told again."""
        if self._bar is not None:
            self._facts |= facts
            shown = "  ".join(f"{name} {value}" for name, value in self._facts.items())
            self._bar.update(self._task, completed=step, facts=shown)

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(message, markup=False, highlight=False)

    def stop(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.stop()


def said(message: str) -> None:
    """One line before long work that precedes training; of the processes of torchrun, the first says it."""
    _first_console().print(message, markup=False, highlight=False)


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar on stderr while they are gone through, where that is a terminal."""
    console = _first_console()
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)


def _first_console() -> Console:
    return Console(stderr=True, soft_wrap=True, quiet=int(os.environ.get("RANK", "0")) != 0)
