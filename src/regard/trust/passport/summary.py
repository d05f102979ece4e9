"""`regard.passport.show`: what a passport holds, and how good the recorder itself was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.trust.passport.contents import Contents
from regard.trust.passport.folder import Passport, read
from regard.trust.passport.plan import shown_bytes
from regard.trust.passport.report import finite, told
from regard.trust.passport.units import FACTORS


@dataclass(frozen=True)
class Summary:
    """What a passport holds. Prints as a text.

    path: of the folder. size: of its tensors in bytes. contents: all that its manifest says.
    beyond: what was beyond its limit where it was recorded: there, something is wrong already.
    """

    path: str
    size: int
    contents: Contents
    beyond: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: no NaN, no Inf (null)."""
        shown: dict[str, Any] = finite(dataclasses.asdict(self))
        return shown

    def lines(self) -> Iterator[str]:
        """For people."""
        contents, made = self.contents, self.contents.made
        yield f"{self.path}: {made.model}, {shown_bytes(self.size)}, verified"
        yield f"  recorded with {told(made)}"
        versions = f"regard {made.regard}, transformers {made.transformers or 'none'}, Python {made.python}"
        yield f"  {versions}, {made.platform}"
        layers = [item.name for item in contents.items if (item.kind, item.side) == ("layer", "forward")]
        gradients = sum(item.side == "gradient" for item in contents.items)
        outputs = [item.name for item in contents.items if item.kind == "output"]
        yield f"  {len(layers)} layers, outputs {', '.join(outputs)}, {gradients} gradients"
        for call in contents.calls:
            kept = f": {call.kept}" if call.kept else ""
            yield f"  attention {call.name} ({call.implementation}, {call.dtype}){kept}"
        yield from (f"  left out: {line}" for line in contents.left_out)
        yield from (f"  beyond its limit where it was recorded: {line}" for line in self.beyond)


def show(path: str | Path) -> Summary:
    """What a passport holds, once every byte of it was verified.

    Raises:
        CheckpointError: it is truncated, changed, of another version, or none.
    """
    return summary_of(read(Path(path)))


def summary_of(passport: Passport) -> Summary:
    """Of a passport that was read."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in passport.tensors.values())
    beyond = tuple(
        f"{'gradient of ' if item.side == 'gradient' else ''}{item.name}, {item.recorder:.3g} errors of plain torch"
        for item in passport.contents.items
        if item.recorder > FACTORS[item.side]
    )
    return Summary(str(passport.folder), size, passport.contents, beyond)
