"""The pages on audits are true: their example runs, and they explain every code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regard.trust.audit import CODES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("trust.md", "trust.zh-CN.md")


def section(page: str) -> str:
    """What the page says of audits."""
    text = (DOCS / page).read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(("Audit", "审计")))


@pytest.mark.parametrize("page", PAGES)
def test_every_code_is_explained(page):
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section(page), re.MULTILINE)
    assert [code for code, _ in rows] == list(CODES)
    if page == "trust.md":
        assert dict(rows) == dict(CODES)


@pytest.mark.parametrize("page", PAGES)
def test_the_example_prints_what_is_said(page, capsys):
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", section(page), re.DOTALL).groups()
    exec(compile(code, page, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
    said = re.sub(r"0\.2(?:5\d*|4999\d*)", "0.25", capsys.readouterr().out)  # a scale comes back up to rounding
    assert said == printed


@pytest.mark.parametrize("page", PAGES)
def test_every_option_of_the_command_is_told_of(page, monkeypatch, capsys):
    from regard.cli import main

    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    options = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    assert {"--mask", "--json"} <= options
    assert options - set(re.findall(r"--[a-z][a-z-]*", section(page))) == set()
