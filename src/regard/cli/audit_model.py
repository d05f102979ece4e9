"""`regard audit MODEL`: what reaches what in a whole model."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regard.trust.model_leaks.subject import Kind

FACTORY = re.compile(r"[\w.]+:\w+")
ATTENTION = ("native", "sdpa", "flex", "eager", "auto", "torch")
"""Names of attention that a folder may have, too."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def names_model(target: str) -> bool:
    """Whether it is a folder, a hub name or a factory, and no attention: a factory takes nothing."""
    if target in ATTENTION:
        return False
    if FACTORY.fullmatch(target):
        return _takes_nothing(target)
    try:
        is_folder = Path(target).is_dir()
    except OSError:  # no path at all
        return False
    return is_folder or HUB_NAME.fullmatch(target) is not None


def audit_named_model(target: str, *, kind: Kind | None, causal: bool | None, strict: bool, json_output: bool) -> int:
    """Load the model, look for leaks, and tell what was found."""
    from regard.cli._app import FAILED, OK
    from regard.trust.model_leaks import audit_model
    from regard.xray.loading import load

    loaded = load(target)
    found = audit_model(loaded.model, loaded.inputs, kind=kind, causal=causal, strict=strict)
    sys.stdout.write(f"{found.json() if json_output else found}\n")
    return OK if found.passed else FAILED


def _takes_nothing(reference: str) -> bool:
    """A function that needs no argument; what cannot be imported is left to whoever says so better."""
    module, _, name = reference.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), name)
        wanted = inspect.signature(getattr(found, "forward", found)).parameters.values()
    except Exception:  # whatever a module of somebody's raises
        return False
    finally:
        if "" in sys.path:
            sys.path.remove("")
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if wanted and all(entry.kind in anything for entry in wanted):  # a function in the place of another
        return False
    return all(entry.default is not inspect.Parameter.empty or entry.kind in anything for entry in wanted)
