"""Public names that are imported when they are first used (PEP 562).

`regard --help` then need not wait for torch, and `python -m regard.masks.window` runs the file it names
instead of one that the package has imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A module's `__getattr__`: finds a public name in its home module, and keeps it in the package.

    Args:
        package: the package's `__name__`.
        homes: public names by the module that defines them; a module with no names is public itself.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    rooms = {home.rpartition(".")[2]: home for home, names in homes.items() if not names}

    def find(name: str) -> Any:
        if name in rooms:
            return import_module(rooms[name])
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return find
