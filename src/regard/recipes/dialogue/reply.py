"""Answers: `regard run dialogue "Hello, how are you?"`, or a JSONL file of dialogues.

A `Session` is one dialogue. Its memory is its own: another session begins with an empty one. Segments are cut at the
same places as in training, counted from the first token, so what is answered depends on what was said and not on how
it was handed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from regard._errors import ArgumentError, CheckpointError
from regard.recipes.dialogue.config import Config
from regard.recipes.dialogue.data import END, FIRST, SECOND, Conversation, numbers_of, read_own, written
from regard.recipes.dialogue.model import DialogueModel, State, detached
from regard.recipes.dialogue.tasks import build
from regard.recipes.trained import open_run


def run(text: str | Path, folder: Path, *, most_tokens: int = 60, temperature: float = 0.8, seed: int = 1) -> list[str]:
    """Replies of a trained model, one to each dialogue.

    Args:
        text: what somebody says; or the path of a JSONL file of dialogues (`regard.training.records`), each of which
            gets the turn that comes after its last. One word that ends in .jsonl is such a path, too.
        folder: of a training run.
        most_tokens: of a reply.
        temperature: 0 takes the likeliest token each time, 1 draws as the model says.
        seed: the same seed gives the same reply; every dialogue begins from it anew.

    Raises:
        CheckpointError: no trained model there.
        DataError: a file that is not as it should be.
        ArgumentError: a temperature below 0, or less than one token.
    """
    model, tokenizer, config = trained(folder)
    is_file = isinstance(text, Path) or (text.endswith(".jsonl") and not any(map(str.isspace, text)))
    dialogues = read_own(Path(text)) if is_file else [Conversation((str(text),))]
    return [
        _reply(Session(model, tokenizer, config.segment), dialogue, most_tokens, temperature, seed)
        for dialogue in dialogues
    ]


class Session:
    """One dialogue with a model: what was said so far, as the state of whole segments and the tokens since.

    Args:
        model: in eval mode.
        tokenizer: of its training.
        segment: tokens of a segment, as in its training.
    """

    def __init__(self, model: DialogueModel, tokenizer: Tokenizer, segment: int) -> None:
        self.model, self.tokenizer, self.segment = model, tokenizer, segment
        self.turns = 0
        self._state: State | None = None
        self._open: list[int] = []

    def say(self, text: str) -> None:
        """Somebody's turn."""
        self._read([self._speaker(), *numbers_of([text], self.tokenizer)[0]])
        self.turns += 1

    def reply(self, *, most_tokens: int, temperature: float, generator: torch.Generator) -> str:
        """The next turn, drawn by the model and remembered. It ends where the model gives the word to somebody."""
        self._read([self._speaker()])
        said: list[int] = []
        while len(said) < most_tokens:
            token = _drawn(self._next(), temperature, generator)
            if token in {FIRST, SECOND, END}:
                break
            said.append(token)
            self._read([token])
        self.turns += 1
        return written(said, self.tokenizer).strip()

    def _speaker(self) -> int:
        return (FIRST, SECOND)[self.turns % 2]

    def _read(self, tokens: Sequence[int]) -> None:
        self._open += tokens
        while len(self._open) > self.segment:  # the last token stays open: what follows it is asked for
            self._state = detached(self._forward(self._open[: self.segment])[1])
            self._open = self._open[self.segment :]

    def _next(self) -> Tensor:
        """Logits (vocabulary,) of the token after the last."""
        return self.model.logits(self._forward(self._open)[0][0, -1]).float()

    @torch.no_grad()
    def _forward(self, tokens: Sequence[int]) -> tuple[Tensor, State]:
        return self.model(torch.tensor([tokens]), self._state)


def trained(folder: Path) -> tuple[DialogueModel, Tokenizer, Config]:
    """The model of a training run on conversations, in eval mode, its tokenizer and configuration.

    Raises:
        CheckpointError: none there, or one of stories, which has no words to answer with.
    """
    config, weights = open_run(folder, Config, "dialogue")
    if not weights["tokenizer"].numel():
        raise CheckpointError(f"{str(folder)!r}: expected a model of conversations; train one: regard train dialogue.")
    words = bytes(map(int, weights["tokenizer"])).decode()
    model = build(config, weights["embedding.weight"].shape[0], words)
    model.load_state_dict(weights)
    made: Any = Tokenizer.from_str(words)
    return model.eval(), made, config


def _reply(session: Session, dialogue: Conversation, most_tokens: int, temperature: float, seed: int) -> str:
    for turn in dialogue.turns:
        session.say(turn)
    generator = torch.Generator().manual_seed(seed)
    return session.reply(most_tokens=most_tokens, temperature=temperature, generator=generator)


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if not 0.0 <= temperature < math.inf:
        raise ArgumentError(
            "temperature", expected="a number of at least 0", got=str(temperature), do="0 takes the likeliest token."
        )
    if temperature == 0.0:
        return int(logits.argmax())
    chances = torch.softmax((logits - logits.max()) / temperature, 0)
    return int(torch.multinomial(chances, 1, generator=generator))
