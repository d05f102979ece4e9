"""`regard xray`: a report of every model family, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regard.measure import Cost
from regard.xray import costs
from tests.cli.test_app import run

pytest.importorskip("transformers")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def without_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FlexAttention compiles for seconds; and nothing may be written outside the test's folder."""
    monkeypatch.setattr(costs, "cost_of", lambda *_, **__: Cost(1.0, 1000))
    monkeypatch.chdir(tmp_path)


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mistral", "tiny_t5"])
def test_a_report_is_written(name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: Captured) -> None:
    folder = request.getfixturevalue(name)
    text = ["--pair", "The bank", "银行"] if name == "tiny_t5" else ["--text", "The bank by the river."]
    assert run("xray", str(folder), *text, "--out", "report") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "No warnings." in told.out
    assert told.out.splitlines()[-2:] == ["report/report.html", "report/report.json"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json"]
    facts = strict((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert facts["model"]["name"] == str(folder)
    assert len(facts["layers"]) == (6 if name == "tiny_t5" else 2)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page


def test_json_is_all_there_is_on_standard_output(tiny_gpt2: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run("xray", str(tiny_gpt2), "--json", "--out", "here") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert strict(told.out) == strict((tmp_path / "here" / "report.json").read_text(encoding="utf-8"))


def test_the_folder_is_out_xray_when_none_is_named(tiny_gpt2: Path, tmp_path: Path) -> None:
    assert run("xray", str(tiny_gpt2)) == 0
    assert (tmp_path / "out" / "xray" / "report.html").is_file()


def test_the_text_comes_from_a_file(tiny_gpt2: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "text.txt").write_text("银行 and a bank", encoding="utf-8")
    assert run("xray", str(tiny_gpt2), "--file", "text.txt", "--json") == 0
    assert strict(capsys.readouterr().out)["streams"]["decoder"]["text"] == "银行 and a bank"


def test_a_pair_is_read_by_encoder_and_decoder(tiny_t5: Path, capsys: Captured) -> None:
    assert run("xray", str(tiny_t5), "--pair", "a bank", "银行", "--json") == 0
    streams = strict(capsys.readouterr().out)["streams"]
    assert {name: stream["text"] for name, stream in streams.items()} == {"encoder": "a bank", "decoder": "银行"}


def test_a_text_is_cut_at_the_limit(tiny_gpt2: Path, capsys: Captured) -> None:
    assert run("xray", str(tiny_gpt2), "--text", "one two three four five", "--limit", "3", "--json") == 0
    report = strict(capsys.readouterr().out)
    assert report["streams"]["decoder"]["truncated"] is True
    assert {layer["q_len"] for layer in report["layers"]} == {3}
    assert "Note: the text was cut to its first 3 tokens." in [entry["message"] for entry in report["warnings"]]


def test_a_length_is_measured_or_extrapolated(tiny_gpt2: Path, capsys: Captured) -> None:
    assert run("xray", str(tiny_gpt2), "--at-length", "8192", "--json") == 0
    report = strict(capsys.readouterr().out)
    assert {layer["at_length"]["length"] for layer in report["layers"]} == {8192}
    assert {row["backend"] for row in report["layers"][0]["at_length"]["backends"]} == {"sdpa", "eager"}


def test_chinese(tiny_gpt2: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run("xray", str(tiny_gpt2), "--language", "zh", "--out", "zh") == 0
    assert "没有警告" in capsys.readouterr().out
    assert '<html lang="zh-CN"' in (tmp_path / "zh" / "report.html").read_text(encoding="utf-8")


@pytest.mark.weights
def test_minilm_is_a_demonstration(minilm_site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.syspath_prepend(str(minilm_site))
    assert run("xray", "--demo", "minilm", "--text", "a bank", "--json") == 0
    assert strict(capsys.readouterr().out)["model"]["name"] == "MiniLM (demo)"


# ---------------------------------------------------------------------------------------- bad input


def refused(capsys: Captured, tmp_path: Path, *arguments: str) -> str:
    before = sorted(tmp_path.rglob("*"))
    assert run("xray", *arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("regard xray: ")
    assert len(told.err) < 500
    assert sorted(tmp_path.rglob("*")) == before
    return told.err


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (cut_weights, "model.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder(damage: str, tiny_gpt2: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = copied(tiny_gpt2, tmp_path)
    hurt, word = DAMAGE[damage]
    hurt(folder)
    assert word in refused(capsys, tmp_path, str(folder), "--out", "new")


def test_a_model_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert "no such folder" in refused(capsys, tmp_path, "no-such-model")
    assert "no such module" in refused(capsys, tmp_path, "no_such_module:make")


TEXTS: dict[str, tuple[list[str], str]] = {
    "no such file": (["--file", "missing.txt"], "no such file"),
    "a folder": (["--file", "."], "got a folder"),
    "not UTF-8": (["--file", "latin.txt"], "not UTF-8"),
    "an empty file": (["--file", "empty.txt"], "holds no text"),
    "a word of a megabyte": (["--text", "a" * 1_000_000], "a word of 1000000 characters"),
    "empty text": (["--text", ""], "the text is empty"),
    "white space": (["--text", " \n"], "the text is empty"),
    "text and file": (["--text", "a", "--file", "x"], "expected one of --text, --file and --pair"),
    "an empty target": (["--pair", "a", ""], "the target is empty"),
    "a pair for a decoder": (["--pair", "a", "b"], "a pair needs an encoder-decoder model"),
    "no limit": (["--limit", "0"], "--limit: expected at least 1 token, got 0"),
    "no length": (["--at-length", "0"], "--at-length: expected from 1 to 1048576 tokens, got 0"),
    "too long": (["--at-length", "2000000"], "--at-length: expected from 1 to 1048576"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_or_number_that_cannot_be_used(name: str, tiny_gpt2: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "latin.txt").write_bytes(b"ab\xff")
    (tmp_path / "empty.txt").touch()
    arguments, words = TEXTS[name]
    assert words in refused(capsys, tmp_path, str(tiny_gpt2), *arguments, "--out", "new")


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder_is_noticed_before_the_work(
    out: str, tiny_gpt2: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("regard.xray.examine.examine", lambda *_, **__: pytest.fail("worked first"))
    told = refused(capsys, tmp_path, str(tiny_gpt2), "--out", out)
    assert "--out: expected a folder to write to, got the file 'file'. Name another." in told
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_written_to(
    tiny_gpt2: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regard.xray.page._write_through", full)
    (tmp_path / "here").mkdir()
    told = refused(capsys, tmp_path, str(tiny_gpt2), "--out", "here")
    assert told == "regard xray: --out: the report cannot be written to 'here': No space left on device.\n"


@pytest.mark.parametrize(
    "where", ["regard.xray.examine.examine", "regard.xray.page._sync_folder", "regard.xray.page._write_through"]
)
def test_ctrl_c_leaves_nothing_half_written(
    where: str, tiny_gpt2: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "report.json").write_text("the last one", encoding="utf-8")
    monkeypatch.setattr(where, interrupted)
    assert run("xray", str(tiny_gpt2), "--out", "here") == 130
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("regard: interrupted")
    assert told.err.count("\n") == 1
    written = sorted(path.name for path in (tmp_path / "here").iterdir())
    if where.endswith("_sync_folder"):  # both were in place already
        assert written == ["report.html", "report.json"]
    else:
        assert written == ["report.json"]
        assert (tmp_path / "here" / "report.json").read_text(encoding="utf-8") == "the last one"


def test_progress_is_off_where_nobody_watches_and_on_in_a_terminal(
    tiny_gpt2: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("xray", str(tiny_gpt2), "--json") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("xray", str(tiny_gpt2), "--json") == 0
    told = capsys.readouterr()
    strict(told.out)
    assert "taking the layers apart" in told.err
