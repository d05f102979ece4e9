"""Writes on: `regard run language_model "ROMEO:"`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from regard._errors import ArgumentError
from regard.recipes.language_model.data import decode, encode
from regard.recipes.language_model.model import LanguageModel
from regard.recipes.language_model.task import Config, build
from regard.recipes.trained import open_run


def run(prompt: str, folder: Path, *, characters: int = 500, temperature: float = 0.8, seed: int = 1) -> str:
    """What a trained model writes after a prompt, without the prompt.

    Args:
        prompt: any text; characters that training did not have are read as unknown. Without any it begins a line.
        folder: of a training run.
        characters: how many are written.
        temperature: 0 takes the likeliest each time, 1 draws as the model says, more is wilder.
        seed: the same seed writes the same.

    Raises:
        CheckpointError: no trained model there.
        ArgumentError: a temperature below 0, or less than one character.
    """
    model, config = trained(folder)
    text = encode(prompt or "\n", model.vocabulary)
    written = continuation(model, text, config.length, characters=characters, temperature=temperature, seed=seed)
    return decode(written, model.vocabulary)


@torch.no_grad()
def continuation(
    model: LanguageModel, text: Tensor, length: int, *, characters: int, temperature: float, seed: int
) -> Tensor:
    """int64 (characters,): drawn one by one, each from the last `length` before it; see `run`."""
    if characters < 1 or not 0.0 <= temperature < math.inf:
        raise ArgumentError(
            "characters, temperature",
            expected="at least 1, and a number of at least 0",
            got=f"{characters}, {temperature}",
            do="Temperature 0 takes the likeliest character, 1 draws as the model says.",
        )
    generator = torch.Generator().manual_seed(seed)
    begun = len(text)
    for _ in range(characters):
        logits = model.logits(text[None, -length:])[0, -1].float()
        logits[0] = -math.inf  # the unknown character is read, never written
        if temperature:
            chances = torch.softmax((logits - logits.max()) / temperature, 0)
            following = torch.multinomial(chances, 1, generator=generator)
        else:
            following = logits.argmax(0, keepdim=True)
        text = torch.cat([text, following])
    return text[begun:]


def trained(folder: Path) -> tuple[LanguageModel, Config]:
    """The model of a training run, in eval mode, and its configuration. Raises CheckpointError."""
    config, weights = open_run(folder, Config, "language_model")
    vocabulary = "".join(map(chr, map(int, weights["characters"])))
    model = build(config, vocabulary)
    model.load_state_dict(weights)
    return model.eval(), config
