"""Flat, windowed, hierarchical; extracting and writing; on each corpus. Does a hierarchy bring ROUGE?

Equal budget within a corpus and a style: the same steps, tokens in a batch, settings and (almost) number of parameters.
A flat model cuts documents sooner, so its batches hold more of them: how many documents each has seen is told. Writes
`comparison.json` and `comparison.md`. Intervals are over the documents of the test: they say what other documents
would do to a score, not what another seed would. Differences are between scores of the same documents.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from regard.recipes.comparison import Result, Variant, compare_variants, markdown_table, own_data
from regard.recipes.summarization.data import CorpusName, load
from regard.recipes.summarization.documents import Splits
from regard.recipes.summarization.encoders import EncoderName
from regard.recipes.summarization.model import Style
from regard.recipes.summarization.recipe import Config, report, task_of, told
from regard.recipes.summarization.rouge import KINDS
from regard.recipes.summarization.task import SummarizationTask
from regard.training.intervals import paired_difference
from regard.training.whole_file import write_whole

CORPORA: tuple[CorpusName, ...] = ("descriptions", "man_pages", "peps")
ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
STYLES: tuple[Style, ...] = get_args(Style)
CLAIM = (3.0, 5.0)
"""What the guide says that a hierarchy brings, in percent of ROUGE. No source of it was found."""

_DIFFERENCES: tuple[EncoderName, ...] = ("flat", "windowed")

BUDGETS: Mapping[tuple[CorpusName, Style], Mapping[str, Any]] = {
    ("descriptions", "extractive"): {"steps": 250, "warmup_steps": 50},
    ("descriptions", "abstractive"): {"steps": 1200, "warmup_steps": 200},
    ("man_pages", "extractive"): {"steps": 250, "warmup_steps": 50},
    ("man_pages", "abstractive"): {"steps": 450, "warmup_steps": 100},
    ("peps", "extractive"): {"steps": 150, "warmup_steps": 30},
    ("peps", "abstractive"): {"steps": 250, "warmup_steps": 60},
}
"""So long is each trained unless the configuration says otherwise: on 2 cores with bfloat16 about an hour for the
descriptions and an hour for the other two, at 0.4 to 1.1 seconds a step of 8,192 tokens."""


def variants_of(config: Config, corpora: Sequence[CorpusName] = CORPORA) -> list[Variant[Config]]:
    """Every encoder in both styles on every corpus. What `config` sets explicitly holds for all of them."""
    given = {key: getattr(config, key) for key in config.model_fields_set}
    return [
        Variant(
            f"{corpus}-{style}-{encoder}",
            Config.model_validate(
                {
                    **BUDGETS[corpus, style],
                    **{key: value for key, value in given.items() if key != "file" or corpus == "peps"},
                    "corpus": corpus,
                    "style": style,
                    "encoder": encoder,
                }
            ),
        )
        for corpus in corpora
        for style in STYLES
        for encoder in ENCODERS
    ]


def compare(
    config: Config,
    folder: Path,
    *,
    download: bool,
    say: Callable[[str], None],
    watched: bool = False,
    corpora: Sequence[CorpusName] = CORPORA,
) -> Path | None:
    """Train what is missing, and write `comparison.json` and `comparison.md` into `folder`.

    Returns:
        The path of the page; None when it was asked to stop (SIGTERM): the same call goes on.

    Raises:
        DataError: data are absent and not to be downloaded.
        CheckpointError: a run in `folder` cannot go on.
    """
    variants = variants_of(config, corpora)

    @functools.lru_cache(maxsize=1)
    def splits(corpus: CorpusName, file: str | None) -> Splits:
        return load(corpus, file=None if file is None else Path(file), download=download)

    def make(each: Config) -> SummarizationTask:
        return task_of(each, splits(each.corpus, each.file))

    found = compare_variants(
        variants,
        folder,
        make_task=make,
        report=report,
        say=say,
        watched=watched,
        data=own_data(config.file),
    )
    if found is None:
        return None
    measured = summary(found, {variant.name: variant.config for variant in variants}, corpora)
    write_whole(folder / "comparison.json", json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(measured))
    return folder / "comparison.md"


def summary(
    found: Mapping[str, Result], configs: Mapping[str, Config], corpora: Sequence[CorpusName] = CORPORA
) -> dict[str, Any]:
    """Numbers for machines."""
    return {"recipe": "summarization", "corpora": {corpus: _of_corpus(found, configs, corpus) for corpus in corpora}}


def _of_corpus(found: Mapping[str, Result], configs: Mapping[str, Config], corpus: CorpusName) -> dict[str, Any]:
    some = found[f"{corpus}-{STYLES[0]}-{ENCODERS[0]}"]
    styles: dict[str, Any] = {}
    for style in STYLES:
        runs = {encoder: found[f"{corpus}-{style}-{encoder}"] for encoder in ENCODERS}
        styles[style] = {
            "config": configs[f"{corpus}-{style}-{ENCODERS[0]}"].decisive(),
            "models": {encoder: _of_run(run) for encoder, run in runs.items()},
            "hierarchical_minus": {
                other: _differences(runs["hierarchical"]["scores"]["model"], runs[other]["scores"]["model"])
                for other in _DIFFERENCES
            },
        }
    baselines = {name: some["rouge"][name] for name in ("lead", "oracle")}
    return {"documents": some["documents"], "baselines": baselines, "styles": styles}


def _of_run(run: Result) -> dict[str, Any]:
    kept = ("parameters", "most_tokens", "steps", "examples_seen", "seconds", "repeated")
    return {
        **{key: run[key] for key in kept},
        "rouge": run["rouge"]["model"],
        "minus_lead": _differences(run["scores"]["model"], run["scores"]["lead"]),
    }


def _differences(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """In points of ROUGE by kind, and in percent of the second's mean, which is what the guide speaks of."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        paired = paired_difference(first[kind], second[kind])
        mean = sum(second[kind]) / len(second[kind])
        found[kind] = {
            **told(paired.difference),
            "p_value": round(paired.p_value, 4),
            "percent": round(100.0 * paired.difference.value / mean, 1) if mean else None,
        }
    return found


