"""Splits that do not move and do not leak, on small tables."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from regard.recipes.translation.pairs import Corpus, Pair
from regard.recipes.translation.splits import NearDuplicates, key, split, without_leaks, words

NOUNS = ["file", "table", "cell", "frame", "page", "style", "sheet", "image", "chart", "form", "field", "query"]
VERBS = ["opens", "closes", "moves", "saves", "prints", "deletes", "renames", "copies", "selects", "formats"]


class Chance:
    """Draws that are the same in every run."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def below(self, most: int) -> int:
        return int(torch.randint(most, (), generator=self._generator))

    def words(self, count: int) -> list[str]:
        """Distinct ones."""
        order = torch.randperm(len(NOUNS + VERBS), generator=self._generator)
        return [(NOUNS + VERBS)[place] for place in order[:count].tolist()]


def sentences(domain: str, count: int, seed: int = 0) -> list[Pair]:
    """Distinct sentences of eight words."""
    chance = Chance(seed)
    found: dict[str, Pair] = {}
    while len(found) < count:
        source = " ".join(chance.words(8))
        found.setdefault(key(source), Pair(source, f"{domain} {source[::-1]}", domain))
    return list(found.values())


def test_a_key_knows_neither_case_punctuation_digits_nor_spaces() -> None:
    assert key("Open  the File 12, now!") == key("open the file now") == "openthefilenow"
    assert key("打开 文件。") == "打开文件"


def test_the_split_has_the_counts_asked_for_and_is_disjoint() -> None:
    pairs = sentences("a", 300) + sentences("b", 200, seed=1)
    train, validation, test, _ = split(pairs, {"a": 20, "b": 10})
    for part in (validation, test):
        assert [pair.domain for pair in part] == ["a"] * 20 + ["b"] * 10
    keys = [{key(pair.source) for pair in part} for part in (train, validation, test)]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]


def test_the_split_does_not_move_when_other_data_come_or_the_order_changes() -> None:
    pairs = sentences("a", 300)
    _, validation, test, _ = split(pairs, {"a": 20})
    more = sentences("b", 300, seed=5)
    assert split(pairs + more, {"a": 20})[1:3] == (validation, test)
    assert split(pairs[::-1], {"a": 20})[1:3] == (validation, test)


def test_short_sentences_are_not_held_out() -> None:
    pairs = [Pair(f"{noun} {verb}", f"{noun}{verb}", "a") for noun in NOUNS for verb in VERBS]
    train, validation, test, _ = split(pairs, {"a": 5})
    assert (len(train), validation, test) == (len(pairs), [], [])


def test_of_one_source_in_two_domains_the_first_is_held_out_and_no_other_stays() -> None:
    pairs = sentences("a", 40)
    copies = [Pair(pair.source.upper() + "!", f"other {pair.target}", "b") for pair in pairs]
    train, validation, test, left_out = split(pairs + copies, {"a": 10, "b": 10})
    assert {pair.domain for pair in [*validation, *test]} == {"a"}
    held = {key(pair.source) for pair in [*validation, *test]}
    assert not held & {key(pair.source) for pair in train}
    assert left_out["b/source held out"] == 20


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (Pair("Click the  blue button, then wait 3 seconds.", "x", "a"), "source held out"),
        (Pair("Something else entirely is here", "点击，蓝色按钮", "a"), "target held out"),
        (Pair("Click the blue button then wait some seconds", "y", "a"), "near-duplicate of held-out source"),
        (Pair("Click the blue button", "z", "a"), None),
    ],
)
def test_what_is_left_out_of_training(pair: Pair, why: str | None) -> None:
    held_out = [Pair("Click the blue button, then wait 12 seconds", "点击蓝色按钮。", "a")]
    kept, left_out = without_leaks([pair], held_out)
    assert kept == ([] if why else [pair])
    assert dict(left_out) == ({f"a/{why}": 1} if why else {})


def test_near_duplicates_are_those_that_comparing_all_with_all_finds() -> None:
    chance = Chance(3)
    given = [" ".join(chance.words(3 + chance.below(10))) for _ in range(200)]
    near = NearDuplicates(given)
    found = 0
    for sentence in given:
        asked = sentence.split()
        asked[chance.below(len(asked))] = chance.words(1)[0]
        text = " ".join(asked)
        expected = any(5 * len(words(text) & words(other)) >= 4 * len(words(text) | words(other)) for other in given)
        assert near.has(text) == expected, text
        found += expected
    assert 20 < found < 180  # both kinds were there


def test_the_index_reaches_exactly_four_fifths() -> None:
    near = NearDuplicates(["one two three four five"], least=float(Fraction(4, 5)))
    assert near.has("one two three four")  # 4 of 5
    assert not near.has("one two three four six")  # 4 of 6
    assert not near.has("")


def test_the_digest_is_of_the_pairs() -> None:
    one = Corpus([Pair("a", "b", "c")], [], [], {"c/raw": 1})
    assert one.digest == Corpus([Pair("a", "b", "c")], [], [], {}).digest
    assert one.digest != Corpus([], [Pair("a", "b", "c")], [], {}).digest
