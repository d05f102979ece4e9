"""`regard audit`: exit codes, what is printed, and how masks are written."""

from __future__ import annotations

import json

import pytest
import torch

import regard
from regard.cli import main
from regard.cli.mask_option import mask_of
from regard.masks import Blocks, Causal, Dilated, Documents, GlobalTokens, Padding, PrefixLM, SlidingWindow

QUICK = ["--at", "6x6"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["audit", *arguments])
    return ended.value.code


def test_what_does_what_it_says_ends_with_0(capsys):
    assert run("eager", "--mask", "causal", *QUICK) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("eager: does what is declared\ndeclared: mask Causal()\n")
    assert "■ ■ · · · ·   ■ ■ · · · ·" in printed


def test_findings_end_with_1(capsys):
    assert run("eager", "--mask", "causal", "--alone", "--scale", "0.5", *QUICK) == 1
    printed = capsys.readouterr().out
    assert "causal_missing" in printed
    assert "scale_differs" in printed


@pytest.mark.parametrize("option", ["--causal", "--no-causal", "--kind=decoder"])
def test_what_is_said_of_models_says_nothing_of_attention(capsys, option):
    assert run("eager", option, *QUICK) == 2
    assert "--kind, --causal: expected a whole model, got 'eager'" in capsys.readouterr().err


def test_json_is_for_machines(capsys):
    assert run("eager", "--sink=0.0", "--sink=1.0", "--alone", "--json", *QUICK) == 1
    facts = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in facts["findings"]] == ["sink_missing"]
    assert facts["found"]["groups"] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing_of_that_name"], "target: expected one of native"),
        (["eager", "--mask", "causual"], "--mask: expected causal, causal:bottom_right"),
        (["eager", "--mask", "window"], "--mask: expected"),
        (["eager", "--mask", "documents"], "--mask: expected"),
        (["eager", "--at", "12"], "--at: expected queries x keys"),
        (["eager", "--at", "0x3"], "--at: expected queries x keys"),
        (["eager", "--draw", "x.txt"], "picture file: expected a name ending in one of"),
        (["eager", "--heads", "many"], "Invalid value"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(arguments, words, capsys):
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert told.err.count("\n") == 1


def test_a_function_of_the_folder_one_stands_in(tmp_path, monkeypatch, capsys):
    (tmp_path / "audited_here.py").write_text(
        "import torch\ndef f(q, k, v):\n    return (q @ k.mT).softmax(-1) @ v\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert run("audited_here:f", *QUICK) == 1
    assert "scale_missing: scale missing: 1, declared 0.25" in capsys.readouterr().out


def test_a_picture_is_drawn_when_asked_for(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert run("eager", "--mask", "causal", "--draw", "seen.png", *QUICK) == 0
    assert capsys.readouterr().out.endswith("\nseen.png\n")
    assert (tmp_path / "seen.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("causal", Causal()),
        ("causal:bottom_right", Causal("bottom_right")),
        ("window:4,0", SlidingWindow(4, 0)),
        ("window:4", SlidingWindow(4)),
        ("window:4,0,bottom_right", SlidingWindow(4, 0, align="bottom_right")),
        ("padding:12,7", Padding([12, 7])),
        ("padding:12,7,left", Padding([12, 7], side="left")),
        ("documents:5,7", Documents([5, 7])),
        ("blocks:4", Blocks(4)),
        ("prefix:3", PrefixLM(3)),
        ("dilated:3,2", Dilated(3, 2)),
        ("global:2", GlobalTokens(2)),
        ("causal + window:4,0", Causal() & SlidingWindow(4, 0)),
    ],
)
def test_masks_are_written_in_a_line(text, mask):
    made = mask_of(text)
    assert repr(made) == repr(mask)
    assert torch.equal(made.dense(12, 12), mask.dense(12, 12))


def test_numbers_that_make_no_mask_say_so():
    with pytest.raises(regard.MaskError, match="SlidingWindow before"):
        mask_of("window:-1")
