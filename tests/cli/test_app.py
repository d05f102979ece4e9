"""`regard`: starts at once, says what is wrong in one line, and ends with the right code."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regard import _version
from regard.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from regard.cli import main; main()", *arguments]


def in_a_process_of_its_own(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["xray", "--help"]])
def test_help_waits_for_nothing_heavy(arguments: list[str]) -> None:
    told = in_a_process_of_its_own(
        f"""
import contextlib, io, json, sys
from regard.cli import main
with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
    main({arguments!r})
print(json.dumps([told.getvalue(), [name for name in ("torch", "transformers", "numpy") if name in sys.modules]]))
"""
    )
    text, heavy = json.loads(told)
    assert heavy == []
    assert text.strip()


def test_help_is_there_in_a_third_of_a_second() -> None:
    """By the clock where the machine is free, else by what the process itself took of the processor."""
    walls: list[float] = []
    works: list[float] = []
    for _ in range(5):
        start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command("--help"), capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - start)
        works.append(after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime)
    assert min(statistics.median(walls), statistics.median(works)) < 0.3


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr()
    assert "xray" in told.out
    assert told.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == _version.__version__


WRONG = {
    ("nonsense",): 'Unknown command "nonsense"',
    ("xray", "--nonsense"): "Unknown option: --nonsense",
    ("xray", "--limit", "many"): 'unable to convert "many" into int',
    ("xray", "--pair", "only one"): "--pair requires 2",
    ("xray", "--language", "de"): 'Invalid value "de" for --language',
    ("xray", "a", "b"): "Unused Tokens",
    ("xray", "--text"): "requires an argument",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_gets_one_line_and_code_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("regard")
    assert WRONG[arguments] in told.err
    assert told.err.endswith("See --help.\n")


@pytest.mark.parametrize("package", ["cyclopts", "rich"])
def test_a_missing_package_is_named_with_its_group(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run("--help") == 2
    assert capsys.readouterr().err == "regard: the command line needs its own packages: pip install 'regard[cli]'\n"


@pytest.mark.parametrize(
    "what",
    [
        "from regard.cli import main; main(['--help'])",
        "from regard.cli import _app; _app._run = lambda arguments: print('x' * 100) or 0; _app.main([])",
        "from regard.cli import _app; _app._run = lambda arguments: print('x' * 1_000_000) or 0; _app.main([])",
    ],
)
def test_a_reader_that_goes_away_is_no_error(what: str) -> None:
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", '"$0" -c "$1" | true', sys.executable, what],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name("regard")
    if not script.exists():
        pytest.skip("not installed in this environment")
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == _version.__version__
