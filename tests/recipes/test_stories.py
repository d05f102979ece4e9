"""Stories: the answer follows from the facts, the distance is what was asked for, no story is in two parts."""

import hashlib
from itertools import pairwise

import pytest

from regard import ArgumentError
from regard.recipes.dialogue.babi import OBJECTS, PERSONS, PLACES, WORDS, WORDS_OF_A_TURN, Story, make_story


class Reader:
    """Follows a story by its words alone, as a person would."""

    def __init__(self):
        self.place_of: dict[str, tuple[str, int]] = {}
        self.holder_of: dict[str, tuple[str, int]] = {}
        self.lies_at: dict[str, str] = {}

    def read(self, number: int, words: tuple[str, ...]) -> None:
        match words:
            case (person, "went", "to", "the", place, "."):
                assert self.place_of.get(person, (None,))[0] != place, "somebody went where he was"
                self.place_of[person] = (place, number)
            case (person, "picked", "up", "the", thing, "."):
                assert thing not in self.holder_of, "somebody picked up what another one had"
                here = self.place_of.get(person, (None,))[0]
                assert self.lies_at.get(thing) in {None, here}, "somebody picked up what was elsewhere"
                self.holder_of[thing] = (person, number)
            case (person, "put", "the", thing, "down", "."):
                assert self.holder_of.pop(thing)[0] == person
                if person in self.place_of:
                    self.lies_at[thing] = self.place_of[person][0]
            case ("where", "is", "the", thing, "?", answer):
                assert answer == self.place_of[self.holder_of[thing][0]][0]
            case ("where", "is", person, "now", "?", answer):
                assert answer == self.place_of[person][0]
            case _:
                raise AssertionError(f"not a turn of a story: {words}")

    def facts_of(self, words: tuple[str, ...]) -> list[int]:
        """The turns that the answer of a question follows from."""
        if words[2] == "the":
            holder, taken = self.holder_of[words[3]]
            return [taken, self.place_of[holder][1]]
        return [self.place_of[words[2]][1]]


def stories(facts: int, count: int = 40) -> list[Story]:
    return [
        make_story("test", number, distance=distance, turns=24, facts=facts)
        for distance in (facts, 5, 22)
        for number in range(count)
    ]


@pytest.mark.parametrize("facts", [1, 2])
def test_every_answer_follows_from_what_was_said(facts):
    for story in stories(facts):
        reader = Reader()
        for number, words in enumerate(story.turns):
            assert len(words) == WORDS_OF_A_TURN
            assert set(words) <= set(WORDS)
            assert (words[0] == "where") == (number in story.asked)
            reader.read(number, words)
        assert story.answer == story.turns[-1][-1]
        assert story.answer in PLACES


@pytest.mark.parametrize("facts", [1, 2])
def test_the_last_question_is_as_far_from_its_earliest_fact_as_was_asked(facts):
    for story in stories(facts):
        reader = Reader()
        for number, words in enumerate(story.turns[:-1]):
            reader.read(number, words)
        supporting = reader.facts_of(story.turns[-1])
        assert len(supporting) == facts
        assert len(story.turns) - 1 - min(supporting) == story.distance


@pytest.mark.parametrize("facts", [1, 2])
def test_after_its_facts_the_hero_is_not_heard_of(facts):
    for story in stories(facts):
        reader = Reader()
        for number, words in enumerate(story.turns[:-1]):
            reader.read(number, words)
        last = story.turns[-1]
        hero = last[2] if facts == 1 else reader.holder_of[last[3]][0]
        supporting = reader.facts_of(last)
        for number in range(min(supporting), len(story.turns) - 1):
            if number not in supporting:
                assert hero not in story.turns[number]
                assert facts == 1 or last[3] not in story.turns[number]


def test_a_story_is_a_function_of_its_arguments():
    first = make_story("train", 3, distance=4, turns=12)
    assert first == make_story("train", 3, distance=4, turns=12)
    assert first != make_story("train", 4, distance=4, turns=12)
    assert first != make_story("train", 3, distance=4, turns=12, seed=2)


def test_parts_share_no_story_and_words_decide():
    found = {part: {make_story(part, number, distance=1, turns=2).turns for number in range(150)}
             for part in ("train", "validation", "test")}  # fmt: skip
    for one, other in pairwise([*found.values(), found["train"]]):
        assert not one & other  # two turns leave only hundreds of stories: the parts would meet, were it not decided
    for part, told in found.items():
        for turns in told:
            words = " ".join(word for turn in turns for word in turn)
            tenth = int.from_bytes(hashlib.sha256(words.encode()).digest()) % 10
            assert {"validation": tenth == 0, "test": tenth == 1, "train": tenth > 1}[part]


def test_answers_are_spread_over_the_places():
    answers = [story.answer for story in stories(1, count=130)]
    for place in PLACES:
        assert 0.06 < answers.count(place) / len(answers) < 0.2


def test_words_are_told_apart():
    assert len(set(WORDS)) == len(WORDS)
    assert len({*PERSONS, *PLACES, *OBJECTS}) == 24


@pytest.mark.parametrize(("facts", "distance"), [(1, 0), (1, 12), (2, 1), (3, 5)])
def test_distances_that_do_not_fit_are_refused(facts, distance):
    with pytest.raises(ArgumentError, match="distance: expected facts 1 or 2, and a distance from"):
        make_story("train", 0, distance=distance, turns=12, facts=facts)
