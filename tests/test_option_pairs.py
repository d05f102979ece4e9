"""Every pair of options on every backend: equal to the float64 oracle within the budget, or refused with a reason.

FlexAttention runs unfused here; `backends/test_flex.py` has its fused form.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections import Counter

import pytest

import regard
from regard import MaskError, UnsupportedError, masks, positions
from regard.backends import BACKENDS
from regard.masks import Mask
from regard.positions import Position
from regard.trust.plain import plain_attention
from tests import judging, oracles
from tests.option_table import (
    ASPECTS,
    MASKS,
    NOT_PAIRED,
    PAIRS,
    PARAMETERS_OF,
    POSITIONS,
    SINGLES,
    Spec,
    Value,
    spec_of,
)

OTHER_LENGTHS = {"q_len=one", "q_len=fewer", "q_len=more"}
ONE_LENGTH = {
    f"mask={name}" for name in ("causal", "documents", "bigbird", "axial", "criss-cross", "grid-blocks", "neighborhood")
}
"""Masks over one text: they refuse other lengths, before any backend is asked."""


def names(values: tuple[Value, ...]) -> str:
    return "+".join(map(str, values))


def is_invalid(values: tuple[Value, ...]) -> bool:
    found = {str(value) for value in values}
    return bool(found & OTHER_LENGTHS and found & ONE_LENGTH)


VALID = [pair for pair in PAIRS if not is_invalid(pair)]
_CHANCE = random.Random(0)  # noqa: S311 - a seeded sample, no secret
AUTO_SAMPLE = _CHANCE.sample(VALID, 30)


@functools.lru_cache(maxsize=4)
def truth_and_plain(values: tuple[Value, ...], gradient: bool) -> tuple[oracles.Answer, oracles.Answer]:
    case = spec_of(*values).case()
    return oracles.oracle(case, gradient=gradient), oracles.answer(plain_attention, case, gradient=gradient)


def check(values: tuple[Value, ...], backend: str) -> str:
    """Honoured within the budget, or refused with a sentence: says which."""
    spec = spec_of(*values)
    gradient = spec.gradient and backend != "flex"
    case = spec.case()
    function = functools.partial(regard.attention, backend=backend)
    try:
        actual = oracles.answer(function, case, gradient=gradient)
    except UnsupportedError as refusal:
        assert dispatched(spec, backend) == "refused"
        return judging.refused(refusal, backend)
    oracles.assert_answer(actual, *reversed(truth_and_plain(values, gradient)))
    return "honoured"


def dispatched(spec: Spec, backend: str, *, of: str | None = None) -> str:
    """What `regard.dispatch` says of a backend (`of`, else the one that is named)."""
    case = spec.case().copied(gradient=spec.gradient and backend != "flex")
    table = case.run(regard.dispatch, backend=backend)
    return next(choice.status for choice in table.choices if choice.backend == (of or backend))


# ---------------------------------------------------------------------------------- nothing is forgotten


def test_every_parameter_of_attention_is_in_the_table():
    parameters = set(inspect.signature(regard.attention).parameters)
    covered = {name for aspect in ASPECTS for name in PARAMETERS_OF.get(aspect, (aspect,))}
    assert parameters == covered | set(NOT_PAIRED)


def test_every_mask_and_position_is_in_the_table():
    everything = " ".join(repr(make(Spec())) for make in MASKS.values())
    kinds = {name for name in masks.__all__ if issubclass(getattr(masks, name), Mask)} - {"Mask"}
    assert {name for name in kinds if f"{name}(" not in everything} == set()
    made = {type(make(Spec())) for make in POSITIONS.values()}
    public = {getattr(positions, name) for name in positions.__all__}
    assert made == {kind for kind in public if inspect.isclass(kind) and issubclass(kind, Position)} - {Position}


def test_every_backend_is_asked():
    assert {backend.name for backend in BACKENDS} == {"native", "eager", "sdpa", "flex"}


# ---------------------------------------------------------------------------------- the pairs


@pytest.mark.parametrize("backend", ["native", "eager", "sdpa", "flex", "auto"])
@pytest.mark.parametrize("value", SINGLES, ids=str)
def test_single_option(value, backend):
    check((value,), backend)


@pytest.mark.parametrize("backend", ["native", "eager", "sdpa"])
@pytest.mark.parametrize("pair", VALID, ids=names)
def test_pair(pair, backend):
    check(pair, backend)


@pytest.mark.parametrize("pair", AUTO_SAMPLE, ids=names)
def test_pair_on_auto(pair):
    check(pair, "auto")


def test_auto_finds_a_backend_for_every_pair():
    for pair in VALID:
        assert dispatched(spec_of(*pair), "auto", of="native") == "chosen", names(pair)


@pytest.mark.parametrize("pair", VALID, ids=names)
def test_pair_on_flex(pair):
    check(pair, "flex")


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if is_invalid(pair)], ids=names)
def test_pair_that_means_nothing_is_an_error_on_every_backend(pair):
    for backend in ("native", "eager", "sdpa", "flex", "auto"):
        with pytest.raises(MaskError, match="q_len"):
            spec_of(*pair).case().run(regard.attention, backend=backend)


# ---------------------------------------------------------------------------------- the counts


@functools.cache
def counts(backend: str) -> Counter[str]:
    valid = [(value,) for value in SINGLES] + VALID
    return Counter(dispatched(spec_of(*values), backend) for values in valid)


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_these_refuse_nothing(backend):
    assert counts(backend)["refused"] == 0


@pytest.mark.parametrize(("backend", "least"), [("sdpa", 0.4), ("flex", 0.4)])
def test_the_others_refuse_some_and_honour_many(backend, least):
    found = counts(backend)
    assert found["chosen"] >= least * found.total()
    assert found["refused"] >= 0.1 * found.total()
