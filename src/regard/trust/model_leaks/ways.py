"""The ways in which a model's attention can be computed: its implementations, on torch's kernels or on regard's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from regard._errors import ArgumentError
from regard.backends import _library
from regard.integrations.torch_sdpa import activate, is_active
from regard.trust.implementation import implementation, implemented
from regard.trust.model_leaks.subject import transformers_model

IMPLEMENTATIONS = ("eager", "sdpa")
"""Those that are asked for when nothing is said; "flex_attention" compiles for seconds and has no backward on CPU."""
ACTIVE = "regard active"


@dataclass(frozen=True)
class Way:
    """A name, and what is open meanwhile."""

    name: str
    around: Callable[[], AbstractContextManager[object]]


def ways_of(model: nn.Module, implementations: Sequence[str] | None, activated: Sequence[bool] | None) -> list[Way]:
    """Every way that this model has.

    Raises:
        ArgumentError: an implementation is named that the model does not take.
    """
    usual = (True,) if is_active() else (False,) if _library.why_absent() else (False, True)
    on = usual if activated is None else tuple(activated)
    if is_active() and not all(on):
        raise ArgumentError(
            "activated",
            expected="(True,) while regard is active",
            got=repr(on),
            do="Call regard.deactivate() first: nothing is without regard meanwhile.",
        )
    names = _implementations(model, implementations)
    return [_way(model, name, active=active) for name in names for active in on]


def _implementations(model: nn.Module, asked: Sequence[str] | None) -> list[str | None]:
    if not transformers_model(model):
        if asked:
            raise ArgumentError(
                "implementations",
                expected="none, for a model that is not of transformers",
                got=", ".join(asked),
                do="Leave it out.",
            )
        return [None]
    own = implementation(model)
    if not cast("Any", model)._can_set_attn_implementation():  # noqa: SLF001 - else it only warns
        if asked and tuple(asked) != (own,):
            raise _refused(asked[0], f"This model has {own!r} alone, which no registry knows of.")
        return [own]
    taken: list[str | None] = []
    for name in dict.fromkeys(asked or (own, *IMPLEMENTATIONS)):
        try:
            with implemented(model, name):
                taken.append(name)
        except (ValueError, ImportError) as problem:
            if asked:
                raise _refused(name, " ".join(str(problem).split())[:200]) from problem
    return taken


def _refused(name: str, do: str) -> ArgumentError:
    return ArgumentError("implementations", expected="those that the model takes", got=repr(name), do=do)


def _way(model: nn.Module, name: str | None, *, active: bool) -> Way:
    @contextmanager
    def around() -> Generator[None]:
        opened: AbstractContextManager[object] = activate() if active else nullcontext()
        with nullcontext() if name is None else implemented(model, name), opened:
            yield

    shown = "as it is" if name is None else name
    return Way(f"{shown}, {ACTIVE}" if active else shown, around)
