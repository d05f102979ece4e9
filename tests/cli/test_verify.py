"""`regard verify`: tables for people, JSON and Markdown, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard.backends import _library
from tests.cli.test_app import run

Captured = pytest.CaptureFixture[str]
FEW = ("--only", "plain", "--only", "softcap")
WRONG = "tests.trust.verify.planted:softcap_ignored"


def test_every_backend_that_is_here_when_none_is_named(capsys: Captured) -> None:
    assert run("verify", "--json", *FEW) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is True
    assert [report["target"] for report in facts["reports"]] == ["native", "sdpa", "flex", "eager"]
    worst = facts["worst"]
    assert 0.0 < worst["ratio"] <= worst["allowed"]
    assert worst["target"] in {"native", "sdpa", "flex", "eager"}
    ratios = [report["worst"]["ratio"] / report["worst"]["allowed"] for report in facts["reports"]]
    assert worst["ratio"] / worst["allowed"] == max(ratios)


def test_a_failure_ends_with_1_and_its_lines(capsys: Captured) -> None:
    assert run("verify", "eager", WRONG, *FEW) == 1
    told = capsys.readouterr().out
    assert f"{WRONG}: FAILED softcap, float32: output: error" in told
    assert f'    print(*right(as_target("{WRONG}"), Question(' in told
    assert "eager: FAILED" not in told
    assert "seed 0, regard " in told


def test_what_is_not_offered_is_told(capsys: Captured) -> None:
    assert run("verify", "sdpa", *FEW) == 0
    told = capsys.readouterr().out
    assert "sdpa: not offered: softcap: it has no softcap" in told
    assert "largest error" in told


def test_markdown(capsys: Captured) -> None:
    assert run("verify", "eager", "sdpa", "--markdown", "--seed", "7", *FEW) == 0
    told = capsys.readouterr().out
    assert told.count("## ") == 2 + told.count("### ") * 1
    assert told.count("- seed 7, quick run") == 2


def test_a_library_that_is_absent(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(_library, "why_absent", lambda: "no compiler was there")
    assert run("verify", "--only", "plain") == 0
    assert "native: absent (no compiler was there)" in capsys.readouterr().out
    assert run("verify", "native", "--only", "plain") == 1


def test_a_function_in_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    source = "from torch.nn.functional import scaled_dot_product_attention as sdpa\n"
    source += "def attend(q, k, v, softmax_scale=None, causal=False):\n"
    source += "    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))\n"
    source += "    return sdpa(q, k, v, scale=softmax_scale, is_causal=causal).transpose(1, 2)\n"
    (tmp_path / "my_attention_of_cli_test.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # so that sys.path is put back
    corners = ("--only", "causal-top-left", "--only", "causal-bottom-right")
    named = ("verify", "my_attention_of_cli_test:attend", "--layout", "bnhd", "--json")
    assert run(*named, "--corner", "top_left", *corners) == 0
    facts = json.loads(capsys.readouterr().out)["reports"][0]
    assert {case["case"]: case["status"] for case in facts["cases"]} == {
        "causal-top-left": "passed",
        "causal-bottom-right": "not offered",
    }
    assert run(*named, "--corner", "bottom_right", *corners) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("verify", "nonsense"), "target: expected one of native"),
        (("verify", "eager", "--only", "nonsense"), "only: expected names of cases, got nonsense"),
        (("verify", "eager", "--seed", "-1"), "seed: expected 0 or more, got -1"),
        (("verify", "eager", "--layout", "x"), 'Invalid value "x" for --layout'),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], told: str, capsys: Captured) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("regard verify: ")
    assert told in shown.err
    assert shown.err.count("\n") == 1
