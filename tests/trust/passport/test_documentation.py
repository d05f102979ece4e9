"""The pages on whole models and passports are true: their examples run, and they tell of every option and code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regard.trust.model_leaks.checks import questions
from regard.trust.model_leaks.subject import subject_of
from tests.trust.passport.small import decoder, ids

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ("trust.md", "trust.zh-CN.md")
MODELS, PASSPORTS = ("Whole models", "整个模型"), ("Passports", "护照")


def section(page: str, names: tuple[str, str]) -> str:
    parts = re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(names))


@pytest.mark.parametrize("names", [MODELS, PASSPORTS])
@pytest.mark.parametrize("page", PAGES)
def test_the_example_prints_what_is_said(page: str, names: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", section(page, names), re.DOTALL)
    assert found is not None
    exec(compile(found[1], page, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    assert capsys.readouterr().out == found[2]


@pytest.mark.parametrize("page", PAGES)
def test_every_question_is_told(page: str) -> None:
    subject = subject_of(decoder(), {"input_ids": ids()}, kind="decoder", causal=None, length=9)
    asked = {question.code for question in questions(subject, gradients=False, seed=0)}
    told = set(re.findall(r"^\| .* \| `(\w+)` \|$", section(page, MODELS), re.MULTILINE))
    assert asked <= told
    assert told - asked == {"documents_cross"}  # which that model has no argument for
