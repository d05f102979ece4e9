"""Text to inputs: tokens, their place in the text, what is special, what was cut; and texts that cannot be used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from regard._errors import ArgumentError, DataError, RegardError
from regard._text import FILE_LIMIT, check_text, read_text
from regard.xray.encode import CHARACTER_LIMIT, Stream, encode, token_room
from regard.xray.loading import LoadedModel, load
from tests.models import tiny

HARD = 'The 银行 bank 👩‍👧 e\u0301 עברית </script> "\u2028\0x'


@pytest.fixture(scope="module")
def gpt2(tiny_gpt2: Path) -> LoadedModel:
    return load(str(tiny_gpt2))


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> LoadedModel:
    return load(str(tiny_bert))


@pytest.fixture(scope="module")
def t5(tiny_t5: Path) -> LoadedModel:
    return load(str(tiny_t5))


def refusal(loaded: LoadedModel, *arguments: object, error: type[RegardError] = DataError, **named: object) -> str:
    with pytest.raises(error) as caught:
        encode(loaded, *arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_covers(stream: Stream, text: str) -> None:
    """Offsets never step back, and every character that is no space lies under some token."""
    places = [place for place, special in zip(stream.offsets, stream.special, strict=True) if not special]
    assert places == sorted(places, key=lambda place: place[0])
    covered = {index for start, end in places for index in range(start, end)}
    assert all(index in covered for index, character in enumerate(text) if not character.isspace())
    assert len(stream.tokens) == len(stream.offsets) == len(stream.special)


def test_hard_characters_keep_their_place(gpt2: LoadedModel, bert: LoadedModel) -> None:
    for loaded, name in ((gpt2, "decoder"), (bert, "encoder")):
        encoded = encode(loaded, HARD)
        stream = encoded.streams[name]
        assert list(encoded.streams) == [name]
        assert encoded.inputs["input_ids"].shape == (1, len(stream.tokens))
        assert not stream.truncated
        assert_covers(stream, HARD)
        loaded.model(**encoded.inputs)


def test_special_tokens_are_those_that_stand_for_no_text(bert: LoadedModel) -> None:
    stream = encode(bert, "a bank</s>b").streams["encoder"]
    assert stream.tokens[0] == "<s>"
    assert stream.special[0]
    assert stream.offsets[0] == (0, 0)
    assert sum(stream.special) == 3  # the one that was typed, too
    assert stream.shown(0) == "<s>"
    assert "".join(stream.shown(index) for index in range(1, len(stream.tokens) - 1)) == "a bank</s>b"


def test_a_long_text_is_cut_to_the_models_positions(gpt2: LoadedModel) -> None:
    encoded = encode(gpt2, "river bank " * 100)
    stream = encoded.streams["decoder"]
    assert (len(stream.tokens), stream.truncated) == (tiny.POSITIONS, True)
    assert encoded.notes == (f"the text was cut to its first {tiny.POSITIONS} tokens",)
    gpt2.model(**encoded.inputs)


def test_a_limit_cuts_and_keeps_the_special_tokens(bert: LoadedModel) -> None:
    stream = encode(bert, "river bank river", limit=3).streams["encoder"]
    assert stream.special == (True, False, True)
    assert stream.truncated
    message = refusal(bert, "river", limit=2, error=ArgumentError)
    assert message == "limit: expected at least 3 tokens for this tokenizer, got 2. Give a larger limit."


@pytest.mark.parametrize("unit", ["银", "银e\u0301", "ab cd "])
def test_a_million_characters_are_cut_before_the_model(gpt2: LoadedModel, unit: str) -> None:
    encoded = encode(gpt2, unit * (CHARACTER_LIMIT // len(unit) + 5))
    assert len(encoded.streams["decoder"].tokens) == tiny.POSITIONS
    assert str(CHARACTER_LIMIT) in encoded.notes[0]


def test_positions_lost_to_the_padding_index_are_not_counted() -> None:
    """As in RoBERTa, whose table of 514 rows serves 512 positions."""
    model = torch.nn.ModuleDict({"position_embeddings": torch.nn.Embedding(514, 2, padding_idx=1)})
    model.config = SimpleNamespace(max_position_embeddings=514)
    loaded = LoadedModel("m", model, None, "encoder")
    assert (token_room(loaded), token_room(loaded, 7), token_room(replace(loaded, model=Words()))) == (512, 7, None)


def test_one_token_is_enough(gpt2: LoadedModel) -> None:
    assert encode(gpt2, "b").inputs["input_ids"].shape == (1, 1)


def test_the_decoder_consumes_the_target_one_place_late(t5: LoadedModel) -> None:
    encoded = encode(t5, "the river", "a bank")
    target = t5.tokenizer("a bank")["input_ids"]
    assert target[-1] == tiny.END
    assert encoded.inputs["decoder_input_ids"].tolist() == [[tiny.PAD, *target[:-1]]]
    stream = encoded.streams["decoder"]
    assert (stream.tokens[0], stream.special[0], stream.offsets[0]) == ("<pad>", True, (0, 0))
    assert "".join(stream.shown(index) for index in range(1, len(stream.tokens))) == "a bank"
    assert encoded.streams["encoder"].tokens[-1] == "</s>"
    assert encoded.notes == ()


def test_both_sides_are_cut(t5: LoadedModel) -> None:
    encoded = encode(t5, "river " * 50, "bank " * 50, limit=10)
    assert encoded.inputs["input_ids"].shape == (1, 10)
    assert encoded.inputs["decoder_input_ids"].shape[1] <= 10
    assert [stream.truncated for stream in encoded.streams.values()] == [True, True]
    assert "the target was cut" in encoded.notes[1]


def test_without_a_target_the_greedy_answer_stands_in(t5: LoadedModel) -> None:
    encoded = encode(t5, "the river")
    assert "own greedy answer" in encoded.notes[0]
    assert encoded.inputs["decoder_input_ids"][0, 0] == tiny.PAD
    with torch.inference_mode():
        logits = t5.model(**encoded.inputs).logits
    first = int(logits[0, 0].argmax())
    assert encoded.inputs["decoder_input_ids"].shape[1] == 1 or encoded.inputs["decoder_input_ids"][0, 1] == first


def test_texts_that_cannot_be_used(gpt2: LoadedModel, bert: LoadedModel, t5: LoadedModel) -> None:
    assert "the text is empty" in refusal(gpt2, "")
    assert "the text is empty" in refusal(gpt2, None)
    assert "the text is empty" in refusal(gpt2, " \n\u3000")
    assert "lone surrogate U+D800 at character 2" in refusal(gpt2, "ab\ud800")
    assert "the target is empty" in refusal(t5, "a", "  ")
    assert "lone surrogate" in refusal(t5, "a", "\udfff")
    assert "made no token" in refusal(bert, "<s></s>")
    assert "a pair needs an encoder-decoder model, and this is a decoder model" in refusal(gpt2, "a", "b")


def test_a_tokenizer_of_another_model(gpt2: LoadedModel) -> None:
    small = replace(gpt2, model=torch.nn.Module())
    small.model.get_input_embeddings = lambda: torch.nn.Embedding(5, 2)
    assert "do not belong together" in refusal(small, "river")


class Numbers(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


class Words(torch.nn.Module):
    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return words


def test_custom_models(gpt2: LoadedModel) -> None:
    ready = LoadedModel("m", Words(), None, "custom", inputs={"words": torch.ones(1, 3)})
    assert (encode(ready, None).streams, list(encode(ready, None).inputs)) == ({}, ["words"])
    numbers = replace(ready, inputs={"input_ids": torch.tensor([[5, 6]])})
    assert encode(numbers, None).streams["input"].tokens == ("5", "6")
    assert "gave no tokenizer" in refusal(replace(ready, inputs=None), "a")
    custom = replace(ready, inputs=None, tokenizer=gpt2.tokenizer)
    assert "takes no input_ids but (words)" in refusal(custom, "a")
    assert list(encode(replace(custom, model=Numbers()), "a").inputs) == ["input_ids"]  # no mask, which it cannot take
    custom = replace(custom, model=gpt2.model)
    assert list(encode(custom, "a bank").streams) == ["input"]


@pytest.mark.parametrize("text", ["a" * 1_000_000, "see " + "QUJD" * 25_001 + " end", "e\u0301" * 50_001])
def test_F63_a_word_of_a_megabyte_is_refused_before_any_tokenizer(gpt2: LoadedModel, text: str) -> None:
    message = refusal(gpt2, text)
    assert "holds a word of" in message
    assert "at most 100000 are read. Break it up, or leave it out." in message


def test_long_runs_that_are_no_word() -> None:
    """Scripts without spaces, runs at the limit, and many of them: all read, and in time that grows with the text."""
    assert check_text("银行" * 400_000)
    assert check_text(("a" * 100_000 + " ") * 9)


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no text"),
    "blank": (b"\xef\xbb\xbf \n\t", "holds no text"),
    "latin1": ("caf\u00e9".encode("latin-1"), "byte 0xE9 at position 3"),
    "cut": ("银行".encode()[:-1], "at position 3"),
    "long": (b"a" * (FILE_LIMIT + 1), "10000001 bytes, at most 10000000 are read"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_text(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "got a folder"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe", "a device or a pipe"),
        ("a\0b", "not a file name"),
        ("x" * 5000, "cannot be read: File name too long"),
    ):
        with pytest.raises(DataError, match=words):
            read_text(path)


def test_a_good_file_comes_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeff银行\r\nb\0c".encode())
    assert read_text(path) == "银行\r\nb\0c"
    assert check_text(HARD) is HARD
