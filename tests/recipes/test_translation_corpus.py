"""The corpus as a file, and, where its packages are in the cache, the real one: no leak, and what it is made of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from regard._errors import ArgumentError, DataError
from regard.recipes.translation import data
from regard.recipes.translation.cleaning import fault, plain
from regard.recipes.translation.pairs import Corpus, Language, Pair
from regard.recipes.translation.splits import key, words
from regard.recipes.translation.verses import Verse, load_verses

_COLOURS = ("Red", "Green", "Blue", "Black", "White")
LANGUAGES: tuple[Language, ...] = ("zh", "de")


@pytest.fixture(scope="module", params=LANGUAGES)
def real(request: pytest.FixtureRequest) -> tuple[Language, Corpus]:
    try:
        return request.param, data.load(request.param)
    except DataError as error:
        pytest.skip(str(error)[:200])


def _word(mark: str) -> str:
    """A word of its own for each Chinese character."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(ord(mark)))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Packages that are always there, with fifty sentences; returns what the readers were asked for."""
    asked: list[tuple[str, str]] = []

    def texts(domain: str, folders: object, language: str) -> list[tuple[str, str]]:
        asked.append((domain, language))
        kinds = [
            (one + two, en) for one, en in zip("红绿蓝黑白", _COLOURS, strict=True) for two in "木石金银铜铁玉纸布皮"
        ]
        return [
            (f"{en} {ord(zh[1])} opens the {_word(zh[1])} window of {domain}", f"{zh}窗口由{domain}打开")
            for zh, en in kinds
        ]

    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "_texts", texts)
    monkeypatch.setattr(data, "fetch_all", lambda packages, **_: [tmp_path for _ in packages])
    monkeypatch.setattr(data, "HELD_OUT", {"zh": {"libreoffice": 2}})
    return asked


def test_the_second_time_the_corpus_comes_from_its_file(small: list[tuple[str, str]], tmp_path: Path) -> None:
    first = data.load("zh", ["libreoffice", "hsk"])
    assert small == [("libreoffice", "zh"), ("hsk", "zh")]
    assert (len(first.validation), len(first.test)) == (2, 2)
    assert first.counts["libreoffice/raw"] == first.counts["hsk/raw"] == 50
    assert data.load("zh", ["hsk", "libreoffice"]) == first
    assert len(small) == 2
    data.load("zh")  # other domains are another file
    assert len(list((tmp_path / "prepared").glob("*.jsonl"))) == 2


@pytest.mark.parametrize("damage", ["cut", "line", "empty", "head"])
def test_a_damaged_file_is_told_and_not_used(small: list[tuple[str, str]], tmp_path: Path, damage: str) -> None:
    data.load("zh", ["libreoffice"])
    (path,) = (tmp_path / "prepared").glob("*.jsonl")
    text = path.read_text(encoding="utf-8")
    damaged = {"cut": text[: text.rindex("[")], "line": text[:-9], "empty": "", "head": text[1:]}[damage]
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(DataError, match="remove it, and it is made again"):
        data.load("zh", ["libreoffice"])


def test_domains_that_are_not_there_or_lack_the_test() -> None:
    with pytest.raises(ArgumentError, match="with libreoffice, wesnoth, hsk among them, got hsk, poems"):
        data.load("zh", ["hsk", "poems"])
    with pytest.raises(ArgumentError, match="with libreoffice, wesnoth among them, got bible"):
        data.load("de", ["bible"])


def test_an_empty_cache_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"libreoffice-help-en-us 4:7.4.7.*regard train translation --download"):
        data.load("zh")


def test_every_package_is_pinned_in_full() -> None:
    every = {
        package
        for language in LANGUAGES
        for domain in data.DOMAINS[language]
        for package in data._packages(domain, language)
    }
    assert len(every) == 3 + 17 + 12 + 4
    for package in every:
        assert len(package.sha256) == 64
        assert package.licence
        assert package.version.split(":")[-1] in package.file


def test_the_real_corpus_does_not_leak(real: tuple[Language, Corpus]) -> None:
    language, corpus = real
    held_out = [*corpus.test, *corpus.validation]
    sources = {key(pair.source) for pair in corpus.train}
    targets = {key(pair.target) for pair in corpus.train}
    assert not [pair for pair in held_out if key(pair.source) in sources]
    assert not [pair for pair in held_out if key(pair.target) in targets]
    assert not {key(pair.source) for pair in corpus.test} & {key(pair.source) for pair in corpus.validation}
    assert Counter(pair.domain for pair in corpus.test) == data.HELD_OUT[language]
    assert Counter(pair.domain for pair in corpus.validation) == data.HELD_OUT[language]


def test_no_training_sentence_of_the_real_corpus_is_nearly_one_of_the_test(real: tuple[Language, Corpus]) -> None:
    """Every fiftieth test sentence against all of training, without the index that the split was made with."""
    _, corpus = real
    training = [words(pair.source) for pair in corpus.train]
    for pair in corpus.test[::50]:
        asked = words(pair.source)
        near = [found for found in training if 5 * len(asked & found) >= 4 * len(asked | found)]
        assert not near, pair


def test_the_real_corpus_is_large_and_clean(real: tuple[Language, Corpus]) -> None:
    language, corpus = real
    assert len(corpus.train) > {"zh": 100_000, "de": 70_000}[language]
    assert len({pair.source for pair in corpus.train}) == len(corpus.train)
    for pair in [*corpus.train[::50], *corpus.test, *corpus.validation]:
        assert fault(pair.source, pair.target, language) is None
        assert plain(plain(pair.source)) == plain(pair.source)
    for name, part in (("train", corpus.train), ("test", corpus.test), ("validation", corpus.validation)):
        assert sum(count for what, count in corpus.counts.items() if what.endswith(f"/{name}")) == len(part)


def test_the_aligned_verses_do_not_leak() -> None:
    try:
        train, validation, test = load_verses()
    except DataError as error:
        pytest.skip(str(error)[:200])
    assert (len(validation), len(test)) == (500, 500)
    assert len(train) > 6_500
    references = [{verse.reference for verse in part} for part in (train, validation, test)]
    assert sum(map(len, references)) == len(set().union(*references))
    training = [words(" ".join(verse.target_tokens)) for verse in train]
    for verse in test[::10]:
        asked = words(" ".join(verse.target_tokens))
        assert not [found for found in training if 5 * len(asked & found) >= 4 * len(asked | found)]
    for verse in [*test, *validation]:
        _all_links_are_inside(verse)


def _all_links_are_inside(verse: Verse) -> None:
    assert verse.links
    for one, other in verse.links:
        assert 0 <= one < len(verse.source_tokens)
        assert 0 <= other < len(verse.target_tokens)


def test_the_file_is_lines_of_json(small: list[tuple[str, str]], tmp_path: Path) -> None:
    corpus = data.load("zh", ["libreoffice"])
    (path,) = (tmp_path / "prepared").glob("*.jsonl")
    head, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert head["pairs"] == len(rows) == len(corpus.train) + 4
    assert Pair(rows[0][2], rows[0][3], rows[0][1]) == corpus.train[0]
