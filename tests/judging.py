"""One backend on one case: honoured within the budget, refused with a sentence, or a failure."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import pytest
import torch

import regard
from regard import RegardError, UnsupportedError
from regard.trust.plain import plain_attention
from tests import oracles
from tests.oracles import Case
from tests.wording import assert_known

BACKENDS = ("native", "eager", "sdpa", "flex", "auto")
each_backend = pytest.mark.parametrize("backend", BACKENDS)

BATCH, HEADS, WIDTH = 2, 4, 6


def made(q_len: int = 8, kv_len: int = 8, *, dtype: torch.dtype = torch.float32, **options: Any) -> Case:
    """A case of unit-normal tensors (2, 4, length, 6)."""
    lengths = (q_len, kv_len, kv_len)
    tensors = (torch.randn(BATCH, HEADS, length, WIDTH, dtype=torch.float64).to(dtype) for length in lengths)
    return Case(*tensors, options)


def judge(case: Case, backend: str, *, gradient: bool = True) -> str:
    """Compare with the oracle, forward and backward (flex has none on CPU): says "honoured" or "refused"."""
    gradient = gradient and backend != "flex"
    try:
        actual = oracles.answer(functools.partial(regard.attention, backend=backend), case, gradient=gradient)
    except UnsupportedError as refusal:
        return refused(refusal, backend)
    truth = oracles.oracle(case, gradient=gradient)
    plain = oracles.answer(plain_attention, case, gradient=gradient)
    oracles.assert_answer(actual, plain, truth)
    return "honoured"


def refused(refusal: UnsupportedError, backend: str) -> str:
    """A refusal that is allowed: of one backend that was named and may refuse, with a sentence."""
    assert backend not in {"auto", "eager"}, f"{backend} must honour every valid problem: {refusal}"
    (reason,) = refusal.reasons.values()
    assert re.match(r"\w+,? \w+ .{5,}", reason), f"a reason is a sentence, got {reason!r}"
    return "refused"


def assert_error(kind: type[RegardError], *words: str, case: Case, compiled: bool = True) -> None:
    """Every backend, and dispatch, raise `kind` before they compute; it says what, expected, got, and what to do.

    So does a whole compiled graph, unless the error is about numbers, which are not known while it is traced.
    """
    for backend in BACKENDS:
        for function in (regard.attention, regard.dispatch):
            with pytest.raises(kind) as caught:
                case.run(function, backend=backend)
            message = str(caught.value)
            assert re.fullmatch(r"[^:]+: expected .+, got .+\. [A-Z].+\.", message, re.DOTALL), message
            for word in words:
                assert word in message, f"{word!r} is not in {message!r}"
            assert_known(message)
    if compiled and os.environ.get("TORCHDYNAMO_DISABLE") != "1":  # as it is while mutants run
        _assert_compiled_error(kind, *words, case=case)


def _assert_compiled_error(kind: type[RegardError], *words: str, case: Case) -> None:
    """Where torch.compile must have one whole graph, an error of its own stands in the place of ours, and quotes it."""
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        case.run(torch.compile(regard.attention, backend="eager", fullgraph=True))
    told = str(caught.value).replace("\\", "")
    for word in (f"{kind.__name__}", *words):
        assert word in told, f"{word!r} is not in {told!r}"
