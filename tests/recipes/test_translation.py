"""The translation recipe: pieces, batches, scores, baselines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU

from regard import ArgumentError, DataError
from regard.recipes import find
from regard.recipes.equal_budget import parameters_of
from regard.recipes.translation.baselines import TranslationMemory
from regard.recipes.translation.compare import MAIN, page, variants
from regard.recipes.translation.model import padded, sentences_of, translation_loss
from regard.recipes.translation.recipe import Config, build, report, task_of
from regard.recipes.translation.scoring import (
    bleu,
    bleu_difference,
    bleu_interval,
    score_by_domain,
    sentence_counts,
)
from regard.recipes.translation.task import PROSE
from regard.recipes.translation.vocabulary import BEGIN, END, OTHER, PAD, Vocabulary
from tests.recipes.translation_cases import made_up_corpus, pieces_of, tiny_task

TEXTS = [
    "the cat sat 12 on 𠮷 mat.",
    "大红狗，跑。OK 2 go",
    "a</s><pad> <0x41> <s>",
    "👩 flag “quoted” ñandú שלום",
    "one, two; three!",
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return pieces_of(made_up_corpus())


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_can_be_written_in_pieces_and_read_again(vocabulary, text):
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_no_text_holds_a_special_piece(vocabulary):
    for text in TEXTS:
        assert min(vocabulary.encode(text)) >= len((PAD, BEGIN, END, OTHER))


def test_pieces_say_which_characters_they_cover(vocabulary):
    text = "the  cat 𠮷12"
    pieces = vocabulary.pieces(text)
    assert [piece.number for piece in pieces] == vocabulary.encode(text)
    assert "".join(dict.fromkeys(text[piece.first : piece.last] for piece in pieces)).replace(" ", "") == "thecat𠮷12"
    assert all(0 <= piece.first <= piece.last <= len(text) for piece in pieces)
    of_rare = [piece for piece in pieces if text[piece.first : piece.last] == "𠮷"]
    assert len(of_rare) == 4  # its bytes, which all cover the one character


def test_a_vocabulary_is_saved_and_loaded_and_others_are_refused(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "pieces.json")
    again = Vocabulary.load(tmp_path / "pieces.json")
    assert [again.encode(text) for text in TEXTS] == [vocabulary.encode(text) for text in TEXTS]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="is no vocabulary of tokenizers"):
        Vocabulary.load(tmp_path / "other.json")


def test_the_same_texts_give_the_same_pieces():
    first, second = (pieces_of(made_up_corpus()) for _ in range(2))
    assert [first.encode(text) for text in TEXTS] == [second.encode(text) for text in TEXTS]


def test_sentences_are_padded_and_shifted():
    sentences = sentences_of([[7, 8], [9]], [[5], [6, 7]])
    assert sentences.source.tolist() == [[7, 8], [9, PAD]]
    assert sentences.lengths.tolist() == [2, 1]
    assert sentences.entering.tolist() == [[BEGIN, 5, PAD], [BEGIN, 6, 7]]
    assert sentences.leaving.tolist() == [[5, END, -1], [6, 7, END]]


@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_padding_changes_no_loss(model):
    task, _ = tiny_task(model=model)
    task.model.eval()
    with torch.no_grad():
        together = float(translation_loss(task.model, task.batch([0, 1, 2, 3]), 0.1))
        alone = sum(float(translation_loss(task.model, task.batch([place]), 0.1)) for place in range(4))
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_no_target_piece_sees_a_later_one(model):
    task, _ = tiny_task(model=model)
    sentences = task.batch([0])
    states = task.model.eval().states(sentences)
    changed = sentences.entering.clone()
    changed[:, -1] = 100
    after = task.model.states(sentences._replace(entering=changed))
    assert torch.allclose(states[:, :-1], after[:, :-1], atol=1e-6)
    assert not torch.allclose(states[:, -1], after[:, -1], atol=1e-6)


@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_alone_and_in_company_the_same_is_written(model):
    task, _ = tiny_task(model=model)
    pieces = task.vocabulary.encode_all([pair.source for pair in task.corpus.test])
    lengths = torch.tensor([len(each) for each in pieces])
    together = task.model.generate(padded(pieces), lengths, beams=3, most_pieces=12).tokens[:, 0].tolist()
    for row, source, length in zip(together, pieces, lengths, strict=True):
        alone = task.model.generate(padded([source]), length[None], beams=3, most_pieces=12).tokens[0, 0].tolist()
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {PAD}


def test_an_epoch_has_all_prose_once_and_a_part_of_the_rest():
    task, _ = tiny_task(others=0.25)
    train = task.corpus.train
    prose = {place for place, pair in enumerate(train) if pair.domain in PROSE}
    for epoch in range(3):
        places = [place for batch in task.order(epoch) for place in batch]
        assert len(places) == len(set(places))
        assert prose <= set(places)
        assert len(set(places) - prose) == round(0.25 * len(prose))
    assert task.order(0) == task.order(0)
    assert task.order(0) != task.order(1)


def test_what_is_no_prose_is_marked():
    task, _ = tiny_task()
    for place, pair in enumerate(task.corpus.train[:20]):
        first = int(task.batch([place]).source[0, 0])
        assert (first == OTHER) == (pair.domain not in PROSE)


def test_units_are_the_pieces_the_loss_is_over():
    task, _ = tiny_task()
    assert task.units([0, 5, 9]) == int((task.batch([0, 5, 9]).leaving >= 0).sum())


def test_the_recurrent_model_has_as_many_parameters():
    config = Config(pieces=400, embed_dim=64, num_heads=4)
    whole, gru = (
        parameters_of(build(config.model_copy(update={"model": kind}), 400)) for kind in ("transformer", "gru")
    )
    assert 0.97 * whole < gru <= whole


def test_the_memory_gives_the_nearest_sentence():
    memory = TranslationMemory(["the cat sat", "a red dog", "the dog sat"], ["猫坐", "红狗", "狗坐"])
    assert memory.translate("The DOG sat!") == "狗坐"
    assert memory.translate("red") == "红狗"
    assert memory.translate("unknown words") == "猫坐"
    assert memory.translate("") == "猫坐"


def test_bleu_from_counts_is_that_of_sacrebleu():
    expected = ["猫坐在垫子上。", "银行在河边。", "他喜欢钱和鱼。"]
    written = ["猫在垫子上坐。", "银行在河边。", "他喜欢吃鱼。"]
    theirs = BLEU(tokenize="zh").corpus_score(written, [expected]).score
    assert bleu(sentence_counts(written, expected, "zh")) == pytest.approx(theirs)


def test_identical_texts_score_100_and_empty_ones_0():
    expected = [pair.target for pair in made_up_corpus().test]
    counts = sentence_counts(expected, expected, "zh")
    assert bleu(counts) == pytest.approx(100.0)
    assert bleu_interval(counts) == pytest.approx({"bleu": 100.0, "low": 100.0, "high": 100.0})
    assert bleu(sentence_counts([""] * len(expected), expected, "zh")) == 0.0


def test_a_difference_is_on_the_same_draws():
    pairs = made_up_corpus().test
    expected = [pair.target for pair in pairs]
    worse = [text[:-2] for text in expected]
    better, less = (sentence_counts(texts, expected, "zh") for texts in (expected, worse))
    assert bleu_difference(better, better) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    found = bleu_difference(better, less)
    assert 0 < found["low"] < found["difference"] < found["high"]


def test_one_sentence_has_no_interval_and_ends_no_run():
    counts = sentence_counts(["大红狗，跑。"], ["大红狗，跑了。"], "zh")
    found = bleu_interval(counts)
    assert 0 < found["bleu"] == found["low"] == found["high"] < 100
    assert bleu_difference(counts, counts) == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_pairs_of_which_none_can_be_held_out_are_told():
    corpus = made_up_corpus()
    for emptied in (replace(corpus, validation=[]), replace(corpus, test=[])):
        with pytest.raises(DataError, match=r"of 3\d\d pairs none can be held out .* Give more of them\."):
            task_of(tiny_task()[1], emptied, pieces_of(corpus))


def test_scores_come_by_domain():
    task, config = tiny_task(beams=1)
    found = report(task, task.model, config)
    assert set(found["scores"]) == {"all"} | {pair.domain for pair in task.corpus.test}
    assert found["scores"]["all"]["sentences"] == len(task.corpus.test) == len(found["written"])
    assert score_by_domain(found["written"], task.corpus.test, "zh") == found["scores"]


def test_the_variants_differ_in_one_thing_each_and_what_hangs_on_it():
    chosen = {variant.name: variant.config for variant in variants(Config(steps=5))}
    main = chosen.pop(MAIN).decisive()
    changed = {
        name: {key for key, value in each.decisive().items() if value != main[key]} for name, each in chosen.items()
    }
    assert changed == {"one-head": {"num_heads"}, "gru": {"model", "guided_rule", "learning_rate"}}


def test_the_page_tells_every_system():
    score = {"all": {"bleu": 25.0, "low": 24.0, "high": 26.0, "chrf": 30.0, "sentences": 3}}
    facts = {
        "language": "zh",
        "corpus": {"test": 1000},
        "scores": dict.fromkeys((MAIN, "one-head", "gru", "memory"), score),
        "above": {"memory": {"difference": 5.5, "low": 5.0, "high": 6.0}},
        "training": {MAIN: {"parameters": 8_000_000, "steps": 10, "seconds": 120.0, "learning_rate": 0.012}},
    }
    text = page(facts)
    assert "25.0 (24.0 to 26.0)" in text
    assert "+5.5 (+5.0 to +6.0)" in text
    assert "8,000,000" in text


def test_recipes_are_found_by_name():
    assert find("translation").Config is Config
    with pytest.raises(ArgumentError, match=r"recipe: expected one of translation, .* got 'poetry'"):
        find("poetry")


def test_the_learning_rate_is_that_of_model_and_optimizer():
    assert (Config().optimizer, Config().learning_rate) == ("muon", 0.012)
    assert Config(model="gru").learning_rate == 0.003
    assert Config(optimizer="adamw").learning_rate == Config(optimizer="adamw", model="gru").learning_rate == 0.0015
    assert Config(optimizer="adamw", learning_rate=0.012).learning_rate == 0.012


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (Config(), {"transformer": 0.012, "one-head": 0.012, "gru": 0.003}),
        (Config(model="gru"), {"transformer": 0.012, "one-head": 0.012, "gru": 0.003}),
        (Config(learning_rate=0.006), {"transformer": 0.006, "one-head": 0.006, "gru": 0.006}),
        (Config(optimizer="adamw"), {"transformer": 0.0015, "one-head": 0.0015, "gru": 0.0015}),
    ],
)
def test_compared_models_have_learning_rates_of_their_own(config, rates):
    assert {each.name: each.config.learning_rate for each in variants(config)} == rates


def test_runs_from_before_there_was_a_choice_had_adamw():
    saved = Config(optimizer="adamw", absolute=None).model_dump(mode="json")
    older = {key: value for key, value in saved.items() if key not in {"optimizer", "absolute"}}
    assert Config.model_validate(Config.completed(older)) == Config.model_validate(saved)
    assert Config.model_validate(saved).differences(older) == []
    assert Config().differences(older)


def test_a_gru_from_before_it_could_be_taught_goes_on():
    config = Config(model="gru", optimizer="adamw")
    saved = config.model_dump(mode="json")
    older = {key: value for key, value in saved.items() if not key.startswith("guid") and key != "optimizer"}
    assert config.differences(older) == []
