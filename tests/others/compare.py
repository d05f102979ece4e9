"""Tests of others, with plain torch and with regard active, side by side.

    python -m tests.others.compare --folder CHECKOUT [--python PYTHON] [--planted] -- tests/models/llama ...

What stands after `--` goes to pytest. A test that passes with plain torch and fails with regard is run again alone,
some times in both ways, so that one that fails by chance is told as that. The exit code is 1 when a failure is
regard's, 2 when nothing passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

PLUGIN = Path(__file__).parent / "plugin"
BAD, FINE = ("failed", "error"), ("passed", "skipped")


@dataclass(frozen=True)
class Runner:
    """Where tests lie and who runs them."""

    python: str
    folder: Path

    def outcomes(self, who: str, arguments: list[str]) -> dict[str, str]:
        """What became of every test, by its name."""
        with tempfile.TemporaryDirectory() as scratch:
            written = Path(scratch) / "outcomes.xml"
            command = [self.python, "-m", "pytest", "-p", "with_regard", "-p", "no:cacheprovider", "-q", "--no-header"]
            command += ["-o", "junit_family=xunit1", f"--junitxml={written}", *arguments]
            path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
            told = os.environ | {"WITH_REGARD": who, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
            ended = subprocess.run(command, cwd=self.folder, env=told, capture_output=True, text=True, check=False)
            if not written.is_file():
                raise SystemExit(
                    f"pytest ended with {ended.returncode}:\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
                )
            return _read(written)


def _read(written: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for case in ET.parse(written).iter("testcase"):  # noqa: S314 - written by the pytest just called
        kinds = {child.tag for child in case}
        outcome = "error" if "error" in kinds else "failed" if "failure" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = "skipped" if "skipped" in kinds else outcome
    return found


def node_of(name: str, folder: Path) -> str | None:
    """What pytest calls a test, from what its report calls it: package.module.Class::test[parameters]; None: none."""
    before, _, test = name.partition("::")
    parts = before.split(".")
    for count in range(len(parts), 0, -1) if before else ():
        path = Path(*parts[:count]).with_suffix(".py")
        if (folder / path).is_file():
            return "::".join([str(path), *parts[count:], test])
    return None


def compare(runner: Runner, arguments: list[str], *, again: int, planted: bool) -> dict[str, object]:
    """Counts by outcome, and the names of what differs."""
    plain, active = (runner.outcomes(who, arguments) for who in ("no", "active"))
    suspects = sorted(name for name, outcome in active.items() if outcome in BAD and plain.get(name) not in BAD)
    suspects += sorted(plain.keys() - active.keys())
    ours: list[str] = []
    by_chance: list[str] = []
    for name in suspects:
        node = node_of(name, runner.folder)
        if node is None:  # a file that could not even be imported
            ours.append(name)
            continue
        alone = [node]
        repeats = {
            who: [runner.outcomes(who, alone).get(name, "absent") for _ in range(again)] for who in ("no", "active")
        }
        always_fine = all(outcome in FINE for outcome in repeats["active"])
        (by_chance if always_fine or any(outcome in BAD for outcome in repeats["no"]) else ours).append(name)
    result: dict[str, object] = {
        "plain": _counts(plain),
        "active": _counts(active),
        "fails with regard alone": ours,
        "fails by chance": by_chance,
        "fails with plain torch alone": sorted(
            name for name, outcome in plain.items() if outcome in BAD and active.get(name) not in BAD
        ),
        "fails in both": sorted(name for name, outcome in plain.items() if outcome in BAD and active.get(name) in BAD),
    }
    if planted:
        wrong = runner.outcomes("wrong", arguments)
        seen = [name for name, outcome in wrong.items() if outcome in BAD and plain.get(name) not in BAD]
        result["sees a wrong kernel"] = len(seen)
    return result


def _counts(outcomes: dict[str, str]) -> dict[str, int]:
    return {kind: sum(outcome == kind for outcome in outcomes.values()) for kind in ("passed", "skipped", *BAD)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.others.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="the checkout; pytest runs in it")
    parser.add_argument("--python", default=sys.executable, help="one that has torch, regard, and what is tested")
    parser.add_argument("--again", type=int, default=3, help="how often a suspect is run alone, each way")
    parser.add_argument("--planted", action="store_true", help="also count the tests that see a wrong kernel")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("pytest", nargs="+", help="paths and options for pytest, after --")
    asked = parser.parse_args(arguments)
    result = compare(
        Runner(asked.python, asked.folder.resolve()), asked.pytest, again=asked.again, planted=asked.planted
    )
    text = json.dumps(result, indent=1)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    passed = result["active"]
    if not isinstance(passed, dict) or not passed["passed"]:
        return 2
    return 1 if result["fails with regard alone"] else 0


if __name__ == "__main__":
    sys.exit(main())
