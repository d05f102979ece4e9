"""The translation recipe with a head that is taught where to look, by links that nobody made."""

from __future__ import annotations

import pytest
import torch

from regard import ArgumentError, observe
from regard.explain import guided_alignment_loss, target_rows
from regard.recipes.translation import recipe
from regard.recipes.translation.guidance import PieceLinks
from regard.recipes.translation.model import sentences_of, translation_loss
from regard.recipes.translation.task import encoded
from regard.recipes.translation.vocabulary import BEGIN, OTHER
from regard.training import train
from tests.recipes.translation_cases import TINY, WORDS, made_up_corpus, pieces_of, tiny_task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    return tmp_path


def test_a_word_is_linked_to_its_translation():
    corpus = made_up_corpus()
    vocabulary = pieces_of(corpus)
    sources, targets = encoded(corpus.train, vocabulary)
    links = PieceLinks.by_ibm1(sources, targets)
    assert len(links) == len(corpus.train)
    right = wrong = 0
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        for at, row in links[number]:
            assert source[at] != OTHER
            word, character = vocabulary.decode([source[at]]).strip(), vocabulary.decode([target[row]])
            if word in WORDS and character in WORDS.values():
                right, wrong = right + (WORDS[word] == character), wrong + (WORDS[word] != character)
    assert right > 1000
    assert wrong < 0.02 * right


def test_a_mark_at_the_beginning_moves_the_links_and_has_none():
    sources, targets = [[10, 11], [11, 12], [10, 12]] * 4, [[20, 21], [21, 22], [20, 22]] * 4
    plain = PieceLinks.by_ibm1(sources, targets)
    marked = PieceLinks.by_ibm1([[OTHER, *source] for source in sources], targets)
    for number in range(len(sources)):
        assert plain[number] == [(0, 0), (1, 1)]
        assert marked[number] == [(1, 0), (2, 1)]


def test_links_are_saved_and_a_pair_may_have_none(tmp_path):
    links = PieceLinks(torch.tensor([[0, 1], [2, 0], [40_000, 3]], dtype=torch.int32), torch.tensor([2, 0, 1]))
    links.save(tmp_path / "links.safetensors")
    again = PieceLinks.load(tmp_path / "links.safetensors")
    assert [again[number] for number in range(len(again))] == [[(0, 1), (2, 0)], [], [(40_000, 3)]]


def test_the_loss_is_that_of_words_and_that_of_links():
    task, config = tiny_task(guidance="ibm1", guided_layer=-1, guided_head=2, guided_strength=0.25, dropout_p=0.0)
    assert task.taught is not None
    batch, model = task.batch([0, 1, 2]), task.model.eval()
    last = config.decoder_layers - 1
    with torch.no_grad(), observe(model, [f"transformer.decoder.layers.{last}.cross_attention"]) as seen:
        words = translation_loss(model, batch.sentences, config.label_smoothing)
    for row, number in enumerate([0, 1, 2]):
        expected = {(target, source) for source, target in task.taught[0][number]}
        assert {tuple(each) for each in batch.links[row].nonzero().tolist()} == expected
    links = guided_alignment_loss(target_rows(seen.layers[0].weights()[:, 2], "consuming"), batch.links)
    assert float(links) > 0
    torch.testing.assert_close(task.loss(model, batch).detach(), words + 0.25 * links)


def test_a_recurrent_model_is_taught_by_its_own_weights():
    task, config = tiny_task(model="gru", guidance="ibm1")
    batch, model = task.batch([0, 1, 2]), task.model.eval()
    states, weights = model.states_and_weights(batch.sentences)
    assert torch.equal(states, model.states(batch.sentences))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    padding = torch.arange(weights.shape[2]) >= batch.sentences.lengths[:, None]
    assert not weights.masked_select(padding[:, None]).any()
    # the weights of the last step, from a model that has written one piece less
    shorter, _ = model.states_and_weights(sentences_of([[7, 8, 9]], [[5, 6]]))
    longer, _ = model.states_and_weights(sentences_of([[7, 8, 9]], [[5, 6, 4]]))
    torch.testing.assert_close(shorter, longer[:, :3])
    words = translation_loss(model, batch.sentences, config.label_smoothing)
    links = guided_alignment_loss(weights[:, :-1], batch.links)
    torch.testing.assert_close(task.loss(model, batch), words + 0.5 * links)


