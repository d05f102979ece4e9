"""TensorBoard's event files, through torch.utils.tensorboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from regard._errors import DependencyError

Writer = Any
"""torch's SummaryWriter, whose arguments have no types."""


class Events:
    """Curves and images of a run in `folder`, one more file for each time it is resumed.

    Args:
        folder: what `tensorboard --logdir` is given.
        first_step: what earlier files say of this step and later ones is void (TensorBoard's purge_step).
        warn: is told in one line when the files cannot be written. Nothing more is then written: TensorBoard cannot go
            on after half a record. The same numbers stand in the log.

    Raises:
        DependencyError: tensorboard is absent.
    """

    def __init__(self, folder: Path, *, first_step: int, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._writer: Writer = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as problem:
            raise DependencyError("tensorboard", "train") from problem
        make: Writer = SummaryWriter
        self._safely(lambda: self._keep(make(str(folder), purge_step=first_step)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point on each curve."""
        self._write(lambda writer: [writer.add_scalar(name, value, step) for name, value in values.items()])

    def image(self, step: int, name: str, pixels: Tensor) -> None:
        """A grey image: uint8 (height, width)."""
        self._write(lambda writer: writer.add_image(name, pixels, step, dataformats="HW"))

    def flush(self) -> None:
        """Hand everything to the system."""
        self._write(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush, and close the file."""
        self._write(lambda writer: writer.close())
        self._writer = None

    def _keep(self, writer: Writer) -> None:
        self._writer = writer

    def _write(self, what: Callable[[Writer], object]) -> None:
        writer = self._writer
        if writer is not None:
            self._safely(lambda: what(writer))

    def _safely(self, what: Callable[[], object]) -> None:
        try:
            what()
        except OSError as problem:
            self._writer = None
            self._warn(f"{str(self._folder)!r} cannot be written: {problem.strerror}. TensorBoard gets nothing more.")
