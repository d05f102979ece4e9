"""`regard passport`: exit codes, one line for what is wrong, JSON for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regard.cli import main

MADE, CHANGED = "tests.trust.passport.small:made", "tests.trust.passport.small:changed"


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["passport", *map(str, arguments)])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_record_show_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a"
    code, out, err = ran(capsys, "record", MADE, path, "--budget", "200kB", "--seed", 3)
    assert (code, err) == (0, "")
    assert f"{path}: Decoder, " in out
    code, out, _ = ran(capsys, "show", path, "--json")
    shown: dict[str, Any] = json.loads(out)
    assert (code, shown["contents"]["made"]["seed"]) == (0, 3)
    code, out, _ = ran(capsys, "replay", path)
    assert code == 0
    assert out.startswith(f"passed: {path}, Decoder")
    code, out, _ = ran(capsys, "replay", path, MADE, "--dtype", "bfloat16", "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)
    code, out, _ = ran(capsys, "replay", path, CHANGED)
    assert code == 1
    assert "first difference: blocks.1.narrow" in out
    assert "its weights are not those that were recorded: blocks.1.narrow.weight" in out


def test_wrong_usage_is_one_line(tmp_path: Path, recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "a"
    wrong: list[tuple[tuple[object, ...], str]] = [
        (("show", tmp_path / "none"), "show: '"),
        (("replay", recorded, "no.such:thing"), "replay: 'no.such': no such module."),
        (("replay", recorded, MADE, "--backend", "torch"), "replay: refused by passport: attention inside"),
        (("replay", recorded, "--dtype", "int8"), "replay: Invalid value"),
        (("record", MADE, recorded), "record: path: expected a folder that does not exist yet"),
        (("record", MADE, new, "--budget", "much"), "record: budget: expected bytes, or a text like"),
        (("record", MADE, new, "--layers", "x"), "record: layers: expected names of modules"),
        (("record", MADE, new, "--text", "x", "--pair", "x", "y"), "record: expected one of --text and --pair"),
    ]
    for arguments, message in wrong:
        code, out, err = ran(capsys, *arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith(f"regard passport {message}"), err
        assert err.count("\n") == 1
    assert not new.exists()