@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_a_taught_head_looks_at_the_linked_piece(model, tmp_path):
    def cross_entropy_of_links(**settings):
        task, config = tiny_task(
            model=model, steps=40, optimizer="adamw", learning_rate=5e-3, average_decay=0.0, **settings
        )
        trained = train(task, config, tmp_path / str(settings)).model
        taught, _ = tiny_task(model=model, guidance="ibm1", guided_strength=1.0)
        batch = taught.batch(range(30))
        with torch.no_grad():
            both = taught.loss(trained.eval(), batch)
            return float(both - translation_loss(trained, batch.sentences, config.label_smoothing))

    assert cross_entropy_of_links(guidance="ibm1", guided_strength=1.0) < 0.8 * cross_entropy_of_links()


def test_links_are_counted_once(monkeypatch, cache):
    tiny_task(guidance="ibm1")
    (kept,) = (cache / "prepared").glob("translation-links-*.safetensors")
    monkeypatch.setattr(recipe.PieceLinks, "by_ibm1", lambda *_: pytest.fail("counted again"))
    task, _ = tiny_task(guidance="ibm1")
    assert task.taught is not None
    assert len(task.taught[0]) == len(task.corpus.train)
    assert kept.exists()


def test_links_of_another_vocabulary_are_others(cache):
    corpus, config = made_up_corpus(), recipe.Config.model_validate({**TINY, "guidance": "ibm1"})
    recipe.task_of(config, corpus, pieces_of(corpus))
    other = pieces_of(corpus, 300)
    task = recipe.task_of(config, corpus, other)
    assert len(list((cache / "prepared").glob("translation-links-*.safetensors"))) == 2
    for number, (source, target) in enumerate(zip(*encoded(corpus.train, other), strict=True)):
        assert all(at < len(source) and row < len(target) for at, row in task.taught[0][number])


def test_the_run_knows_its_links():
    plain, taught, again = (tiny_task(**settings)[0] for settings in ({}, {"guidance": "ibm1"}, {"guidance": "ibm1"}))
    assert taught.data_digest() == again.data_digest() != plain.data_digest()
    taught.taught[0]._links[0, 0] += 1
    assert taught.data_digest() != again.data_digest()


def test_counting_is_told(capsys):
    tiny_task(guidance="ibm1")
    assert "IBM model 1 links the pieces of 3" in capsys.readouterr().err
    tiny_task(guidance="ibm1")
    assert capsys.readouterr().err == ""


def test_a_recurrent_model_looks_before_it_reads():
    """So the weights of a step say nothing of the piece that it reads: they are those of the one it predicts."""
    task, _ = tiny_task(model="gru")
    model = task.model.eval()
    first, second = (model.states_and_weights(sentences_of([[7, 8, 9]], [[5, last, 4]]))[1] for last in (6, 10))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.equal(first[:, 3], second[:, 3])
    with pytest.raises(ValueError, match="guided_rule: expected predicting with model=gru"):
        tiny_task(model="gru", guidance="ibm1", guided_rule="consuming")


def test_no_guidance_gives_plain_batches_and_needs_no_links(cache):
    task, _ = tiny_task()
    assert task.taught is None
    assert int(task.batch([0]).entering[0, 0]) == BEGIN
    assert not (cache / "prepared").exists()


def test_a_head_that_there_is_not():
    with pytest.raises(ArgumentError, match="guided_layer: expected one of 2 decoder layers, got 2"):
        tiny_task(guidance="ibm1", guided_layer=2)
    with pytest.raises(ArgumentError, match="guided_head: expected one of 4 heads, got 4"):
        tiny_task(guidance="ibm1", guided_head=4)
    tiny_task(model="gru", guidance="ibm1", guided_layer=2, guided_head=4)  # it has but one
