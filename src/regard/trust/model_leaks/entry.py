"""`regard.audit` of a whole model: does anything reach what it must not?"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from regard._errors import ArgumentError, UnsupportedError
from regard.trust.audit.findings import Finding, merged
from regard.trust.model_leaks.checks import Question, questions
from regard.trust.model_leaks.reaching import NotTestedError, Reached
from regard.trust.model_leaks.result import Check, ModelAudit
from regard.trust.model_leaks.subject import Kind, Subject, subject_of
from regard.trust.model_leaks.ways import Way, ways_of

LENGTH = 12


def audit_model(
    model: nn.Module,
    inputs: Mapping[str, Any] | None = None,
    *,
    kind: Kind | None = None,
    causal: bool | None = None,
    documents: bool = False,
    implementations: Sequence[str] | None = None,
    activated: Sequence[bool] | None = None,
    length: int = LENGTH,
    gradients: bool = True,
    strict: bool = False,
    seed: int = 0,
) -> ModelAudit:
    """Change what must not matter and see whether it does: by new vectors in its place, and by the gradient.

    Asked are: do later tokens reach earlier ones; does padding, on the right and on the left, reach tokens; does one
    packed document reach the next; is a text that is read in chunks with a cache read as in one pass; do samples of a
    batch reach each other. What is found says in which piece of the model it is first seen.

    Args:
        model: any module; it is run in eval mode and left as it was.
        inputs: what it is called with, by name: two or more samples without padding; token ids (batch, length), or with
            `kind` or `causal` vectors (batch, length, dim). Left out: random ones, from the configuration of a
            transformers model.
        kind: "encoder", "decoder", "encoder_decoder" or "vision"; known of a transformers model, else "encoder", or
            "vision" without token ids.
        causal: whether its tokens may see those before them alone. Left out: those of a decoder.
        documents: packed documents must not reach each other, so that it is a finding when they do, and no warning.
        implementations: of attention, for a transformers model: "eager", "sdpa", "flex_attention" or a registered one.
            Left out: its own, and "eager" and "sdpa" where it has them.
        activated: run with `regard.activate()` (True), without (False), or both, one after the other, when left out.
        length: tokens of random inputs.
        gradients: also by gradient, where the kernels have one.
        strict: warnings fail the audit, too.
        seed: of what is put in the place of what must not matter.

    Raises:
        ArgumentError: no module, inputs that are not understood, or an implementation that the model does not take.
        UnsupportedError: the model does not run on these inputs.
    """
    if not isinstance(cast("object", model), nn.Module):
        raise ArgumentError(
            "model", expected="a torch.nn.Module", got=type(model).__name__, do="A callable is audited by regard.audit."
        )
    if length < 2:
        raise ArgumentError("length", expected="2 tokens or more", got=repr(length), do=f"{LENGTH} are usual.")
    subject = subject_of(model, inputs, kind=kind, causal=causal, length=length)
    ways = ways_of(model, implementations, activated)
    checks: list[Check] = []
    with _evaluating(model, seed):
        _check_runs(subject)
        asked = list(questions(subject, gradients=gradients, seed=seed))
        for way in ways:
            with way.around():
                checks += [_answered(question, subject, way) for question in asked]
    promised = [check for check in checks if check.code != "documents_cross" or documents]
    names = tuple(way.name for way in ways)
    return ModelAudit(
        name=type(model).__name__,
        kind=subject.kind,
        ways=names,
        checks=tuple(checks),
        findings=_findings(promised, names),
        warnings=_findings([check for check in checks if check not in promised], names),
        strict=strict,
    )


def _answered(question: Question, subject: Subject, way: Way) -> Check:
    try:
        found = question.ask(subject)
    except NotTestedError as reason:
        return Check(question.name, question.code, way.name, "not tested", str(reason))
    except Exception as problem:  # whatever a model raises on what this question changes
        told = f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"
        return Check(question.name, question.code, way.name, "not tested", told)
    if isinstance(found, Reached):
        return Check(question.name, question.code, way.name, "leaks" if found.leaks else "holds", found.told())
    return Check(question.name, question.code, way.name, "holds" if found is None else "leaks", found or "")


def _findings(checks: Sequence[Check], ways: tuple[str, ...]) -> tuple[Finding, ...]:
    found = [
        Finding(check.code, f"{check.name}: {check.told}", {"check": check.name, "told": check.told}, (check.way,))
        for check in checks
        if check.state == "leaks"
    ]
    return merged(found, ways)


def _check_runs(subject: Subject) -> None:
    """Once as it is, so that what is wrong with the inputs is told as that."""
    try:
        with torch.no_grad():
            outputs = subject.outputs()
    except Exception as problem:
        reason = f"it does not run on these inputs ({type(problem).__name__}: {' '.join(str(problem).split())[:200]})"
        raise UnsupportedError({"the model": reason}, do="Give inputs= that it takes.") from problem
    if not outputs:
        raise ArgumentError(
            "model", expected="float tensors among what it gives", got="none", do="There is nothing to look at."
        )


@contextmanager
def _evaluating(model: nn.Module, seed: int) -> Generator[None]:
    """In eval mode and with random numbers of its own; both as they were afterwards."""
    training = [module for module in cast("Any", model.modules()) if module.training]
    fork: Callable[[], Any] = cast("Any", torch.random).fork_rng
    try:
        model.eval()
        with fork():
            cast("Any", torch).manual_seed(seed)
            yield
    finally:
        for module in training:
            module.training = True