def page(measured: Mapping[str, Any]) -> str:
    """The same for people."""
    said = (
        "ROUGE F scores in percent on held-out documents, with 95 % bootstrap intervals over documents (one training "
        "run each: what another seed does is not in them). Lead: the first words of the document. Oracle: sentences "
        "chosen with the author's summary in hand. Written summaries are decoded greedily unless beams are asked for, "
        'and nothing is forbidden to be repeated; "repeats" is the share of summaries in which three words follow one '
        f"another twice. The guide says that a hierarchy brings {CLAIM[0]:.0f} to {CLAIM[1]:.0f} %.\n"
    )
    parts = ["# Summaries: flat, windowed and hierarchical encoders\n", said]
    for corpus, facts in measured["corpora"].items():
        parts += _of_page(corpus, facts)
    return "\n".join(parts)


def _of_page(corpus: str, facts: Mapping[str, Any]) -> list[str]:
    documents = facts["documents"]
    rows = [[name, "", "", "", "", *(_cell(each[kind]) for kind in KINDS)] for name, each in facts["baselines"].items()]
    verdicts: list[str] = []
    for style, of_style in facts["styles"].items():
        for encoder, model in of_style["models"].items():
            budget = [f"{model['parameters']:,}", f"{model['most_tokens']:,}", f"{model['examples_seen']:,}"]
            repeats = f"{100 * model['repeated']:.0f} %"
            rows.append([f"{encoder}, {style}", *budget, repeats, *(_cell(model["rouge"][kind]) for kind in KINDS)])
        verdicts += [
            f"- {style}, hierarchical minus {other}: {verdict(difference)}"
            for other, difference in of_style["hierarchical_minus"].items()
        ]
    head = ["", "parameters", "tokens read", "documents seen", "repeats", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    config = {style: of_style["config"] for style, of_style in facts["styles"].items()}
    steps = ", ".join(f"{each['steps']} steps ({style})" for style, each in config.items())
    budget = (
        f"{documents['training']:,} documents of training, {documents['validation']:,} of validation, "
        f"{documents['test']:,} of test; {steps} of at most {next(iter(config.values()))['batch_tokens']:,} tokens.\n"
    )
    return [f"## {corpus.replace('_', ' ')}\n", budget, markdown_table(head, rows), "\n".join(verdicts) + "\n"]


def verdict(difference: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: the differences, and what their intervals allow to say."""
    told_kinds = "; ".join(
        f"{kind.replace('rouge', 'ROUGE-')} {each['value']:+.2f} ({each['low']:+.2f} to {each['high']:+.2f})"
        + ("" if each["percent"] is None else f", {each['percent']:+.1f} %")
        for kind, each in difference.items()
    )
    lows, highs = [[each[end] for each in difference.values()] for end in ("low", "high")]
    if min(lows) > 0:
        said = "better in all three"
    elif max(highs) < 0:
        said = "worse in all three"
    elif max(lows) > 0 or min(highs) < 0:
        said = "some kinds differ, not all"
    else:
        said = "no difference that these documents show"
    return f"{said}. {told_kinds}."


def _cell(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.1f} ({interval['low']:.1f}-{interval['high']:.1f})"
