"""Every word of every message that a test provokes stands in `wording.txt`, where it can be read as a whole.

A message that is not there fails its test. After a change that is meant, the whole suite in one process (`-n 0`) with
REGARD_WORDING=write writes the file anew; what changed is then read in the difference.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")
WRITES = os.environ.get("REGARD_WORDING") == "write"
_seen: set[str] = set()


@functools.cache
def known() -> frozenset[str]:
    """Every message, one a line."""
    return frozenset(FILE.read_text(encoding="utf-8").splitlines())


def assert_known(message: str) -> None:
    """The message is one of those that were read and found good."""
    line = message.replace("\\", r"\\").replace("\n", r"\n")
    if not WRITES:
        assert line in known(), f"not in {FILE.name}: {message}"
    elif line not in _seen:
        _seen.add(line)
        FILE.write_text("".join(f"{each}\n" for each in sorted(_seen)), encoding="utf-8")
