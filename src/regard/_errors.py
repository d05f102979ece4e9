"""Every error `regard` raises on purpose.

    RegardError
    ├── ShapeError         (ValueError)       tensors whose sizes, dtypes or devices do not fit together
    ├── MaskError          (ValueError)       a mask that cannot mean what was asked
    ├── ArgumentError      (ValueError)       a scalar option out of its range
    ├── UnsupportedError   (ValueError)       a backend refuses an option; `.reasons` says why
    ├── DataError          (ValueError)       a file or a text that cannot be used
    ├── CheckpointError                       saved weights that are missing, truncated or corrupt
    ├── NativeError        (RuntimeError)     the compiled core failed
    └── DependencyError    (ImportError)      an optional package is absent; names the group to install

Each says what was wrong, what was expected, what came, and what to do about it. Bases are initialized by name, not by
`super()`: torch.compile(fullgraph=True) puts an error of its own in the place of ours, and what it can trace it quotes.
"""

from __future__ import annotations

from collections.abc import Mapping


def sentence(what: str, *, expected: str, got: str, do: str) -> str:
    """The one wording of a bad argument: `what: expected ..., got ... . Do this.`"""
    return f"{what}: expected {expected}, got {got}. {do}"


class RegardError(Exception):
    """Base of all errors raised on purpose by regard."""


class ShapeError(RegardError, ValueError):
    """Tensors whose sizes, dtypes or devices do not fit together."""

    def __init__(self, what: str, *, expected: str, got: str, do: str) -> None:
        ValueError.__init__(self, sentence(what, expected=expected, got=got, do=do))


class MaskError(RegardError, ValueError):
    """A mask that cannot mean what was asked."""

    def __init__(self, what: str, *, expected: str, got: str, do: str) -> None:
        ValueError.__init__(self, sentence(what, expected=expected, got=got, do=do))


class ArgumentError(RegardError, ValueError):
    """A scalar option out of its range."""

    def __init__(self, what: str, *, expected: str, got: str, do: str) -> None:
        ValueError.__init__(self, sentence(what, expected=expected, got=got, do=do))


class UnsupportedError(RegardError, ValueError):
    """A backend (or all of them) refuses the problem, or a tool the model.

    `reasons` maps each one asked to the reason it gave.
    """

    def __init__(
        self,
        reasons: Mapping[str, str],
        *,
        do: str = "Take backend='auto', or ask regard.dispatch(...) what each backend can do.",
    ) -> None:
        self.reasons: dict[str, str] = dict(reasons)
        told = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        ValueError.__init__(self, f"refused by {told}. {do}")


class DataError(RegardError, ValueError):
    """A file, a folder or a text that cannot be used as given."""


class CheckpointError(RegardError):
    """Saved weights that are missing, truncated or corrupt."""


class NativeError(RegardError, RuntimeError):
    """The compiled core failed, or is absent."""


class DependencyError(RegardError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, group: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'regard[{group}]'")
