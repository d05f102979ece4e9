"""The word alignment recipe on verses made up so that their alignment is known: each word has one translation, in
reverse order."""

from __future__ import annotations

import itertools

import pytest
import torch

from regard import ArgumentError
from regard.explain import GoldAlignment, argmax_links, guided_alignment_loss, score_alignments, target_rows
from regard.recipes.translation.model import translation_loss
from regard.recipes.translation.verses import Verse
from regard.recipes.word_alignment.compare import page, variants
from regard.recipes.word_alignment.measure import LEAST, RULES, Reading, best_reading, told, weights_of_verses
from regard.recipes.word_alignment.pieces import Pieces, in_pieces, piece_links
from regard.recipes.word_alignment.recipe import Config, report, task_of
from regard.recipes.word_alignment.teachers import ibm1_links
from regard.training.loop import train

GREEK = ["λόγος", "ἦν", "θεός", "ἀρχή", "φῶς", "κόσμος", "ζωή"]
ENGLISH = ["Word", "was", "God", "beginning", "light", "world", "life"]


def verses(count, seed):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = 3 + number % 3
        chosen = torch.randperm(len(GREEK), generator=draw)[:length].tolist()
        links = frozenset((length - 1 - place, place) for place in range(length))
        target = tuple(ENGLISH[word] for word in reversed(chosen))
        made.append(Verse(tuple(GREEK[word] for word in chosen), target, links, f"{number:08}"))
    return made


def small(**changed):
    return Config.model_validate(
        {
            "pieces": 300,
            "embed_dim": 32,
            "num_heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "dropout_p": 0.0,
            "batch_tokens": 400,
            "steps": 120,
            "warmup_steps": 10,
            "learning_rate": 5e-3,
            "guided_strength": 1.0,
            "average_decay": 0.9,
            "evaluate_every": 1000,
            "precision": "float32",
            **changed,
        }
    )


@pytest.fixture(scope="module")
def splits():
    return verses(200, 1), verses(20, 2), verses(30, 3)


@pytest.fixture(scope="module")
def task(splits):
    return task_of(small(guidance="gold"), splits)


def test_every_piece_knows_its_word(task):
    words = ["Ἀρχή", "zzzyx", "Word", "of", "λόγος"]
    found = in_pieces(words, task.vocabulary)
    assert len(found.numbers) == len(found.words)
    assert found.words == sorted(found.words)
    for place, word in enumerate(words):
        numbers = [number for number, at in zip(found.numbers, found.words, strict=True) if at == place]
        assert task.vocabulary.decode(numbers) == word.lower()
    assert in_pieces([], task.vocabulary) == Pieces([], [])


def test_all_pieces_of_linked_words_are_linked():
    source, target = Pieces([5, 6, 7], [0, 0, 1]), Pieces([8, 9, 10], [0, 1, 1])
    assert piece_links({(0, 1), (1, 0)}, source, target) == {(0, 1), (0, 2), (1, 1), (1, 2), (2, 0)}


def test_a_batch_has_the_links_of_its_pieces(task):
    places = [0, 3, 2]
    batch = task.batch(places)
    assert batch.links.shape == (3, batch.sentences.entering.shape[1] - 1, batch.sentences.source.shape[1])
    for row, at in enumerate(places):
        source, target = task.train.sources[at], task.train.targets[at]
        links = {(source.words[s], target.words[t]) for t, s in batch.links[row].nonzero().tolist()}
        assert links == task.train.verses[at].links
    assert task.units(places) == int((batch.sentences.leaving >= 0).sum())


def test_the_loss_is_that_of_words_and_that_of_links(splits):
    task = task_of(small(guidance="gold", guided_strength=0.25, guided_layer=0, guided_head=1), splits)
    batch, model = task.batch([0, 1, 2]), task.model.eval()
    from regard import observe

    with torch.no_grad(), observe(model, ["transformer.decoder.layers.0.cross_attention"]) as seen:
        words = translation_loss(model, batch.sentences, 0.1)
    links = guided_alignment_loss(target_rows(seen.layers[0].weights()[:, 1], "consuming"), batch.links)
    torch.testing.assert_close(task.loss(model, batch).detach(), words + 0.25 * links)
    alone = task_of(small(guidance="none"), splits)
    alone.model.load_state_dict(model.state_dict())
    torch.testing.assert_close(alone.loss(alone.model.eval(), batch).detach(), words)


