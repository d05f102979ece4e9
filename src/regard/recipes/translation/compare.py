"""The translator beside what it has to beat, at equal budget: one head, a recurrent model, a translation memory.

All are trained on the same pairs for as many steps of as many pieces, and have about as many parameters. The test
sentences are the same, and so are the draws of the bootstrap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regard.recipes.comparison import Result, Variant, compare_variants, markdown_table
from regard.recipes.translation.baselines import TranslationMemory
from regard.recipes.translation.pairs import Corpus
from regard.recipes.translation.recipe import Config, corpus_of, report, task_of, usual_rate, vocabulary_of
from regard.recipes.translation.scoring import bleu_difference, score_by_domain, sentence_counts
from regard.training.whole_file import write_whole

MAIN = "transformer"
_TITLES = {
    MAIN: "Transformer",
    "one-head": "the same with one head",
    "gru": "GRU with additive attention",
    "memory": "translation memory (nearest source by TF-IDF)",
}


def variants(config: Config) -> list[Variant[Config]]:
    """The translator, with one head, and recurrent; each at its own usual learning rate unless another is asked for."""
    usual = config.learning_rate == usual_rate(config.model, config.optimizer)
    common = config.model_dump(exclude={"learning_rate"} if usual else None)
    differing = {
        MAIN: {"model": "transformer"},
        "one-head": {"model": "transformer", "num_heads": 1},
        "gru": {"model": "gru", "guided_rule": "predicting"},
    }
    return [Variant(name, Config.model_validate({**common, **keys})) for name, keys in differing.items()]


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
    corpus = corpus_of(config, download=download)
    vocabulary = vocabulary_of(config, corpus)
    results = compare_variants(
        variants(config),
        folder,
        make_task=lambda each: task_of(each, corpus, vocabulary),
        report=report,
        say=say,
        watched=watched,
        data=corpus.digest,
    )
    if results is None:
        return None
    facts = summary(config, corpus, results)
    write_whole(folder / "comparison.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "comparison.md", page(facts))
    return folder / "comparison.md"


def summary(config: Config, corpus: Corpus, results: Mapping[str, Result]) -> dict[str, Any]:
    """Scores of each, and how far the translator is above each of the others."""
    expected = [pair.target for pair in corpus.test]
    written = {name: list(result["written"]) for name, result in results.items()}
    memory = TranslationMemory([pair.source for pair in corpus.train], [pair.target for pair in corpus.train])
    written["memory"] = [memory.translate(pair.source) for pair in corpus.test]
    rates = {variant.name: variant.config.learning_rate for variant in variants(config)}
    counts = {name: sentence_counts(texts, expected, config.language) for name, texts in written.items()}
    return {
        "language": config.language,
        "corpus": {"digest": corpus.digest, "train": len(corpus.train), "test": len(corpus.test)},
        "config": config.decisive(),
        "scores": {name: score_by_domain(texts, corpus.test, config.language) for name, texts in written.items()},
        "above": {name: bleu_difference(counts[MAIN], each) for name, each in counts.items() if name != MAIN},
        "training": {
            name: {key: result[key] for key in ("parameters", "steps", "seconds")} | {"learning_rate": rates[name]}
            for name, result in results.items()
        },
        "written": written,
    }


def page(facts: Mapping[str, Any]) -> str:
    """The comparison for people."""
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = facts["scores"]
    domains = list(scores[MAIN])
    rows = [
        [_TITLES[name], *(_interval(of[domain]) for domain in domains), f"{of['all']['chrf']:.1f}"]
        for name, of in scores.items()
    ]
    above = [
        [_TITLES[name], f"{found['difference']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"]
        for name, found in facts["above"].items()
    ]
    trained = [
        [
            _TITLES[name],
            f"{found['parameters']:,}",
            f"{found['steps']:,}",
            f"{found['learning_rate']:g}",
            f"{found['seconds'] / 60:.0f}",
        ]
        for name, found in facts["training"].items()
    ]
    return "\n".join(
        [
            f"# Translation, English to {facts['language']}",
            "",
            f"BLEU (sacrebleu) with 95 % bootstrap intervals on {facts['corpus']['test']:,} test sentences; then chrF.",
            "",
            markdown_table(["system", *domains, "chrF"], rows),
            "How far the translator is above each, on the same draws:",
            "",
            markdown_table(["system", "BLEU points"], above),
            markdown_table(["system", "parameters", "steps", "learning rate", "minutes, last session"], trained),
        ]
    )


def _interval(score: Mapping[str, float]) -> str:
    return f"{score['bleu']:.1f} ({score['low']:.1f} to {score['high']:.1f})"
