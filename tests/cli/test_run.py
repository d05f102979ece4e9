"""What `regard run` writes, whatever reads it."""

from __future__ import annotations

import io
import json
import sys

import pytest

from regard.cli import run as commands


@pytest.fixture
def written(monkeypatch):
    """The bytes that a reader of this encoding gets."""

    def of(encoding, found, lines=(), *, json_output):
        reader = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(reader, encoding=encoding, errors="strict"))
        commands._tell(found, lines, json_output=json_output)
        sys.stdout.flush()
        return reader.getvalue()

    return of


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "gb2312"])
@pytest.mark.parametrize("text", ["你好 🦀", "caf\u00e9", "plain"])
def test_json_says_the_same_in_every_encoding(written, encoding, text):
    assert json.loads(written(encoding, {"text": text}, json_output=True).decode(encoding)) == {"text": text}


def test_json_in_utf_8_is_readable(written):
    assert "你好" in written("utf-8", {"text": "你好"}, json_output=True).decode()


def test_half_a_surrogate_pair_becomes_a_question_mark(written):
    assert json.loads(written("utf-8", {"text": "a\udcff"}, json_output=True)) == {"text": "a?"}
    assert written("utf-8", {}, ["a\udcff", "b"], json_output=False) == b"a?\nb\n"


def test_what_an_encoding_cannot_say_becomes_a_question_mark(written):
    assert written("ascii", {}, ["你好!"], json_output=False) == b"??!\n"