def test_the_chosen_reading_is_the_best_of_all(task):
    weights = weights_of_verses(task.model.eval(), task.validation.sources, task.validation.targets, batch=7)
    for rule in RULES:
        reading, aer = best_reading(weights, task.validation.gold, rule)
        every = {
            (layer, head, least): score_alignments(
                [verse.links(Reading(layer, head, rule, least)) for verse in weights], task.validation.gold
            ).aer
            for layer, head, least in itertools.product(range(2), (0, 1, None), LEAST)
        }
        assert aer == pytest.approx(min(every.values()))
        assert every[reading.layer, reading.head, reading.least] == pytest.approx(aer)


def test_weights_of_a_verse_are_the_same_alone_and_in_a_batch(task):
    sources, targets = task.test.sources, task.test.targets
    together = weights_of_verses(task.model.eval(), sources[:9], targets[:9])
    alone = weights_of_verses(task.model.eval(), sources[5:6], targets[5:6])
    for rule in RULES:
        torch.testing.assert_close(together[5].words(rule), alone[0].words(rule))


def test_what_is_told_has_its_interval(splits):
    gold = [GoldAlignment(len(v.source_tokens), len(v.target_tokens), v.links) for v in splits[2]]
    half = [frozenset(link for link in verse.links if link[1] % 2) for verse in splits[2]]
    found = told(half, gold)
    assert found["precision"] == 1.0
    assert found["aer_low"] < found["aer"] < found["aer_high"]
    assert found["aer"] == pytest.approx(score_alignments(half, gold).aer)


def test_ibm1_finds_the_words(splits):
    found = ibm1_links(splits[0], splits[2])
    gold = [GoldAlignment(len(v.source_tokens), len(v.target_tokens), v.links) for v in splits[2]]
    assert set(found) == {"source-target", "target-source", "intersection", "grow-diag-final-and"}
    for way, links in found.items():
        assert score_alignments(links, gold).aer < 0.02, way


def test_the_teacher_is_not_shown_what_people_linked(splits):
    blind = [verse._replace(links=frozenset()) for verse in splits[0]]
    config = small(guidance="ibm1")
    assert task_of(config, (blind, *splits[1:])).taught == task_of(config, splits).taught


@pytest.mark.parametrize(("guidance", "rule"), [("gold", "predicting"), ("ibm1", "consuming")])
def test_training_teaches_the_head(splits, guidance, rule, tmp_path):
    config = small(guidance=guidance, rule=rule, guided_layer=0, guided_head=1)
    task = task_of(config, splits)
    untaught = weights_of_verses(task.model.eval(), task.test.sources, task.test.targets)
    assert best_reading(untaught, task.test.gold, rule)[1] > 0.5
    trained = train(task, config, tmp_path)
    found = report(task, trained.model, config)
    assert found["attention"][rule]["test"]["aer"] < 0.1
    weights = weights_of_verses(trained.model.eval(), task.test.sources, task.test.targets)
    taught = [argmax_links(verse.words(rule)[0, 1]) for verse in weights]
    assert score_alignments(taught, task.test.gold).aer < 0.1
    assert found["ibm1"]["training verses"]["grow-diag-final-and"]["aer"] < 0.02
    assert trained.metrics["alignment"] == pytest.approx(1 - trained.metrics["aer"])


def test_a_layer_that_there_is_not(splits):
    with pytest.raises(ArgumentError, match="guided_layer: expected one of 2 decoder layers"):
        task_of(small(guided_layer=2), splits)
    with pytest.raises(ArgumentError, match="guided_head: expected one of 2 heads, got 2"):
        task_of(small(guided_head=2), splits)


def test_the_page_of_a_comparison_has_a_row_for_every_reading(splits):
    configs = {variant.name: variant.config for variant in variants(small())}
    assert {name: config.guidance for name, config in configs.items()} == {n: n for n in ("gold", "ibm1", "none")}
    gold = [GoldAlignment(len(v.source_tokens), len(v.target_tokens), v.links) for v in splits[2]]
    numbers = told([verse.links for verse in splits[2]], gold)
    one = {
        "attention": {rule: {"test": numbers} for rule in RULES},
        "ibm1": {text: {"grow-diag-final-and": numbers} for text in ("training verses", "all verses")},
    }
    lines = page(dict.fromkeys(configs, one)).splitlines()
    assert len(lines) == 2 + 3 * 2 + 2
    assert lines[2] == "|one head taught by people, consuming step|0.000|0.000-0.000|1.000|1.000|1.000|"
