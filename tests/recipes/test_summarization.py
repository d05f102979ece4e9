"""The recipe from end to end, on a small corpus, and on real documents where they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from regard import CheckpointError, DataError
from regard.recipes.summarization.compare import BUDGETS, compare, variants_of, verdict
from regard.recipes.summarization.data import CORPORA, load
from regard.recipes.summarization.documents import Splits, split
from regard.recipes.summarization.encoders import EncoderName
from regard.recipes.summarization.model import Style
from regard.recipes.summarization.recipe import VOCABULARY, Config, baselines, make_task, report, run, task_of
from regard.recipes.summarization.rouge import KINDS
from regard.recipes.summarization.task import as_summarizer
from regard.training.loop import train
from tests.recipes.summarization_cases import PROPOSALS, small_config, small_corpus, small_splits, written

ALL = [(encoder, style) for encoder in ("flat", "windowed", "hierarchical") for style in ("extractive", "abstractive")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies of tests stay out of the user's cache."""
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("encoder", "style"), ALL)
def test_each_variant_trains_and_reports(encoder: EncoderName, style: Style, tmp_path: Path) -> None:
    config = small_config(encoder=encoder, style=style)
    task = task_of(config, small_splits())
    trained = train(task, config, tmp_path / "run")
    assert trained.finished
    assert trained.step == config.steps
    assert {"loss", "rouge", *KINDS} <= set(trained.metrics)
    found = report(task, trained.model, config)
    assert found["documents"] == {"training": 24, "validation": 6, "test": 6}
    assert found["most_tokens"] == (32 if encoder == "flat" else 96)
    for name in ("model", "lead", "oracle"):
        for kind in KINDS:
            interval = found["rouge"][name][kind]
            assert 0.0 <= interval["low"] <= interval["value"] <= interval["high"] <= 100.0
            assert len(found["scores"][name][kind]) == 6
    json.dumps(found)


def test_it_learns(tmp_path: Path) -> None:
    """The sentence that says what the summary says is found, wherever it stands."""
    examples = small_corpus(60)
    mixed = [
        replace(each, paragraphs=((*each.sentences[1:], each.sentences[0]),)) if place % 2 else each
        for place, each in enumerate(examples)
    ]
    splits = Splits(tuple(mixed[:44]), tuple(mixed[44:52]), tuple(mixed[52:]))
    config = small_config(encoder="hierarchical", style="extractive", steps=40, learning_rate=1e-2, warmup_steps=5)
    task = task_of(config, splits)
    trained = train(task, config, tmp_path / "run")
    found = report(task, trained.model, config)["rouge"]
    assert found["model"]["rouge1"]["value"] > found["lead"]["rouge1"]["value"] + 5
    assert found["model"]["rouge1"]["value"] == pytest.approx(found["oracle"]["rouge1"]["value"], abs=2)


def test_the_same_alone_and_in_a_batch() -> None:
    for style in ("extractive", "abstractive"):
        config = small_config(style=style)
        task = task_of(config, small_splits())
        model = as_summarizer(task.model.eval())
        together = task.summaries(model, task.splits.test)
        assert together == [task.summaries(model, [each])[0] for each in task.splits.test]


def test_units_and_sums() -> None:
    """The loss of a batch is the sum of the losses of its parts, and so are its units."""
    for style in ("extractive", "abstractive"):
        task = task_of(small_config(style=style), small_splits())
        model = task.model.eval()
        indices = task.order(0)[0]
        parts = [indices[::2], indices[1::2]]
        assert task.units(indices) == sum(task.units(part) for part in parts)
        whole = task.loss(model, task.batch(indices))
        assert torch.allclose(whole, sum(task.loss(model, task.batch(part)) for part in parts), rtol=1e-5)
        assert sorted(place for batch in task.order(3) for place in batch) == list(range(len(task.training)))
        assert task.order(3) == task.order(3)


def test_run_summarizes_texts_and_files(tmp_path: Path) -> None:
    config = small_config(encoder="hierarchical", style="extractive")
    task = task_of(config, small_splits())
    train(task, config, tmp_path / "run")
    task.vocabulary.save(tmp_path / "run" / VOCABULARY)
    text = "A first sentence of it. A second sentence.\n\nAnother paragraph, https://example.org here."
    found = run(text, tmp_path / "run")
    assert found["encoder"] == "hierarchical"
    assert found["summary"]
    assert "://" not in found["summary"]
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    assert run(path, tmp_path / "run") == found
    for odd in ("你好。再见！", "\U0001f600 word", "x" * 5000, "A. " * 3000, "a\x00b \x1b[31mred"):
        assert isinstance(run(odd, tmp_path / "run")["summary"], str)
    with pytest.raises(DataError, match="no words to summarize"):
        run(" \n ", tmp_path / "run")
    with pytest.raises(DataError, match="not valid Unicode"):
        run("half a pair \ud800", tmp_path / "run")
    with pytest.raises(DataError, match="expected a text file, got a device"):
        run(Path("/dev/zero"), tmp_path / "run")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad.txt': not UTF-8: byte 0xFF"):
        run(tmp_path / "bad.txt", tmp_path / "run")
    with pytest.raises(DataError, match=r"absent.txt': no such file"):
        run(tmp_path / "absent.txt", tmp_path / "run")
    with pytest.raises(CheckpointError, match="Train first"):
        run(text, tmp_path / "nothing")
    (tmp_path / "run" / VOCABULARY).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is no vocabulary"):
        run(text, tmp_path / "run")


