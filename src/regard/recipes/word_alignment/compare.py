"""One model, three ways of guidance, beside IBM model 1: AER on the same held-out verses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regard.recipes.comparison import Result, Variant, compare_variants, markdown_table
from regard.recipes.translation.verses import load_verses
from regard.recipes.word_alignment.recipe import Config, report, task_of
from regard.training.whole_file import write_whole

_TITLES = {
    "gold": "one head taught by people",
    "ibm1": "one head taught by IBM model 1",
    "none": "attention as it comes",
}


def variants(config: Config) -> list[Variant[Config]]:
    """The three ways."""
    return [Variant(name, Config.model_validate({**config.model_dump(), "guidance": name})) for name in _TITLES]


def compare(
    config: Config, folder: Path, *, download: bool, say: Callable[[str], None], watched: bool = False
) -> Path | None:
    """Train what is missing, and write `comparison.json` and `comparison.md` into `folder`.

    Returns:
        The path of the page; None when it was asked to stop (SIGTERM): the same call goes on.

    Raises:
        DataError: the verses are not in the cache and not to be downloaded.
        CheckpointError: a run in `folder` cannot go on.
    """
    splits = load_verses(download=download)
    results = compare_variants(
        variants(config),
        folder,
        make_task=lambda each: task_of(each, splits),
        report=report,
        say=say,
        watched=watched,
    )
    if results is None:
        return None
    facts = {"verses": [len(verses) for verses in splits], "results": results}
    write_whole(folder / "comparison.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(results))
    return folder / "comparison.md"


def page(results: Mapping[str, Result]) -> str:
    """A table for people: every reading of every model, then IBM model 1."""
    rows = [
        _row(f"{title}, {rule} step", results[name]["attention"][rule]["test"])
        for name, title in _TITLES.items()
        for rule in ("consuming", "predicting")
    ]
    by_text: Mapping[str, Any] = results["none"]["ibm1"]
    rows += [
        _row(f"IBM model 1, {way}, text of {text}", numbers)
        for text, ways in by_text.items()
        for way, numbers in ways.items()
    ]
    return markdown_table(["", "AER", "95 % interval", "precision", "recall", "coverage"], rows)


def _row(title: str, numbers: Mapping[str, float]) -> list[str]:
    interval = f"{numbers['aer_low']:.3f}-{numbers['aer_high']:.3f}"
    rest = [f"{numbers[name]:.3f}" for name in ("precision", "recall", "coverage")]
    return [title, f"{numbers['aer']:.3f}", interval, *rest]
