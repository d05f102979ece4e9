"""CLIP's loss against SigLIP's at equal budget, and both against two baselines that learn nothing.

Equal budget: the same towers, pairs in the same order, drawn alike, and as many steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regard.recipes.comparison import Result, Variant, compare_variants, markdown_table
from regard.recipes.image_text import data
from regard.recipes.image_text.model import LossName
from regard.recipes.image_text.recipe import Config, ImageText, baselines, recalls_of, tested
from regard.training.whole_file import write_whole

LOSSES: tuple[LossName, ...] = ("clip", "siglip")
SHOWN = ("recall@1", "recall@5", "recall@10")


def variants(config: Config) -> list[Variant[Config]]:
    """Both losses."""
    return [Variant(loss, config.model_copy(update={"loss": loss})) for loss in LOSSES]


def compare(
    config: Config, folder: Path, *, download: bool, say: Callable[[str], None], watched: bool = False
) -> Path | None:
    """Train what is missing, and write `comparison.json` and `comparison.md` into `folder`.

    Returns:
        The path of the page; None when it was asked to stop (SIGTERM): the same call goes on.

    Raises:
        DataError: the data are not in the cache and not to be downloaded.
        CheckpointError: a run in `folder` cannot go on.
    """
    emoji = data.load(download=download)
    results = compare_variants(
        variants(config),
        folder,
        make_task=lambda each: ImageText(each, emoji),
        report=lambda task, model, _: recalls_of(task, model),
        say=say,
        watched=watched,
    )
    if results is None:
        return None
    facts = summary(ImageText(config, emoji), results)
    write_whole(folder / "comparison.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(facts))
    return folder / "comparison.md"


def summary(task: ImageText, results: Mapping[str, Result]) -> dict[str, Any]:
    """All recalls of all of them, and what they are of."""
    emoji = task.emoji
    return {
        "config": task.config.decisive(),
        "concepts": {split: len(emoji.of(split)) for split in ("train", "validation", "test")},
        "test_sets": {
            name: {"asked": len(asked), "answers": len(answers)} for name, (asked, answers, _) in tested(emoji).items()
        },
        "models": {
            name: {key: result[key] for key in ("parameters", "steps", "seconds")} for name, result in results.items()
        },
        "recalls": {**baselines(task), **{name: result["recalls"] for name, result in results.items()}},
    }


def page(facts: Mapping[str, Any]) -> str:
    """The facts for people, in Markdown: one table a test set."""
    config, concepts = facts["config"], facts["concepts"]
    told = [
        f"""# Pictures and captions of emoji

Two styles (Noto, Twemoji) of {concepts["train"]:,} concepts are trained on, {config["steps"]:,} steps of
{config["batch_size"]} pairs. Tested are the third style (Fluent 3D) and {concepts["test"]} concepts that were never
seen, with captions in English and Chinese. Recall@k in percent, with the 95 % bootstrap interval over the queries.
Drawings, not photographs: nothing here says how well this works on photographs.
"""
    ]
    for name, size in facts["test_sets"].items():
        told.append(f"## {name[0].upper()}{name[1:]}\n")
        told.append(f"{size['asked']:,} are asked for, {size['answers']:,} captions may be found.\n")
        told.append(markdown_table(["query, style, language", "model", *SHOWN], _rows(facts["recalls"], name)))
    return "\n".join(told)


def _rows(recalls: Mapping[str, Any], name: str) -> list[list[str]]:
    keys = [key for key in recalls["random"] if key.split(" | ")[0] == name]
    return [
        [f"{way}, {', '.join(key.split(' | ')[1:])}", model, *(_shown(found[key][way][each]) for each in SHOWN)]
        for way in ("picture to caption", "caption to picture")
        for key in keys
        for model, found in recalls.items()
    ]


def _shown(recall: float | Mapping[str, float]) -> str:
    if isinstance(recall, Mapping):
        return f"{100 * recall['mean']:.1f} ({100 * recall['low']:.1f} to {100 * recall['high']:.1f})"
    return f"{100 * recall:.1f}"
