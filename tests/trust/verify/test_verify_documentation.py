"""What docs/trust.md says of `verify` is so: examples run, lines are those that are printed, lists are whole."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from regard.trust.signature import NAMES
from regard.trust.verify import verify
from regard.trust.verify.entry import TABLE
from regard.trust.verify.known_faults import TORCH

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {"trust.md": "## Verify", "trust.zh-CN.md": "## 验证"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES)


def section(page):
    """The part about verify, up to the next heading of its level."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.split(r"^## ", text.split(PAGES[page], 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(page, language):
    return [code for found, code in FENCE.findall(section(page)) if found == language]


@each_page
def test_examples_run(page):
    assert len(blocks(page, "python")) == 2
    for code in blocks(page, "python"):
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(compile(code, page, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
        assert told.getvalue()


@each_page
def test_the_lines_of_the_failure_are_what_is_printed(page):
    (shown,) = blocks(page, "text")
    (failure,) = verify("torch", only=["nan-in-masked-value"]).failed
    assert shown.splitlines() == list(failure.lines)


@each_page
def test_every_known_fault_group_and_parameter_is_told(page):
    told = set(re.findall(r"`([\w.-]+)`", section(page)))
    assert set(TORCH) <= told
    assert {name for names in NAMES.values() for name in names} <= told
    groups = set(re.findall(r"^\| (\w+) \|", section(page), re.MULTILINE))
    assert {case.group for case in TABLE} | {"random"} <= groups


def test_both_pages_have_the_same_structure():
    english, chinese = map(section, PAGES)
    for pattern in (r"^(#+) ", r"^- ", r"^\|"):
        counts = (len(re.findall(pattern, FENCE.sub("", text), re.MULTILINE)) for text in (english, chinese))
        assert len(set(counts)) == 1, pattern
    without_comments = (
        [re.sub(r"\s*#.*", "", code) for language, code in FENCE.findall(text) if language != "text"]
        for text in (english, chinese)
    )
    one, other = without_comments
    assert one == other
