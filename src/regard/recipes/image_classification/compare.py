"""What each kind of image attention brings to one CNN: all of them, with three seeds each, and a ViT beside them.

Equal budget: the same pictures in the same order (a seed's), the same number of steps, the same settings. Parameters
differ by what the mechanism itself has; they are told. A difference to "none" is taken seed by seed, which leaves out
what the seeds do to both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regard.recipes.comparison import (
    Result,
    Variant,
    compare_variants,
    markdown_table,
)
from regard.recipes.image_classification.model import ATTENTION
from regard.recipes.image_classification.recipe import Classification, Config, accuracy_of, baselines, splits_of
from regard.training.intervals import seeds_interval
from regard.training.whole_file import write_whole

SEEDS = (1, 2, 3)
PLAIN = "cnn, none"


def variants(config: Config) -> list[Variant[Config]]:
    """Every mechanism with every seed, and the ViT."""
    found: list[Variant[Config]] = []
    for seed in SEEDS:
        found += [
            Variant(
                f"cnn-{kind}-seed{seed}", config.model_copy(update={"seed": seed, "model": "cnn", "attention": kind})
            )
            for kind in ATTENTION
        ]
        found.append(Variant(f"vit-seed{seed}", config.model_copy(update={"seed": seed, "model": "vit"})))
    return found


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
    splits = splits_of(config, download=download)
    results = compare_variants(
        variants(config),
        folder,
        make_task=lambda each: Classification(each, splits),
        report=lambda task, model, _: accuracy_of(task, model),
        say=say,
        watched=watched,
        data="" if config.images is None else Classification(config, splits).data_digest(),
    )
    if results is None:
        return None
    used = Classification(config, splits).splits
    facts = {**summary(config, results, baselines(used)), "test": len(used.test)}
    write_whole(folder / "comparison.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(facts))
    return folder / "comparison.md"


def summary(config: Config, results: dict[str, Result], untrained: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Of each model: accuracies by seed, their mean and interval, and the difference to the plain CNN, by seed."""
    by_model = {name: _of_model(results, name) for name in ("vit", *(f"cnn-{kind}" for kind in ATTENTION))}
    plain = [result["accuracy"] for result in by_model["cnn-none"]]
    models: dict[str, Any] = {}
    for name, runs in by_model.items():
        accuracies = [run["accuracy"] for run in runs]
        differences = [one - other for one, other in zip(accuracies, plain, strict=True)]
        models[name.replace("-", ", ")] = {
            "parameters": runs[0]["parameters"],
            "seconds": [run["seconds"] for run in runs],
            "accuracy": accuracies,
            "interval": _interval(accuracies),
            "difference_to_plain": _interval(differences),
        }
    return {
        "config": config.decisive(),
        "seeds": list(SEEDS),
        "models": models,
        "baselines": untrained,
    }


def page(facts: dict[str, Any]) -> str:
    """The facts for people, in Markdown."""
    rows = [
        [
            name,
            f"{model['parameters']:,}",
            _percent(*model["interval"]),
            "" if name == PLAIN else _points(*model["difference_to_plain"]),
            f"{sum(model['seconds']) / len(model['seconds']):.0f}",
        ]
        for name, model in facts["models"].items()
    ]
    config, count = facts["config"], len(facts["seeds"])
    baseline_rows = [
        [name, "", f"{each['mean']:.2%} ({each['low']:.2%} to {each['high']:.2%})", "", ""]
        for name, each in facts["baselines"].items()
    ]
    head = ["model", "parameters", "test accuracy", "difference to the plain CNN, points", "seconds a run"]
    where = "Fashion-MNIST" if config.get("images") is None else "pictures of one's own"
    return f"""# Image attention on {where}

Accuracy on the {facts["test"]:,} test pictures after {config["steps"]} steps of {config["batch_size"]} pictures, for
all alike. Mean over {count} seeds with a 95 % interval of Student's t; differences are taken seed by seed. The
intervals of the baselines, which have no seeds, are bootstraps over the test pictures.

{markdown_table(head, [*rows, *baseline_rows])}
{verdict(facts)}
"""


def verdict(facts: dict[str, Any]) -> str:
    """In a sentence or two: which mechanisms are better than none, by their intervals, and which worse."""
    better, worse, unclear = [list[str]() for _ in range(3)]
    for name, model in facts["models"].items():
        _, low, high = model["difference_to_plain"]
        if name.startswith("cnn") and name != PLAIN:
            (better if low > 0 else worse if high < 0 else unclear).append(name.removeprefix("cnn, "))
    told = [
        f"Better than none beyond the seeds' spread: {', '.join(better) or 'no mechanism'}.",
        f"Worse: {', '.join(worse)}." if worse else "",
        f"Not told apart from none by {len(facts['seeds'])} seeds: {', '.join(unclear)}." if unclear else "",
    ]
    return " ".join(sentence for sentence in told if sentence)


def _of_model(results: dict[str, Result], name: str) -> list[Result]:
    return [results[f"{name}-seed{seed}"] for seed in SEEDS]


def _interval(values: list[float]) -> tuple[float, float, float]:
    found = seeds_interval(values)
    return found.value, found.low, found.high


def _percent(mean: float, low: float, high: float) -> str:
    return f"{mean:.2%} ({low:.2%} to {high:.2%})"


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
