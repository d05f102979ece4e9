"""`regard audit MODEL`: what reaches what in a whole model."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

FACTORY = re.compile(r"[\w.]+:\w+")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def names_model(target: str) -> bool:
    """Whether it is a folder, a hub name or a factory, and no attention: a factory takes nothing."""
    if FACTORY.fullmatch(target):
        return _takes_nothing(target)
    return Path(target).is_dir() or HUB_NAME.fullmatch(target) is not None


def audit_named_model(target: str, *, strict: bool, json_output: bool) -> int:
    """Load the model, look for leaks, and tell what was found."""
    from regard.cli._app import FAILED, OK
    from regard.trust.model_leaks import audit_model
    from regard.xray.loading import load

    loaded = load(target)
    found = audit_model(loaded.model, loaded.inputs, strict=strict)
    sys.stdout.write(f"{found.json() if json_output else found}\n")
    return OK if found.passed else FAILED


def _takes_nothing(reference: str) -> bool:
    """A function that needs no argument; what cannot be imported is left to whoever says so better."""
    module, _, name = reference.partition(":")
    sys.path.insert(0, "")
    try:
        wanted = inspect.signature(getattr(import_module(module), name)).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
    finally:
        if "" in sys.path:
            sys.path.remove("")
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(entry.default is not inspect.Parameter.empty or entry.kind in optional for entry in wanted)
