"""Four memories at equal budget: perplexity by turn on chitchat, accuracy by distance on stories.

Writes `comparison.json`, `comparison.md` and two plots. Intervals are over conversations (and over stories): each draw
takes as many of them, with replacement, and differences are between the losses of the same ones.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.recipes.comparison import Result, Variant, compare_variants, markdown_table, own_data
from regard.recipes.curves import draw_curves
from regard.recipes.dialogue.babi import PLACES
from regard.recipes.dialogue.config import STORIES, Config
from regard.recipes.dialogue.model import MEMORIES
from regard.recipes.dialogue.recipe import depth_name, make_task, report
from regard.recipes.dialogue.tasks import DEPTHS
from regard.training.intervals import Interval, corpus_interval, mean_interval, paired_difference
from regard.training.whole_file import write_whole

Band = dict[str, float]
"""value, low and high."""
BASELINE = "none"
_FEWEST = 2
GUESSING = 1 / len(PLACES)
_END_OF_LINE = "\n"
SEEDS = (1,)
"""Of conversations; 4 memories with one seed each, and the stories with as many."""


def variants_of(config: Config, *, seeds: Sequence[int] = SEEDS) -> list[Variant[Config]]:
    """Every memory on conversations, then every memory on stories. What `STORIES` says is not taken from `config`."""
    given = config.model_dump()
    talks = {"talk": {"data": "chitchat"}, "story": STORIES}
    return [
        Variant(
            _run_name(kind, memory, seed),
            Config.model_validate({**given, **options, "memory": memory, "seed": seed}),
        )
        for kind, options in talks.items()
        for seed in seeds
        for memory in MEMORIES
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
    """Train what is missing, and write `comparison.json`, `comparison.md` and two plots into `folder`.

    Returns:
        The path of the page; None when it was asked to stop (SIGTERM): the same call goes on.

    Raises:
        DataError: the data are not in the cache and not to be downloaded.
        CheckpointError: a run in `folder` cannot go on.
    """
    variants = variants_of(config, seeds=seeds)
    found = compare_variants(
        variants,
        folder,
        make_task=lambda each: make_task(each, download=download),
        report=report,
        say=say,
        watched=watched,
        data=own_data(config.path),
    )
    if found is None:
        return None
    measured = summary(found, {variant.name: variant.config for variant in variants}, seeds)
    draw(measured, folder)
    write_whole(folder / "comparison.json", json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(measured))
    return folder / "comparison.md"


def summary(found: Mapping[str, Result], configs: Mapping[str, Config], seeds: Sequence[int]) -> dict[str, Any]:
    """Numbers for machines."""
    talks = {memory: [found[_run_name("talk", memory, seed)] for seed in seeds] for memory in MEMORIES}
    stories = {memory: [found[_run_name("story", memory, seed)] for seed in seeds] for memory in MEMORIES}
    return {
        "recipe": "dialogue",
        "baseline": BASELINE,
        "seeds": list(seeds),
        "config": configs[_run_name("talk", BASELINE, seeds[0])].decisive(),
        "stories_config": configs[_run_name("story", BASELINE, seeds[0])].decisive(),
        "conversations": len(talks[BASELINE][0]["tokens"]),
        "conversations_by_depth": {
            name: sum(row[place] > 0 for row in talks[BASELINE][0]["tokens"]) for place, name in enumerate(_DEPTHS)
        },
        "perplexity": {memory: _perplexity(runs, talks[BASELINE]) for memory, runs in talks.items()},
        "accuracy": {memory: _accuracy(runs, stories[BASELINE]) for memory, runs in stories.items()},
    }


def page(measured: Mapping[str, Any]) -> str:
    """The same for people."""
    config, stories = measured["config"], measured["stories_config"]
    perplexity, accuracy = measured["perplexity"], measured["accuracy"]
    distances = [str(distance) for distance in stories["distances"]]
    said = [
        [memory, f"{each['parameters']:,}", *(_cell(each["by_depth"][depth], 1) for depth in _DEPTHS)]
        for memory, each in perplexity.items()
    ]
    against = [
        [memory, *(_cell(each["against_baseline"][depth], 2, sign=True) for depth in _DEPTHS)]
        for memory, each in perplexity.items()
        if memory != measured["baseline"]
    ]
    answered = [
        [memory, f"{each['parameters']:,}", *(_cell(each["by_distance"][distance], 2) for distance in distances)]
        for memory, each in accuracy.items()
    ]
    reached = ", ".join(f"{depth} {count}" for depth, count in measured["conversations_by_depth"].items())
    seeds = ", ".join(map(str, measured["seeds"]))
    return f"""# Dialogue: four memories at equal budget

The same examples, steps and number of parameters; feed-forward widths differ. A segment is read with what the memory
keeps of those before it; `none` keeps nothing. 95 % intervals by bootstrap over conversations and stories,
seeds {seeds}.

## Perplexity by turn: chitchat, {measured["conversations"]} test conversations read whole

{config["num_layers"]} layers of width {config["embed_dim"]}, segments of {config["segment"]} tokens, {config["steps"]}
steps of at most {config["batch_tokens"]:,} tokens. Conversations that reach each depth: {reached}.

{markdown_table(["memory", "parameters", *_DEPTHS], said)}
![Perplexity by turn](dialogue-turns.png)

Change of the perplexity from `{measured["baseline"]}`, in per cent, on the same conversations (below 0: better):

