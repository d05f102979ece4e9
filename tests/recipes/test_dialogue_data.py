"""Conversations: who may be in which part, and what becomes of their words."""

import json

import pytest

from regard import DataError
from regard.recipes.dialogue.data import (
    CHITCHAT,
    END,
    FIRST,
    FREQUENT,
    SECOND,
    TEXT,
    Conversation,
    encoded,
    load,
    make_tokenizer,
    numbers_of,
    read_chitchat,
    read_own,
    split_by_speaker,
    split_by_text,
    written,
)
from regard.training.sources import fetch

PARTS = ("train", "validation", "test")


def chat(number: int, one: str, other: str) -> Conversation:
    return Conversation((f"hello {number}", "hi", "how are you", f"well {number}"), (one, other))


def crowd() -> list[Conversation]:
    """Pairs who talk among themselves, and one person who talks to everybody."""
    pairs = [chat(number, f"a{number}", f"b{number}") for number in range(200)]
    again = [chat(1000 + number, f"b{number}", f"a{number}") for number in range(200)]
    return [*pairs, *again, *(chat(2000 + number, "host", f"a{number}") for number in range(200))]


def speakers_of_parts(parts, conversations):
    talks: dict[str, int] = {}
    for each in conversations:
        for speaker in each.speakers:
            talks[speaker] = talks.get(speaker, 0) + 1
    return {
        part: {speaker for each in parts[part] for speaker in each.speakers if talks[speaker] <= FREQUENT}
        for part in PARTS
    }


def check_parts(parts, conversations):
    assert sum(len(parts[part]) for part in PARTS) == len(conversations)
    assert {each for part in PARTS for each in parts[part]} == set(conversations)
    speakers = speakers_of_parts(parts, conversations)
    assert not speakers["train"] & speakers["test"]
    assert not speakers["train"] & speakers["validation"]
    assert not speakers["validation"] & speakers["test"]
    texts = {part: {each.turns for each in parts[part]} for part in PARTS}
    assert not texts["train"] & (texts["test"] | texts["validation"])


def test_a_speaker_with_few_conversations_is_in_one_part():
    conversations = crowd()
    parts = split_by_speaker(conversations)
    check_parts(parts, conversations)
    assert all(any("host" in each.speakers for each in parts[part]) for part in PARTS)
    assert 0.6 < len(parts["train"]) / len(conversations) < 0.95


def test_the_split_does_not_hang_on_the_order_of_what_it_is_given():
    conversations = [chat(number, f"a{number}", f"b{number}") for number in range(60)]
    forth, back = split_by_speaker(conversations), split_by_speaker(conversations[::-1])
    assert all(set(forth[part]) == set(back[part]) for part in PARTS)


def test_dialogues_without_ids_are_split_by_their_text_and_doubles_stand_once():
    conversations = [Conversation((f"hello {number}", "hi")) for number in range(80)]
    parts = split_by_text([*conversations, *conversations])
    check_parts(parts, conversations)


def test_too_few_dialogues_are_told():
    with pytest.raises(DataError, match=r"too few dialogues: none for the part 'validation'|'test'|'train'"):
        split_by_text([Conversation(("hello", "hi"))])


def test_chitchat_is_read_as_turns_of_two_speakers(tmp_path):
    def turn(sender, *texts):
        return [{"text": text, "timestamp": "", "sender": sender} for text in texts]

    talk = [turn("x", "hello", "you"), turn("y", "hi"), turn("x", "so"), turn("y", "bye")]
    raw = {
        "2": {"messages": talk},
        "1": {"messages": talk[:3]},
        "3": {"messages": [turn("x", "a"), turn("x", "b"), turn("x", "c"), turn("x", "d")]},
        "4": {"messages": [*talk[:2], turn("z", "so"), turn("y", "bye")]},
        "5": {"messages": talk},
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert read_chitchat(path) == [Conversation(("hello\nyou", "hi", "so", "bye"), ("x", "y"))]


def test_words_come_back_and_never_look_like_a_speaker():
    tokenizer = make_tokenizer(["hello there", "how are you"], 300)
    said = Conversation(("hello <first>", "I \N{GRINNING FACE} 你好\x00", ""))
    example = encoded(said, tokenizer)
    tokens = [int(token) for token in example.tokens]
    assert [token for token in tokens if token < TEXT] == [FIRST, SECOND, FIRST, END]
    second = tokens.index(SECOND)
    assert written(tokens[:second], tokenizer) == said.turns[0]
    assert written(tokens[second:-2], tokenizer) == said.turns[1]
    assert int(example.turns[0]) == 1
    assert int(example.turns[-1]) == 3
    assert written(numbers_of(["a\ud800b"], tokenizer)[0], tokenizer) == "a?b"


def test_learning_the_tokenizer_writes_nothing(capfd):
    """Standard output is the report's: what stands there under --json is JSON alone."""
    make_tokenizer(["hello there", "how are you"] * 50, 300)
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_is_a_function_of_its_texts():
    texts = ["what is said here is said there", "and here", "there and here"] * 5
    assert make_tokenizer(texts, 280).to_str() == make_tokenizer(texts, 280).to_str()


def test_own_dialogues_join_what_one_says_in_a_row(tmp_path):
    path = tmp_path / "own.jsonl"
    turns = [{"speaker": "x", "text": "a"}, {"speaker": "x", "text": "b"}, {"speaker": "y", "text": "c"}]
    path.write_text(json.dumps({"turns": turns}) + "\n" + json.dumps({"turns": ["d", "e"]}), encoding="utf-8")
    assert read_own(path) == [Conversation(("a\nb", "c"), ("x", "y")), Conversation(("d", "e"), ("A", "B"))]


def test_three_speakers_are_refused_by_number(tmp_path):
    path = tmp_path / "own.jsonl"
    turns = [{"speaker": name, "text": "a"} for name in "xyz"]
    path.write_text(json.dumps({"turns": turns}), encoding="utf-8")
    with pytest.raises(DataError, match=r"own\.jsonl: dialogue 1: expected two speakers, got 3: 'x', 'y', 'z'"):
        read_own(path)


def test_chitchat_itself_is_split_without_leaks():
    try:
        folder = fetch(CHITCHAT, download=False, recipe="dialogue")
    except DataError:
        pytest.skip("chitchat is not in the cache: regard train dialogue --download")
    conversations = read_chitchat(folder / "chitchat_dataset" / "dataset.json")
    assert len(conversations) == 3243
    parts = split_by_speaker(conversations)
    check_parts(parts, conversations)
    assert min(len(parts["validation"]), len(parts["test"])) > 150


def test_absent_data_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    load.cache_clear()
    with pytest.raises(DataError, match="regard train dialogue --download"):
        load(None, vocabulary=300, download=False)
