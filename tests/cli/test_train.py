"""`regard train`: settings, interruptions, and what is shown of a report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import pytest

from regard.cli import train as command
from regard.cli._app import TRAINING
from regard.cli.settings import explanations
from regard.recipes import RECIPES, find, find_comparison
from regard.training import TrainingConfig
from tests.cli.test_app import run


@pytest.mark.parametrize("value", ["[" * 100_000, "{", "nan nan", "1e400", "", "null"])
def test_a_value_that_is_none_is_told_in_one_line(capsys, value):
    assert run("train", "language_model", "--set", f"steps={value}", "--settings") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("regard train language_model: --set steps: expected ")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("recipe", [each.name for each in RECIPES])
def test_every_setting_is_explained(capsys, recipe):
    config = find(recipe).Config
    told = explanations(config)
    assert sorted(told) == sorted(config.model_fields)
    assert run("train", recipe, "--settings", "--set", "steps=7") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "steps=7" in lines
    assert lines[lines.index("steps=7") + 1] == "    how many times the weights are changed."
    assert lines[0].partition("=")[0] not in TrainingConfig.model_fields  # what the recipe adds comes first
    assert all(len(line) <= 104 for line in lines)


def test_an_interruption_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_trained", interrupted)
    assert run("train", "language_model") == 130
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "regard train language_model: interrupted; the same command goes on from the last checkpoint, if there is one\n"
    )


def test_numbers_within_a_report_are_shown_by_their_way_there(capsys, tmp_path):
    test = {"scores": {"all": {"bleu": 21.53, "sentences": 3}}, "written": ["a", "b"], "way": {"a": {"b": {"c": {}}}}}
    command._show({"validation": {"loss": 1.0}, "test": test}, tmp_path, json_output=False)
    assert capsys.readouterr().out.splitlines() == [
        "validation  loss: 1",
        "      test  scores, all, bleu: 21.53",
        "      test  scores, all, sentences: 3",
        str(tmp_path),
    ]


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_every_recipe_is_compared_by_its_own_module(capsys, monkeypatch, tmp_path, name):
    def compare(config, folder, **_):
        assert config.steps == 3
        folder.mkdir()
        (folder / "comparison.md").write_text("a table\n")
        (folder / "comparison.json").write_text('{"variants": 2}')
        return folder / "comparison.md"

    monkeypatch.setattr(find_comparison(name), "compare", compare)
    assert run("train", name, "--compare", "--set", "steps=3", "--out", str(tmp_path / "here"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"recipe": name, "finished": True, "page": str(tmp_path / "here" / "comparison.md"), "variants": 2}


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        *((each, ["train", "translation"]) for each in ("accelerate", "sacrebleu", "tokenizers")),
        *((each, ["run", "summarization", "A text."]) for each in ("pydantic", "rouge_score", "tokenizers")),
    ],
)
def test_what_recipes_need_is_named(package, arguments, tmp_path):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"  # None there: the import fails
        "from regard.cli import main\n"
        f"main({arguments!r})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert ended.returncode == 2, ended.stderr
    assert (
        re.fullmatch(
            r"regard \w+[ \w]*: this needs the package '(\w+)': pip install 'regard\[train\]'\n", ended.stderr
        )[1]
        == package
    )
    assert not list(tmp_path.iterdir())


def test_every_package_of_the_group_is_asked_for():
    asked = {each for package in TRAINING for each in packages_distributions()[package]}
    group = [each.partition(">=")[0] for each in requires("regard") or () if each.endswith('extra == "train"')]
    assert {name.lower().replace("_", "-") for name in asked} == set(group) - {'regard[cli,plot]; extra == "train"'}
