"""Pieces of words over bytes: every text, no marks in any, nothing on standard output."""

from __future__ import annotations

import pytest

from regard import DataError
from regard.recipes.byte_pairs import learned_pieces, read_pieces
from regard.recipes.image_text.captions import BEGIN, PAD, Captions

TEXTS = ["a cat sat", "a cat ran", "猫跑了"] * 3


@pytest.mark.parametrize("marks", [(), ("<pad>", "<end>")])
def test_every_text_comes_back_and_none_holds_a_mark(marks):
    tokenizer = learned_pieces(TEXTS, 300, marks=marks, spaced=False)
    assert [tokenizer.token_to_id(mark) for mark in marks] == list(range(len(marks)))
    for text in ("a cat", "<pad> <end></end>", "🦀\x00 \n", ""):
        numbers = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(numbers) == text
        assert not set(numbers) & set(range(len(marks)))


def test_the_same_texts_give_the_same_pieces_and_nothing_is_written(capfd):
    assert learned_pieces(TEXTS, 300).to_str() == learned_pieces(iter(TEXTS), 300).to_str()
    assert capfd.readouterr() == ("", "")


def test_only_pieces_are_read(tmp_path):
    path = tmp_path / "pieces.json"
    learned = learned_pieces(TEXTS, 300, marks=("<pad>",))
    path.write_text(learned.to_str(), encoding="utf-8")
    assert read_pieces(path).to_str() == learned.to_str()
    for wrong in ("{}", "", "\x00"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(DataError, match=r"pieces\.json' is no vocabulary of tokenizers"):
            read_pieces(path)
    with pytest.raises(DataError, match="is no vocabulary"):
        read_pieces(tmp_path / "absent.json")


def test_a_caption_that_spells_a_mark_is_read_as_text():
    captions = Captions.learned(["a <pad> of paper", "<s>"], 300, 24)
    tokens, real = captions(["<pad> <s>", "a"])
    assert int((tokens == BEGIN).sum()) == 2  # the beginning of each
    assert not bool(((tokens == PAD) & real).any())