{markdown_table(["memory", *_DEPTHS], against)}
## Accuracy by distance: stories

{stories["num_layers"]} layers of width {stories["embed_dim"]}, segments of {stories["segment"]} words (8 turns),
{stories["steps"]} steps; {stories["test_stories"]} test stories for each distance, in turns of six words, between a
question and the fact that answers it. Guessing a place is right in {GUESSING}.

{markdown_table(["memory", "parameters", *distances], answered)}
![Accuracy by distance](dialogue-distances.png)

## What came out

{"".join(f"- {line}{_END_OF_LINE}" for line in findings(measured))}"""


def findings(measured: Mapping[str, Any]) -> list[str]:
    """One sentence for each memory and task: the first and the last depth, and how far back it answers."""
    lines: list[str] = []
    for memory, each in measured["perplexity"].items():
        for depth in (_DEPTHS[0], _DEPTHS[-1]):
            change = each["against_baseline"][depth]
            if change is None:
                continue
            lines.append(
                f"{memory}, turns {depth}: perplexity {_verb(change)} than with `{measured['baseline']}` "
                f"({_cell(change, 2, sign=True)} %)."
            )
    for memory, each in measured["accuracy"].items():
        known = [distance for distance, right in each["by_distance"].items() if right["low"] > GUESSING]
        lines.append(f"{memory}: answers better than by guessing at distances {', '.join(known) or 'none'}.")
    return lines


def draw(measured: Mapping[str, Any], folder: Path) -> None:
    """Two plots: perplexity by turn, accuracy by distance."""
    distances = [int(distance) for distance in measured["stories_config"]["distances"]]
    draw_curves(
        {memory: list(each["by_depth"].values()) for memory, each in measured["perplexity"].items()},
        list(range(len(_DEPTHS))),
        folder / "dialogue-turns.png",
        across="turn of the conversation",
        up="perplexity",
        named=_DEPTHS,
    )
    draw_curves(
        {memory: list(each["by_distance"].values()) for memory, each in measured["accuracy"].items()},
        distances,
        folder / "dialogue-distances.png",
        across="turns between question and fact",
        up="accuracy",
        marked=measured["stories_config"]["segment"] // 6,
    )


_DEPTHS = [depth_name(depth) for depth in DEPTHS]


def _run_name(kind: str, memory: str, seed: int) -> str:
    return f"{kind}-{memory}-seed-{seed}"


def _perplexity(runs: Sequence[Result], baseline: Sequence[Result]) -> dict[str, Any]:
    """By depth, with the mean over the seeds of each conversation's loss; and the change from the baseline."""
    losses, others = _mean_losses(runs), _mean_losses(baseline)
    tokens = torch.tensor(runs[0]["tokens"], dtype=torch.float64)
    by_depth: dict[str, Band | None] = {}
    against: dict[str, Band | None] = {}
    for place, depth in enumerate(_DEPTHS):
        there = (tokens[:, place] > 0).nonzero().flatten()  # conversations that come so far
        enough = len(there) >= _FEWEST
        mine, other, count = (part[there, place] for part in (losses, others, tokens))
        by_depth[depth] = _ratio(mine, count) if enough else None
        against[depth] = _ratio(mine - other, count, change=True) if enough and runs is not baseline else None
    return {
        "parameters": runs[0]["parameters"],
        "seconds": [run["seconds"] for run in runs],
        "perplexity_of_all": statistics.fmean(run["perplexity_of_all"] for run in runs),
        "by_depth": by_depth,
        "against_baseline": against,
    }


def _ratio(losses: Tensor, tokens: Tensor, *, change: bool = False) -> Band:
    """exp(sum of losses / sum of tokens) over conversations; as a change, what it is above 1, in per cent."""

    def perplexity(drawn: list[int]) -> float:
        found = math.exp(float(losses[drawn].sum() / tokens[drawn].sum()))
        return 100.0 * (found - 1.0) if change else found

    return _band(corpus_interval(perplexity, len(losses)))


def _mean_losses(runs: Sequence[Result]) -> Tensor:
    """(conversations, depths)."""
    return torch.stack([torch.tensor(run["losses"], dtype=torch.float64) for run in runs]).mean(0)


def _accuracy(runs: Sequence[Result], baseline: Sequence[Result]) -> dict[str, Any]:
    right = {distance: _mean_right(runs, distance) for distance in runs[0]["right"]}
    return {
        "parameters": runs[0]["parameters"],
        "seconds": [run["seconds"] for run in runs],
        "by_distance": {distance: _band(mean_interval(each)) for distance, each in right.items()},
        "against_baseline": {
            distance: _band(paired_difference(each, _mean_right(baseline, distance)).difference)
            for distance, each in right.items()
            if runs is not baseline
        },
    }


def _mean_right(runs: Sequence[Result], distance: str) -> Tensor:
    """(stories,)."""
    return torch.stack([torch.tensor(run["right"][distance], dtype=torch.float64) for run in runs]).mean(0)


def _band(interval: Interval) -> Band:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _verb(change: Band) -> str:
    if change["high"] < 0:
        return "lower"
    return "higher" if change["low"] > 0 else "not different"


def _cell(each: Band | None, digits: int, *, sign: bool = False) -> str:
    if each is None:
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{each['value']:{form}} [{each['low']:{form}}, {each['high']:{form}}]"
