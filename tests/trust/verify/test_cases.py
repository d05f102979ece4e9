"""The table of cases: each writes itself as Python that asks the same, and each can fail."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch

from regard.trust import Question, Target
from regard.trust.plain import plain_attention
from regard.trust.question import OPTIONS
from regard.trust.verify import checks
from regard.trust.verify.cases import FUSED, STRUCTURED, all_pairs
from regard.trust.verify.cases import MASKS as MASK_CASES
from regard.trust.verify.cases import OPTIONS as OPTION_CASES
from regard.trust.verify.cases import PAIRS as PAIR_CASES
from regard.trust.verify.entry import TABLE, schedule
from regard.trust.verify.random_cases import random_cases

EVERY = (*TABLE, *STRUCTURED, *all_pairs(), *random_cases(0, 25))
named = {"ids": lambda case: case.name}


def test_names_are_unique_and_plain():
    names = [case.name for case in (*EVERY, FUSED)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9+-]+", name) for name in names)


def test_faults_are_rows_of_the_table():
    assert all(re.fullmatch(r"F\d\d", fault) for case in EVERY for fault in case.faults)
    covered = {fault for case in TABLE for fault in case.faults}
    assert covered >= {"F01", "F02", "F03", "F05", "F06", "F18", "F26", "F31", "F32", "F33", "F46", "F54", "F55"}


class AskedError(Exception):
    """The way out of a check, with the question that it asked."""


def asked_by(lines):
    """The question that the lines ask."""
    seen = []

    def call(question):
        seen.append(question)
        raise AskedError

    offers = frozenset({*OPTIONS, "return_lse"})
    scope = {"examined": Target("examined", offers, call, call)}
    with contextlib.suppress(AskedError):
        exec("\n".join(lines), scope)  # noqa: S102 - written by the case
    return seen[0]


def assert_same(have: Question, want: Question):
    for name in ("query", "key", "value"):
        one, other = getattr(have, name), getattr(want, name)
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    assert list(have.options) == list(want.options)
    for name, value in want.options.items():
        assert_same_option(have.options[name], value, want)


def assert_same_option(have, want, question):
    assert type(have) is type(want)
    if isinstance(want, torch.Tensor):
        assert torch.equal(have, want)
        assert have.dtype == want.dtype
    elif isinstance(want, torch.nn.Module):
        tables = want.state_dict()
        assert repr(have) == repr(want)
        assert all(torch.equal(table, tables[name]) for name, table in have.state_dict().items())
    elif hasattr(want, "dense"):
        lengths = question.query.shape[2], question.key.shape[2]
        assert torch.equal(have.dense(*lengths), want.dense(*lengths))
    else:
        assert have == want or repr(have) == repr(want)  # nan


@pytest.mark.parametrize("case", EVERY, **named)
def test_its_lines_ask_the_same(case):
    for dtype in (*case.dtypes, torch.bfloat16)[-2:]:
        lines = case.lines(dtype, 5, "as_target(examined)")
        assert len(lines) <= 6
        want = case.question(dtype, 5)
        if case.check == "drops":
            continue  # which puts an identity in the place of the value
        assert_same(asked_by(lines), want.copied())


def test_the_lines_of_dropout_ask_the_same():
    (case,) = (case for case in TABLE if case.check == "drops")
    asked = asked_by(case.lines(torch.float32, 5, "as_target(examined)"))
    assert torch.equal(asked.query, case.question(torch.float32, 5).query)


def without(option):
    """Plain attention that drops an option without a word."""

    def call(question):
        kept = {name: value for name, value in question.options.items() if name != option}
        return plain_attention(question.query, question.key, question.value, **kept)

    def call_with_lse(question):
        kept = {name: value for name, value in question.options.items() if name != option}
        output, lse = plain_attention(question.query, question.key, question.value, return_lse=True, **kept)
        return output, lse.to(torch.float32)

    return Target("without", frozenset(OPTIONS), call, call_with_lse)


def findings(case, dtype, option):
    return checks.right(without(option), case.question(dtype, 3), lse=case.lse, gradient=case.gradient)


@pytest.mark.parametrize("case", [*MASK_CASES, *OPTION_CASES, *PAIR_CASES], **named)
def test_an_option_that_is_dropped_is_found_in_every_dtype(case):
    # An lse is float32 whatever the dtype, and plain torch's in half precision is none.
    for dtype in case.dtypes[:1] if case.lse else case.dtypes:
        assert not any(finding.failed for finding in findings(case, dtype, "nothing"))
        for option in set(case.options) - {"enable_gqa", "seed"}:
            found = findings(case, dtype, option)
            assert found[0].failed, (option, dtype, str(found[0]))


def test_sizes_vary_beyond_one_block_of_the_kernel():
    sizes = [case.sizes for case in TABLE]
    assert {65, 97, 101, 257, 2048} <= {size.kv_len for size in sizes}
    assert {1, 3, 17, 80} <= {size.head_dim for size in sizes}
    assert any(size.value_dim != size.head_dim for size in sizes)


def test_quick_and_full():
    quick, full = schedule(quick=True, seed=0), schedule(quick=False, seed=0)
    assert len(quick) == len(set(quick)) > 160
    assert {case.name for case, _ in quick} < {case.name for case, _ in full}
    assert all(dtype in case.full for case, dtype in quick)
    brief = schedule(quick=True, seed=0, brief=True)
    assert set(brief) < set(quick)
    assert {case.name for case, _ in brief} == {case.name for case, _ in quick if case.group != "random"}


def test_chance_is_by_the_seed():
    told = [[(case.name, case.sizes, sorted(case.options)) for case in random_cases(seed, 8)] for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]
