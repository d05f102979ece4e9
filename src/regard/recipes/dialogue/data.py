"""Conversations between two people, as tokens.

Source: `dataset.json` of the PyPI package chitchat-dataset 0.9.0 (MIT): 7,168 conversations of volunteers who met to
chat, written in 2018. Used are those of two speakers with at least 4 turns, exact doubles once. They are informal, and
in places crude.

Splits are by speaker as far as that goes. A hundred people had most of the conversations, each with many others, so
that no split without any common speaker is left: those who had more than `FREQUENT` conversations may occur in every
part, all others in one part only, with everybody they talked to. Which part, the sha256 of an id decides.

Users' own: a JSONL file of dialogues (`regard.training.records`), split by the sha256 of each dialogue's text.

A turn is a token for its speaker, `FIRST` or `SECOND`, and the byte-level BPE of its text; `END` ends a conversation.
These three are no text: whatever people write, it cannot look like them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tokenizers import Tokenizer

from regard._errors import DataError
from regard.recipes.byte_pairs import learned_pieces
from regard.recipes.dialogue.segments import Example
from regard.training.records import Turn, read_dialogues
from regard.training.sources import Package, fetch

CHITCHAT = Package(
    registry="pypi",
    name="chitchat-dataset",
    version="0.9.0",
    file="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    licence="MIT",
    megabytes=8.1,
    members=("chitchat_dataset/dataset.json",),
)
FREQUENT = 10
FEWEST_TURNS = 4
FIRST, SECOND, END = 0, 1, 2
"""Tokens beside the text; those of the text are numbered from `TEXT` on."""
TEXT = 3

Part = Literal["train", "validation", "test"]
_TENTHS: dict[int, Part] = {0: "validation", 1: "test"}


@dataclass(frozen=True)
class Conversation:
    """What was said in turn, the two speakers alternating; `speakers` are their ids, the first one first."""

    turns: tuple[str, ...]
    speakers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """Conversations by part, and a tokenizer that was made from those of training alone."""

    parts: dict[Part, tuple[Conversation, ...]]
    tokenizer: Tokenizer

    def examples(self, part: Part) -> list[Example]:
        """All conversations of a part, as numbers."""
        return [encoded(conversation, self.tokenizer) for conversation in self.parts[part]]


@lru_cache(maxsize=1)
def load(path: str | None, *, vocabulary: int, download: bool) -> Corpus:
    """Chitchat, or a JSONL file of dialogues.

    Raises:
        DataError: absent and not to be downloaded, or a file that is not as it should be.
    """
    if path is None:
        folder = fetch(CHITCHAT, download=download, recipe="dialogue")
        parts = split_by_speaker(read_chitchat(folder / "chitchat_dataset" / "dataset.json"))
    else:
        parts = split_by_text(read_own(Path(path)))
    return Corpus(parts, make_tokenizer([turn for each in parts["train"] for turn in each.turns], vocabulary))


def read_chitchat(path: Path) -> list[Conversation]:
    """The conversations that are used, in the order of their ids."""
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found: dict[tuple[str, ...], Conversation] = {}
    for identity in sorted(raw):
        messages = cast("list[list[dict[str, str]]]", raw[identity]["messages"])
        speakers = tuple(dict.fromkeys(turn[0]["sender"] for turn in messages))
        if len(speakers) == 2 and len(messages) >= FEWEST_TURNS:
            turns = tuple("\n".join(utterance["text"] for utterance in turn) for turn in messages)
            found.setdefault(turns, Conversation(turns, speakers))
    return list(found.values())


def split_by_speaker(conversations: Sequence[Conversation]) -> dict[Part, tuple[Conversation, ...]]:
    """See the head of the file."""
    talks = Counter(speaker for each in conversations for speaker in each.speakers)
    leader: dict[str, str] = {}

    def leader_of(speaker: str) -> str:
        while leader.setdefault(speaker, speaker) != speaker:
            speaker = leader[speaker]
        return speaker

    for each in conversations:
        together = [leader_of(speaker) for speaker in each.speakers if talks[speaker] <= FREQUENT]
        for other in together[1:]:
            leader[other] = together[0]
    parts: dict[Part, list[Conversation]] = {"train": [], "validation": [], "test": []}
    for each in conversations:
        group = [leader_of(speaker) for speaker in each.speakers if talks[speaker] <= FREQUENT]
        parts[_part_of(group[0] if group else "\n".join(each.turns))].append(each)
    return _filled(parts)


def split_by_text(conversations: Iterable[Conversation]) -> dict[Part, tuple[Conversation, ...]]:
    """Doubles stand once, and each dialogue goes where its text decides."""
    parts: dict[Part, list[Conversation]] = {"train": [], "validation": [], "test": []}
    for each in dict.fromkeys(conversations):
        parts[_part_of("\n".join(each.turns))].append(each)
    return _filled(parts)


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Of `vocabulary` tokens, at most."""
    return learned_pieces(texts, vocabulary, fewest=0, spaced=False)


def encoded(conversation: Conversation, tokenizer: Tokenizer, *, end: bool = True) -> Example:
    """A conversation as numbers; `end` says that it is over."""
    tokens: list[int] = []
    turns: list[int] = []
    for number, text in enumerate(numbers_of(conversation.turns, tokenizer)):
        ids = [(FIRST, SECOND)[number % 2], *text]
        tokens += ids
        turns += [number + 1] * len(ids)
    if end:
        tokens.append(END)
        turns.append(len(conversation.turns))
    return Example(torch.tensor(tokens), torch.tensor(turns))


def numbers_of(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each text. Half a surrogate pair, which is no character, becomes a question mark."""
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    return [[TEXT + token for token in each.ids] for each in tokenizer.encode_batch(clean)]


def written(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of a turn's tokens."""
    return tokenizer.decode([token - TEXT for token in tokens if token >= TEXT])


def _part_of(key: str) -> Part:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return _TENTHS.get(int.from_bytes(digest) % 10, "train")


def _filled(parts: dict[Part, list[Conversation]]) -> dict[Part, tuple[Conversation, ...]]:
    for name, found in parts.items():
        if not found:
            raise DataError(f"too few dialogues: none for the part {name!r}. Give some hundred, of two turns or more.")
    return {name: tuple(found) for name, found in parts.items()}


def read_own(path: Path) -> list[Conversation]:
    """A JSONL file of dialogues between two. What one of them says in several turns in a row is one turn.

    Raises:
        DataError: a line that is not as `regard.training.records.read_dialogues` wants it, or three speakers.
    """
    return [
        _between_two(dialogue, f"{path}: dialogue {number}") for number, dialogue in enumerate(read_dialogues(path), 1)
    ]


def _between_two(dialogue: Sequence[Turn], where: str) -> Conversation:
    speakers = tuple(dict.fromkeys(turn.speaker for turn in dialogue))
    if len(speakers) > 2:
        raise DataError(f"{where}: expected two speakers, got {len(speakers)}: {', '.join(map(repr, speakers))}.")
    turns = ["\n".join(turn.text for turn in group) for _, group in groupby(dialogue, key=lambda turn: turn.speaker)]
    return Conversation(tuple(turns), speakers)