def test_a_run_without_its_vocabulary_learns_it_again(tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", small_corpus(900))
    config = small_config(style="extractive", file=str(path), steps=2)
    task = make_task(config, download=False)
    train(task, config, tmp_path / "run")
    assert run("One sentence here. And another.", tmp_path / "run")["corpus"] == "file"


def test_variants_have_one_budget() -> None:
    variants = variants_of(Config.model_validate({"seed": 3}))
    assert len(variants) == 18
    assert len({variant.name for variant in variants}) == 18
    for corpus, style in BUDGETS:
        configs = [each.config for each in variants if (each.config.corpus, each.config.style) == (corpus, style)]
        alike = [{**each.decisive(), "encoder": ""} for each in configs]
        assert alike[0] == alike[1] == alike[2]
        assert alike[0]["seed"] == 3
        assert configs[0].steps == BUDGETS[corpus, style]["steps"]
    given = variants_of(Config.model_validate({"steps": 7, "file": "peps.jsonl"}))
    assert {each.config.steps for each in given} == {7}
    assert {each.config.corpus for each in given if each.config.file} == {"peps"}


def test_compare_trains_once_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same call: what is finished is not trained again."""
    from regard.recipes.summarization import compare as module

    splits = split(small_corpus(60), validation=6, test=8, salt="x")
    monkeypatch.setattr(module, "load", lambda *_, **__: splits)
    monkeypatch.setattr(module, "ENCODERS", ("flat", "hierarchical"))
    said: list[str] = []
    given = small_config(steps=2, evaluate_every=100)
    config = Config.model_validate({key: getattr(given, key) for key in given.model_fields_set - {"corpus"}})
    monkeypatch.setattr(module, "_DIFFERENCES", ("flat",))
    page = compare(config, tmp_path, download=False, say=said.append, corpora=["peps"])
    assert page == tmp_path / "comparison.md"
    assert "4 variants, 0 of them finished." in said[0]
    assert said[1].startswith("Expected:")
    text = page.read_text(encoding="utf-8")
    assert "hierarchical minus flat" in text
    assert "| lead" in text or "|lead|" in text
    first = (tmp_path / "comparison.json").read_bytes()
    assert json.loads(first)
    said.clear()
    monkeypatch.setattr(module, "task_of", lambda *_: pytest.fail("trained again"))
    assert compare(config, tmp_path, download=False, say=said.append, corpora=["peps"]) == page
    assert (tmp_path / "comparison.json").read_bytes() == first
    assert said == ["4 variants, 4 of them finished."]
    assert (tmp_path / "peps-extractive-flat" / VOCABULARY).is_file()


def test_verdicts_follow_the_intervals() -> None:
    def each(low: float, high: float) -> dict[str, float]:
        return {"value": (low + high) / 2, "low": low, "high": high, "p_value": 0.5, "percent": 1.0}

    def said(*ends: tuple[float, float]) -> str:
        return verdict({kind: each(*end) for kind, end in zip(KINDS, ends, strict=True)}).split(".")[0]

    assert said((0.1, 1), (0.2, 1), (0.1, 2)) == "better in all three"
    assert said((-2, -1), (-2, -0.1), (-3, -1)) == "worse in all three"
    assert said((-1, 1), (-2, 1), (-3, 1)) == "no difference that these documents show"
    assert said((0.1, 1), (-2, 1), (-3, 1)) == "some kinds differ, not all"


def test_configurations_are_checked() -> None:
    for options in ({"encoder": "deep"}, {"encoder_layers": 4}, {"corpus": "news"}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Config.model_validate(options)
    assert Config.model_validate({"encoder": "flat"}).most_tokens() == CORPORA["descriptions"].flat_tokens
    assert Config.model_validate({"corpus": "peps"}).most_tokens() == CORPORA["peps"].long_tokens
    assert Config.model_validate({"corpus": "peps", "words": 30}).extract_words() == 30


@pytest.mark.skipif(not PROPOSALS.is_file(), reason="the file of the PEPs is not here")
def test_smoke_on_real_proposals(tmp_path: Path) -> None:
    splits = load("peps", file=PROPOSALS, download=False)
    few = Splits(splits.training[:12], splits.validation[:3], splits.test[:4])
    config = small_config(corpus="peps", style="extractive", long_tokens=512, batch_tokens=2048, steps=2)
    task = task_of(config, few)
    trained = train(task, config, tmp_path / "run")
    found = report(task, trained.model, config)["rouge"]
    assert found["oracle"]["rouge1"]["value"] > found["lead"]["rouge1"]["value"]
    assert baselines(few.test, 80)["lead"][0]
