"""Positions, gates, a state space and windows, at equal budget: the same characters, steps and number of parameters.

Writes `comparison.json`, `comparison.md` and a plot of the loss by length. Intervals are over blocks of 256
characters of the test, the same ones for all variants and lengths, each block's loss being the mean over the seeds;
a difference between two variants is that of the same blocks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.recipes.comparison import Result, Variant, compare_variants, markdown_table, own_data
from regard.recipes.curves import draw_curves
from regard.recipes.language_model.recipe import make_task, report
from regard.recipes.language_model.task import BLOCK, Config
from regard.training.intervals import Interval, mean_interval, paired_difference
from regard.training.whole_file import write_whole

BASELINE = "rope"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5"},
    "sinusoid": {"position": "sinusoid"},
    "none": {"position": "none"},
    "rope, gate": {"position": "rope", "gate": "element"},
    "rope, window 64": {"position": "rope", "window": 64},
    "rope, window 16": {"position": "rope", "window": 16},
    "s4d": {"mixer": "s4d", "position": "none"},
}
Band = dict[str, float]
"""value, low and high."""
_END_OF_LINE = "\n"
SEEDS = (1, 2, 3)
"""9 variants, 3 seeds: 27 runs."""


def variants_of(config: Config, *, seeds: Sequence[int] = SEEDS) -> list[Variant[Config]]:
    """All variants with all seeds; those of one seed come first, so that an early end has something of each."""
    return [
        Variant(_run_name(name, seed), Config.model_validate({**config.model_dump(), **options, "seed": seed}))
        for seed in seeds
        for name, options in VARIANTS.items()
    ]


def compare(
    config: Config,
    folder: Path,
    *,
    download: bool,
    say: Callable[[str], None],
    watched: bool = False,
    seeds: Sequence[int] = SEEDS,
) -> Path | None:
    """Train what is missing, and write `comparison.json`, `comparison.md` and a plot into `folder`.

    Returns:
        The path of the page; None when it was asked to stop (SIGTERM): the same call goes on.

    Raises:
        DataError: the data are not in the cache and not to be downloaded.
        CheckpointError: a run in `folder` cannot go on.
    """
    found = compare_variants(
        variants_of(config, seeds=seeds),
        folder,
        make_task=lambda each: make_task(each, download=download),
        report=report,
        say=say,
        watched=watched,
        data=own_data(config.text),
    )
    if found is None:
        return None
    measured = summary(found, config, seeds)
    draw(measured, folder / "language_model.png")
    write_whole(folder / "comparison.json", json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(measured))
    return folder / "comparison.md"


def summary(found: Mapping[str, Result], config: Config, seeds: Sequence[int]) -> dict[str, Any]:
    """Numbers for machines."""
    runs = {name: [found[_run_name(name, seed)] for seed in seeds] for name in VARIANTS}
    blocks = {name: _blocks(of_variant) for name, of_variant in runs.items()}
    shortest, longest = str(config.length), str(max(config.test_lengths))
    variants: dict[str, Any] = {}
    for name, of_variant in runs.items():
        by_length = blocks[name]
        variants[name] = {
            "parameters": of_variant[0]["parameters"],
            "seconds": [run["seconds"] for run in of_variant],
            "loss": {length: _band(mean_interval(losses)) for length, losses in by_length.items()},
            "loss_of_seeds": {length: [run["loss"][length] for run in of_variant] for length in by_length},
            "against_baseline": {
                length: _band(paired_difference(losses, blocks[BASELINE][length]).difference)
                for length, losses in by_length.items()
                if name != BASELINE
            },
            "longest_against_trained": _band(paired_difference(by_length[longest], by_length[shortest]).difference),
            "sink_share": _sinks(of_variant) if _first_is_seen(name, config) else None,
        }
    return {
        "recipe": "language_model",
        "baseline": BASELINE,
        "seeds": list(seeds),
        "config": config.decisive(),
        "variants": variants,
    }


def page(measured: Mapping[str, Any]) -> str:
    """The same for people."""
    config, variants = measured["config"], measured["variants"]
    lengths = [str(length) for length in config["test_lengths"]]
    rows = [
        [name, f"{each['parameters']:,}", *(_cell(each["loss"][length]) for length in lengths)]
        for name, each in variants.items()
    ]
    against = [
        [name, *(_cell(each["against_baseline"][length], "+") for length in lengths)]
        for name, each in variants.items()
        if each["against_baseline"]
    ]
    sinks = [[name, *_sink_cells(each["sink_share"])] for name, each in variants.items() if each["sink_share"]]
    seeds = ", ".join(map(str, measured["seeds"]))
    return f"""# Language model: tiny Shakespeare by characters

