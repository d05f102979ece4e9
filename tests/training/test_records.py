"""Users' own files: what is read, and what every kind of fault is called, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard._errors import DataError
from regard.training import records
from regard.training.records import (
    Document,
    LabelledImage,
    Turn,
    read_dialogues,
    read_documents,
    read_images,
    read_pairs,
)

PAIR = '{"source": "a", "target": "b"}'


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "one\t一\ntwo\t二\n",
        "one\t一\ntwo\t二",
        "\ufeffone\t一\r\n\r\n  \ntwo\t二\r\n",
        "source\ttarget\none\t一\ntwo\t二\n",
        "\ufeffSource\tTARGET\r\none \t 一\r\ntwo\t二\r\n",
    ],
    ids=["plain", "no last end of line", "byte order mark and Windows", "header", "header of Windows"],
)
def test_tab_separated_pairs(tmp_path: Path, content: str) -> None:
    assert read_pairs(file(tmp_path, "p.tsv", content)) == [("one", "一"), ("two", "二")]


def test_pairs_of_json(tmp_path: Path) -> None:
    content = '\ufeff{"source": "one", "target": "一", "by": 3}\r\n\n{"target": "二", "source": "two"}'
    assert read_pairs(file(tmp_path, "p.jsonl", content)) == [("one", "一"), ("two", "二")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\tb\nc\n", "line 2: expected 2 columns, source<TAB>target, got 1"),
        ("a\tb\n\nc\td\te\n", "line 3: expected 2 columns, source<TAB>target, got 3"),
        ("source\ttarget\na\tb\nsource\ttarget\n", "line 3: the header source<TAB>target belongs once"),
        ("source\ttarget\nsource\ttarget\na\tb\n", "line 2: the header source<TAB>target belongs once"),
        ("source\tsource\na\tb\n", "line 1: the header source<TAB>target belongs once"),
        ("target\tsource\na\tb\n", "line 1: the header source<TAB>target belongs once"),
        ("a\tb\n\tc\n", "line 2: 'source' is empty"),
        ("a\tb\nc\t  \n", "line 2: 'target' is empty"),
        (b"a\tb\nc\t\xff\n", "line 2: expected UTF-8, got the byte 0xff at byte 3"),
        ("a\tb\n".encode("utf-16"), "line 1: expected UTF-8, got UTF-16; save the file as UTF-8"),
        (b"a\tb\0\n", "line 1: holds a NUL character"),
        ("", "p.tsv: holds no record"),
        ("source\ttarget\n", "p.tsv: holds no record"),
        ("a\t" + "b" * 10_001, "line 1: expected 'target' to have at most 10000 characters, got 10001"),
    ],
)
def test_faults_of_tab_separated_pairs(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(file(tmp_path, "p.tsv", content))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "expected a JSON object, got '{'"),
        ("[1]", "expected a JSON object, got a list"),
        ("null", "expected a JSON object, got nothing"),
        ('{"source": "a"}', "expected the key 'target', got 'source'"),
        ("{}", "expected the key 'source', got none"),
        ('{"source": 3, "target": "b"}', "expected 'source' to be a text, got a number"),
        ('{"source": "a", "target": true}', "expected 'target' to be a text, got a truth value"),
        ('{"source": "a", "source": "c", "target": "b"}', "the key 'source' stands there twice"),
        ('{"source": "\\ud83d", "target": "b"}', "'source' holds half of a surrogate pair"),
        ('{"source": ' + "[" * 100_000, "expected a JSON object"),
    ],
)
def test_faults_of_json(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match="line 2") as caught:
        read_pairs(file(tmp_path, "p.jsonl", f"{PAIR}\n{line}\n"))
    assert said in str(caught.value)


def test_a_line_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LONGEST_BYTES", 50)
    with pytest.raises(DataError, match="line 2: expected at most"):
        read_pairs(file(tmp_path, "p.tsv", "a\tb\n" + "é" * 1000))


def test_a_file_that_is_not_there_and_one_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "absent.tsv")
    with pytest.raises(DataError, match="expected a file, or a folder that datasets saved, got another folder"):
        read_pairs(tmp_path)


def test_documents(tmp_path: Path) -> None:
    content = '{"document": " long ", "summary": "short"}\n{"document": "x"}\n{"document": "y", "summary": null}\n'
    expected = [Document("long", "short"), Document("x", None), Document("y", None)]
    assert read_documents(file(tmp_path, "d.jsonl", content)) == expected
    with pytest.raises(DataError, match="line 1: 'summary' is empty"):
        read_documents(file(tmp_path, "e.jsonl", '{"document": "x", "summary": ""}'))


def test_dialogues(tmp_path: Path) -> None:
    content = (
        '{"turns": [{"speaker": "Ann", "text": "Hi"}, {"speaker": "Bo", "text": "Yes"}]}\n{"turns": ["a", "b", "c"]}'
    )
    assert read_dialogues(file(tmp_path, "d.jsonl", content)) == [
        (Turn("Ann", "Hi"), Turn("Bo", "Yes")),
        (Turn("A", "a"), Turn("B", "b"), Turn("A", "c")),
    ]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ('"a"', "expected a list 'turns' that is not empty, got a text"),
        ("[]", "expected a list 'turns' that is not empty, got a list"),
        ("null", "expected a list 'turns' that is not empty, got nothing"),
        ('["a", 3]', "turn 2: expected a text, or an object with 'speaker' and 'text', got a number"),
        ('["a", ""]', "turn 2: 'text' is empty"),
        ('[{"text": "a"}]', "turn 1: expected the key 'speaker', got 'text'"),
    ],
)
def test_faults_of_dialogues(tmp_path: Path, turns: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_dialogues(file(tmp_path, "d.jsonl", f'{{"turns": {turns}}}'))
    assert f"line 1{', ' if said.startswith('turn') else ': '}{said}" in str(caught.value)


def test_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "in/b.JPG"):
        file(tmp_path, name, b"picture")
    file(tmp_path, "labels.tsv", "file\tlabel\r\na.png\tshoe\r\nin/b.JPG\ta red boat\r\n")
    assert read_images(tmp_path) == [
        LabelledImage(tmp_path / "a.png", "shoe"),
        LabelledImage(tmp_path / "in/b.JPG", "a red boat"),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("b.png\tx", "line 2: there is no file"),
        ("a.png\tx", "line 2: 'a.png' was labelled before"),
        ("../a.png\tx", "line 2: expected the name of a file below"),
        ("/a.png\tx", "line 2: expected the name of a file below"),
        ("C:a.png\tx", "line 2: expected the name of a file below"),
        ("labels.tsv\tx", "line 2: expected an image"),
        ("a.png\t ", "line 2: expected a file and a label"),
        ("a.png", "line 2: expected 2 columns, file<TAB>label, got 1"),
    ],
)
def test_faults_of_images(tmp_path: Path, row: str, said: str) -> None:
    file(tmp_path, "a.png", b"picture")
    file(tmp_path, "labels.tsv", f"a.png\tshoe\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_images(tmp_path)
    assert said in str(caught.value)


def test_a_folder_of_images_without_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a file labels.tsv: the name of an image, a tab, its label"):
        read_images(tmp_path)
