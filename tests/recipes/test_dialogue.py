"""The dialogue recipe: training, resuming, replies that depend on what was said alone, and a short comparison."""

import json
import os
import signal
import threading

import pytest
import torch

from regard import ArgumentError, CheckpointError, DataError
from regard.recipes.dialogue import compare as comparison
from regard.recipes.dialogue.config import STORIES, Config
from regard.recipes.dialogue.data import CHITCHAT, FIRST, SECOND, Conversation, encoded, make_tokenizer, read_chitchat
from regard.recipes.dialogue.model import MEMORIES
from regard.recipes.dialogue.recipe import make_task, report, run
from regard.recipes.dialogue.reply import Session, trained
from regard.recipes.dialogue.tasks import DEPTHS, build, depth_of
from regard.training.loop import train
from regard.training.sources import fetch

TINY = {
    "embed_dim": 16, "num_heads": 2, "num_layers": 2, "segment": 12, "reach": 12, "slots": 2, "batch_tokens": 256,
    "most_tokens": 48, "steps": 4, "warmup_steps": 1, "dropout_p": 0.1, "vocabulary": 320, "threads": 1,
    "precision": "float32", "evaluate_every": 4, "validation_conversations": 4,
}  # fmt: skip
TINY_STORIES = {
    **STORIES, **TINY, "data": "babi", "dropout_p": 0.0, "distances": (1, 3), "story_turns": 6, "test_stories": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Some of chitchat where it is in the cache, else words of our own."""
    path = tmp_path_factory.mktemp("dialogues") / "own.jsonl"
    try:
        folder = fetch(CHITCHAT, download=False, recipe="dialogue")
        found = [each.turns for each in read_chitchat(folder / "chitchat_dataset" / "dataset.json")]
        talks = [turns for turns in found if all(turn.strip() for turn in turns)][:60]
    except DataError:
        talks = [tuple(f"well {number} {place}" for place in range(4 + number % 40)) for number in range(60)]
    path.write_text("".join(json.dumps({"turns": [turn[:200] for turn in turns]}) + "\n" for turns in talks), "utf-8")
    return str(path)


@pytest.mark.parametrize("memory", MEMORIES)
def test_training_on_conversations_learns(own, tmp_path, memory):
    config = Config(path=own, memory=memory, **{**TINY, "steps": 12, "learning_rate": 1e-2, "dropout_p": 0.0})
    task = make_task(config, download=False)
    before = task.evaluate(task.model.eval())["loss"]
    found = train(task, config, tmp_path)
    assert found.metrics["loss"] < before - 0.3
    told = report(task, found.model, config)
    assert list(told["perplexity"]) == ["1-4", "5-8", "9-16", "17-32", "33+"]
    assert len(told["tokens"]) == len(told["losses"]) == len(task.corpus.parts["test"])
    assert sum(map(sum, told["tokens"])) == sum(each.length for each in task.corpus.examples("test"))


def test_a_run_that_was_stopped_ends_at_the_same_weights(own, tmp_path):
    config = Config(path=own, memory="ema", **TINY)
    whole = train(make_task(config, download=False), config, tmp_path / "whole").model.state_dict()
    task = make_task(config, download=False)
    loss, calls = task.loss, []

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    assert threading.current_thread() is threading.main_thread()
    task.loss = stopping
    assert not train(task, config, tmp_path / "cut").finished
    cut = train(make_task(config, download=False), config, tmp_path / "cut").model.state_dict()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


def test_long_conversations_are_trained_on_in_parts_and_nothing_is_lost(own):
    task = make_task(Config(path=own, **TINY), download=False)
    assert max(example.length for example in task.examples) == 48
    assert sum(example.length for example in task.examples) == sum(
        each.length for each in task.corpus.examples("train")
    )
    numbers = sorted(place for batch in task.order(3) for place in batch)
    assert numbers == list(range(len(task.examples)))
    assert task.order(3) == task.order(3) != task.order(4)


def test_depths_are_told_apart_by_turn():
    turns = torch.tensor([1, 4, 5, 8, 9, 16, 17, 32, 33, 500])
    assert depth_of(turns).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(DEPTHS) == 5


def test_stories_ask_for_answers_alone_and_are_new_in_each_epoch():
    task = make_task(Config(**TINY_STORIES), download=False)
    batch = task.batch([0, 1, 2])
    assert batch["inputs"].shape == (3, 35)
    assert task.units([0, 1, 2]) == int((batch["targets"] >= 0).sum())
    assert (batch["targets"][:, -1] >= 0).all()
    first, second = ({number for each in task.order(epoch) for number in each} for epoch in (0, 1))
    assert not first & second


@pytest.mark.parametrize("memory", MEMORIES)
def test_stories_are_learned_from_and_reported_by_distance(tmp_path, memory):
    config = Config(**{**TINY_STORIES, "memory": memory})
    task = make_task(config, download=False)
    told = report(task, train(task, config, tmp_path).model, config)
    assert set(told["accuracy"]) == {"1", "3"}
    assert [len(each) for each in told["right"].values()] == [6, 6]


@pytest.fixture(scope="module")
def words():
    return make_tokenizer(["hello there how are you", "i am well and how are you", "what is new"], 300)


def session(words, memory: str) -> Session:
    config = Config(memory=memory, **{**TINY, "dropout_p": 0.0})
    return Session(build(config, 3 + words.get_vocab_size(), words.to_str()).eval(), words, 12)


def drawn(one: Session) -> str:
    return one.reply(most_tokens=30, temperature=1.0, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_reply_reads_what_was_said_as_training_would(words, memory):
    said = ("hello there how are you", "i am well", "what is new and how are you there")
    one = session(words, memory)
    tokens = [*encoded(Conversation(said), words, end=False).tokens.tolist(), SECOND]
    for text in said:
        one.say(text)
    assert one._open == tokens[-1 - len(one._open) : -1]
    for read in range(1, len(tokens) + 1):  # wherever a segment may end
        one = session(words, memory)
        one._read(tokens[:read])
        state, whole = None, None
        for begin in range(0, read, 12):
            whole, state = one.model(torch.tensor([tokens[begin : min(begin + 12, read)]]), state)
        torch.testing.assert_close(one._next(), one.model.logits(whole)[0, -1], rtol=1e-5, atol=1e-5)
    assert tokens[0] == FIRST


@pytest.mark.parametrize("memory", MEMORIES)
def test_one_dialogue_knows_nothing_of_another(words, memory):
    alone = session(words, memory)
    alone.say("hello there")
    expected = drawn(alone)
    other, one = session(words, memory), session(words, memory)
    other.model = one.model
    for text in ("what is new", "you are well", "what are you and what is there", "how is hello"):
        other.say(text)
        drawn(other)
    one.say("hello there")
    assert drawn(one) == expected
    assert drawn(other) != expected or drawn(other) != expected


@pytest.fixture(scope="module")
def folder(own, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    config = Config(path=own, **TINY)
    train(make_task(config, download=False), config, place)
    return place


def test_replies_are_seeded_and_texts_of_all_kinds_are_read(folder, tmp_path):
    first = run("hello, how are you?", folder, seed=4)
    assert len(first) == 1
    assert first == run("hello, how are you?", folder, seed=4)
    for text in ("", "你好", "\N{GRINNING FACE}", "\x00\x1b[31m", "so " * 3000, "a\ud800"):
        assert len(run(text, folder, most_tokens=3)) == 1
    path = tmp_path / "talks.jsonl"
    path.write_text('{"turns": ["hello", "hi", "so"]}\n{"turns": ["hello, how are you?"]}\n', encoding="utf-8")
    assert run(str(path), folder, seed=4)[1] == first[0]
    assert run(path.rename(tmp_path / "talks.txt"), folder, seed=4)[1] == first[0]
    assert len(run("I read talks.jsonl", folder, most_tokens=3)) == 1  # a text, and no file
    with pytest.raises(ArgumentError, match="temperature: expected a number of at least 0"):
        run("a", folder, temperature=float("nan"))


def test_wrong_files_and_folders_are_told(folder, tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text('{"turns": ["hello"]}\n{"turns": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"talks\.jsonl.*2.*turns"):
        run(str(path), folder)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        run(str(tmp_path / "none.jsonl"), folder)
    with pytest.raises(CheckpointError, match="regard train dialogue"):
        run("hello", tmp_path / "nowhere")
    config = Config(**TINY_STORIES)
    train(make_task(config, download=False), config, tmp_path / "stories")
    with pytest.raises(CheckpointError, match="expected a model of conversations"):
        trained(tmp_path / "stories")


def test_a_comparison_is_written_and_not_trained_again(own, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "STORIES", {**TINY_STORIES, "steps": 2})
    said: list[str] = []
    config = Config(path=own, **{**TINY, "steps": 2})
    page = comparison.compare(config, tmp_path, download=False, say=said.append)
    facts = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(facts["perplexity"]) == list(facts["accuracy"]) == list(MEMORIES)
    assert facts["accuracy"]["ema"]["by_distance"]["3"]["low"] <= facts["accuracy"]["ema"]["by_distance"]["3"]["high"]
    assert comparison.findings(facts)
    for picture in ("dialogue-turns.png", "dialogue-distances.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    written = page.read_text(encoding="utf-8")
    again: list[str] = []
    comparison.compare(config, tmp_path, download=False, say=again.append)
    assert not any("finished after" in line for line in again)
    assert page.read_text(encoding="utf-8") == written
