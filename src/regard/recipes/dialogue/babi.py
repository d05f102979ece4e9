"""Stories with one question whose answer stands at a distance that one chooses.

After the fashion of the bAbI tasks (Weston et al. 2015, "Towards AI-Complete Question Answering",
https://arxiv.org/abs/1502.05698, tasks 1 and 2), written anew: persons go to places and carry objects, everything
else distracts. Each turn has six words, so a distance in turns is one in words:

    facts=1     mary went to the kitchen .                                      where is mary now ? kitchen
    facts=2     mary went to the kitchen . / mary picked up the apple .         where is the apple ? kitchen

The last turn asks about the hero (or what the hero carries), and its earliest supporting fact stands exactly
`distance` turns before. After that fact the hero is not heard of, but for the second fact; before it, the hero has been
elsewhere. Other questions, about others, are asked on the way, the oftener the later they were heard of: they are
practice, and repeat what was said.

Which story belongs to the test is decided by the sha256 of its words, so training and test share none, whatever is
asked of the generator.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Literal

from regard._errors import ArgumentError

PERSONS = ("mary", "john", "sandra", "daniel", "alice", "peter", "helen", "victor")
PLACES = ("kitchen", "garden", "bathroom", "office", "hallway", "bedroom", "cellar", "attic")
OBJECTS = ("apple", "ball", "book", "cup", "hat", "lamp", "milk", "umbrella")
_OTHERS = ("went", "to", "the", ".", "picked", "up", "put", "down", "where", "is", "now", "?")
WORDS = ("<nothing>", *PERSONS, *PLACES, *OBJECTS, *_OTHERS)
WORDS_OF_A_TURN = 6
QUESTIONS = 0.4
"""Which part of the turns asks, for practice."""

Part = Literal["train", "validation", "test"]
_TENTHS: dict[int, Part] = {0: "validation", 1: "test"}


@dataclass(frozen=True)
class Story:
    """Turns of six words each; `asked` are the numbers of those that end in an answer, the last one the hero's."""

    turns: tuple[tuple[str, ...], ...]
    asked: tuple[int, ...]
    distance: int

    @property
    def answer(self) -> str:
        """Of the last question."""
        return self.turns[-1][-1]

    @property
    def part(self) -> Part:
        """Where the story belongs, by its words: 80 % train, 10 % validation, 10 % test."""
        words = " ".join(word for turn in self.turns for word in turn)
        return _TENTHS.get(int.from_bytes(hashlib.sha256(words.encode()).digest()) % 10, "train")


def make_story(part: Part, number: int, *, distance: int, turns: int, facts: int = 1, seed: int = 1) -> Story:
    """Story `number` of a part: a pure function of its arguments.

    Args:
        part: "train", "validation" or "test".
        number: any integer of at least 0.
        distance: from the question back to its earliest supporting fact, in turns: at least `facts`.
        turns: of the whole story, the question included.
        facts: 1 asks about a person, 2 about an object that a person carries.
        seed: other stories.

    Raises:
        ArgumentError: facts other than 1 and 2, or a distance that does not fit.
    """
    if facts not in {1, 2} or not facts <= distance < turns:
        raise ArgumentError(
            "distance",
            expected="facts 1 or 2, and a distance from as many turns to less than the story has",
            got=f"facts {facts}, distance {distance}, turns {turns}",
            do="The question is the story's last turn, and its facts are turns before it.",
        )
    attempt = 0
    while True:
        chance = random.Random(f"{seed}/{part}/{number}/{distance}/{turns}/{facts}/{attempt}")  # noqa: S311 - no secret
        story = _Telling(chance, distance, turns, facts).told()
        if story.part == part:
            return story
        attempt += 1


@dataclass
class _Telling:
    """A world while its story is told."""

    chance: random.Random
    distance: int
    turns: int
    facts: int
    place_of: dict[str, str] = field(default_factory=dict[str, str])
    holder_of: dict[str, str] = field(default_factory=dict[str, str])
    lies_at: dict[str, str] = field(default_factory=dict[str, str])
    heard_of: dict[str, int] = field(default_factory=dict[str, int])

    def told(self) -> Story:
        chance = self.chance
        self.hero, self.thing = chance.choice(PERSONS), chance.choice(OBJECTS)
        first = self.turns - 1 - self.distance
        facts: dict[int, bool] = {first: True}  # turn -> whether it is the one about the place
        if self.facts == 2:
            facts = {first: chance.random() < 0.5}
            facts[chance.randrange(first + 1, self.turns - 1)] = not facts[first]
        turns: list[tuple[str, ...]] = []
        asked: list[int] = []
        for number in range(self.turns - 1):
            self.now = number
            if number in facts:
                turns.append(self._goes(self.hero) if facts[number] else self._picks(self.hero, self.thing))
                continue
            turn, asks = self._beside(hero_may_act=number < first)
            turns.append(turn)
            if asks:
                asked.append(number)
        turns.append(self._question(self.hero, self.thing))
        return Story(tuple(turns), (*asked, self.turns - 1), self.distance)

    def _beside(self, *, hero_may_act: bool) -> tuple[tuple[str, ...], bool]:
        """A turn that does not support the answer, and whether it asks something."""
        chance = self.chance
        person = chance.choice([each for each in PERSONS if hero_may_act or each != self.hero])
        if chance.random() < QUESTIONS:
            question = self._practice()
            if question is not None:
                return question, True
        deed = chance.random()
        held = [thing for thing, holder in self.holder_of.items() if holder == person and thing != self.thing]
        if deed < 0.15 and held:
            return self._puts(person, chance.choice(held)), False
        free = [thing for thing in OBJECTS if thing != self.thing and self._in_reach(person, thing)]
        if deed < 0.35 and free:
            return self._picks(person, chance.choice(free)), False
        return self._goes(person), False

    def _practice(self) -> tuple[str, ...] | None:
        """A question about others whose answer has been told."""
        if self.facts == 1:
            known = [person for person in self.place_of if person != self.hero]
        else:
            known = [thing for thing, holder in self.holder_of.items() if holder in self.place_of]
            known = [thing for thing in known if self.holder_of[thing] != self.hero]
        if not known:
            return None
        asked = self.chance.choices(known, [1.0 / (self.now - self.heard_of[each]) for each in known])[0]
        self.heard_of[asked] = self.now
        return self._question(asked, asked)

    def _question(self, person: str, thing: str) -> tuple[str, ...]:
        if self.facts == 1:
            return ("where", "is", person, "now", "?", self.place_of[person])
        return ("where", "is", "the", thing, "?", self.place_of[self.holder_of[thing]])

    def _in_reach(self, person: str, thing: str) -> bool:
        """Nobody has it, and it lies where the person is, or nobody knows where."""
        return thing not in self.holder_of and self.lies_at.get(thing) in {None, self.place_of.get(person)}

    def _goes(self, person: str) -> tuple[str, ...]:
        place = self.chance.choice([each for each in PLACES if each != self.place_of.get(person)])
        self.place_of[person] = place
        self.heard_of[person] = self.now
        return (person, "went", "to", "the", place, ".")

    def _picks(self, person: str, thing: str) -> tuple[str, ...]:
        self.holder_of[thing] = person
        self.heard_of[thing] = self.now
        self.lies_at.pop(thing, None)
        return (person, "picked", "up", "the", thing, ".")

    def _puts(self, person: str, thing: str) -> tuple[str, ...]:
        del self.holder_of[thing]
        if person in self.place_of:
            self.lies_at[thing] = self.place_of[person]
        return (person, "put", "the", thing, "down", ".")