{config["num_layers"]} layers of width {config["embed_dim"]}, {config["steps"]} steps of {config["batch_size"]} windows
of {config["length"]} characters, seeds {seeds}. All variants have as many parameters (feed-forward widths differ). Loss
in nats a character on the same {config["test_characters"]:,} characters of the test at every length, sliding by half a
window; 95 % intervals by bootstrap over blocks of {BLOCK} characters.

## Loss by length of the window

{markdown_table(["variant", "parameters", *lengths], rows)}
![Loss by length](language_model.png)

## Difference from {measured["baseline"]} on the same blocks (above 0: worse)

{markdown_table(["variant", *lengths], against)}
## What came out

{"".join(f"- {line}{_END_OF_LINE}" for line in findings(measured))}
## Weight on the first character of a window

Of queries in the second half of {config["length"]} characters; all alike would be {_alike(config["length"]):.4f}.
Windows that do not reach back to it are left out.

{markdown_table(["variant", "mean", "largest head", "mean of each seed"], sinks)}"""


def findings(measured: Mapping[str, Any]) -> list[str]:
    """One sentence each: what an interval that leaves out 0 says, and where none does."""
    config = measured["config"]
    length, longest = str(config["length"]), str(max(config["test_lengths"]))
    lines: list[str] = []
    for name, each in measured["variants"].items():
        change = each["longest_against_trained"]
        lines.append(f"{name}: from {length} to {longest} characters the loss {_verb(change)} ({_cell(change, '+')}).")
    for name, each in measured["variants"].items():
        if each["against_baseline"]:
            change = each["against_baseline"][length]
            told = f"{_verb(change)} ({_cell(change, '+')})"
            lines.append(f"{name} in place of {measured['baseline']}, at {length}: the loss {told}.")
    return lines


def draw(measured: Mapping[str, Any], path: Path) -> None:
    """Curves of the loss by length, with their intervals."""
    lengths = [int(length) for length in measured["config"]["test_lengths"]]
    draw_curves(
        {name: [each["loss"][str(length)] for length in lengths] for name, each in measured["variants"].items()},
        lengths,
        path,
        across="characters in the window",
        up="loss, nats a character",
        marked=measured["config"]["length"],
    )


def _run_name(name: str, seed: int) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}"


def _blocks(runs: Sequence[Result]) -> dict[str, Tensor]:
    """The losses of blocks by length, float64 (blocks,), each the mean over the seeds."""
    return {
        length: torch.tensor([run["losses_of_blocks"][length] for run in runs], dtype=torch.float64).mean(0)
        for length in runs[0]["losses_of_blocks"]
    }


def _first_is_seen(name: str, config: Config) -> bool:
    """By any query of the second half; a shorter window hides the first character from all of them."""
    window: int = VARIANTS[name].get("window", config.window)
    return window == 0 or window > config.length // 2


def _sinks(runs: Sequence[Result]) -> dict[str, Any] | None:
    if any(run["sink_share"] is None for run in runs):
        return None
    means = [statistics.fmean(share for layer in run["sink_share"] for share in layer) for run in runs]
    largest = statistics.fmean(max(share for layer in run["sink_share"] for share in layer) for run in runs)
    return {"mean": statistics.fmean(means), "largest_head": largest, "mean_of_seeds": means}


def _sink_cells(sinks: Mapping[str, Any]) -> list[str]:
    of_seeds = ", ".join(f"{value:.4f}" for value in sinks["mean_of_seeds"])
    return [f"{sinks['mean']:.4f}", f"{sinks['largest_head']:.3f}", of_seeds]


def _alike(length: int) -> float:
    return statistics.fmean(1.0 / (place + 1) for place in range(length // 2, length))


def _band(interval: Interval) -> Band:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _verb(change: Band) -> str:
    if change["high"] < 0:
        return "falls"
    return "rises" if change["low"] > 0 else "stays, as far as the interval tells"


def _cell(each: Band, sign: str = "") -> str:
    return f"{each['value']:{sign}.3f} [{each['low']:{sign}.3f}, {each['high']:{sign}.3f}]"
