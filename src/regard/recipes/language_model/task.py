"""Settings, training and validation of a character model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from regard._errors import DataError
from regard.recipes.equal_budget import drawn_from
from regard.recipes.language_model.data import Characters
from regard.recipes.language_model.model import Gate, LanguageModel, Mixer, PositionName, model_of_budget
from regard.training.config import TrainingConfig
from regard.training.data_digest import digest_of
from regard.training.loss import vocabulary_cross_entropy

BLOCK = 256
"""Characters of the test that are drawn together when intervals are made: neighbours depend on one another."""


class Config(TrainingConfig):
    """`TrainingConfig`, and for this recipe:

    Args:
        text: a UTF-8 file instead of Shakespeare.
        embed_dim, num_heads, num_layers: sizes of the model. Its feed-forward width follows from the budget.
        dropout_p: of the model.
        mixer: "attention" or "s4d", a state space; what mixes characters.
        position: of attention: "rope", "alibi", "t5", "sinusoid" or "none".
        gate: of the heads' outputs: "none", "element" or "head", see `MultiHeadAttention`.
        window: how many characters one sees, itself included; 0 is all before it.
        length: characters of a training window.
        batch_size: windows in a batch.
        test_lengths: windows that the test is read in.
        test_characters: how many characters of the test are predicted, of its end.
    """

    steps: int = Field(500, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    evaluate_every: int = Field(250, ge=1)
    text: str | None = None
    embed_dim: int = Field(128, ge=2)
    num_heads: int = Field(4, ge=1)
    num_layers: int = Field(4, ge=1)
    dropout_p: float = Field(0.0, ge=0, lt=1)
    mixer: Mixer = "attention"
    position: PositionName = "rope"
    gate: Gate = "none"
    window: int = Field(0, ge=0)
    length: int = Field(256, ge=2)
    batch_size: int = Field(16, ge=1)
    test_lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    test_characters: int = Field(32768, ge=BLOCK)


class CharacterTask:
    """A `regard.training.Task`: an example is the place in the text where its window begins.

    Raises:
        DataError: a text whose parts are too short to be evaluated.
    """

    metric = "negative_loss"

    def __init__(self, config: Config, text: Characters) -> None:
        _require_room(config, text)
        self.config, self.text = config, text
        self.model: nn.Module = build(config, text.vocabulary)

    def order(self, epoch: int) -> Sequence[Sequence[int]]:
        """Windows side by side from a random beginning, in random order: other windows in each epoch."""
        size, length = self.config.batch_size, self.config.length
        generator = torch.Generator().manual_seed((self.config.seed << 20) + epoch)
        first = int(torch.randint(length, (), generator=generator))
        count = (len(self.text.train) - 1 - first) // length
        places = [first + length * int(number) for number in torch.randperm(count, generator=generator)]
        return [places[begin : begin + size] for begin in range(0, count - size + 1, size)]

    def data_digest(self) -> str:
        """Of the training text, and of the characters that its numbers stand for."""
        return digest_of([self.text.train], [[ord(character) for character in self.text.vocabulary]])

    def units(self, indices: Sequence[int]) -> int:
        return len(indices) * self.config.length

    def batch(self, indices: Sequence[int]) -> Tensor:
        """int64 (windows, length + 1)."""
        return torch.stack([self.text.train[place : place + self.config.length + 1] for place in indices])

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        made = as_language_model(model)
        states: Tensor = made(batch[:, :-1])
        return vocabulary_cross_entropy(
            states.flatten(0, 1),
            made.embedding.weight,
            batch[:, 1:].flatten(),
            smoothing=self.config.label_smoothing,
        )

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Of the validation text, in windows of the length of training."""
        count = min(self.config.test_characters, len(self.text.validation) - self.config.length - 1)
        losses = sliding_losses(as_language_model(model), self.text.validation, self.config.length, count)
        loss = float(losses.mean())
        return {"loss": loss, "bits_per_character": loss / math.log(2), "negative_loss": -loss}


def build(config: Config, vocabulary: str) -> LanguageModel:
    """The model of a configuration, its weights drawn from the seed."""
    with drawn_from(config.seed):
        return model_of_budget(
            vocabulary,
            config.embed_dim,
            config.num_heads,
            config.num_layers,
            mixer=config.mixer,
            position=config.position,
            gate=config.gate,
            window=config.window,
            dropout_p=config.dropout_p,
        )


@torch.no_grad()
def sliding_losses(model: LanguageModel, text: Tensor, length: int, count: int) -> Tensor:
    """Cross entropies (count,), in nats, of the last `count` characters of a text, whatever the length.

    Each is predicted from at least length / 2 characters and at most `length`, if the text has them.
    """
    stride = max(length // 2, 1)
    found: list[Tensor] = []
    ends = list(range(len(text), len(text) - count, -stride))
    for some in _chunks(ends, max(8192 // length, 1)):
        begins = [max(end - length - 1, 0) for end in some]
        if begins[-1] == 0:  # the first window of the text is shorter: by itself
            found.extend(
                _losses(model, text[begin:end][None], stride)[0] for begin, end in zip(begins, some, strict=True)
            )
            continue
        windows = torch.stack([text[begin:end] for begin, end in zip(begins, some, strict=True)])
        found.extend(_losses(model, windows, stride))
    return torch.cat(found[::-1])[-count:]


def _losses(model: LanguageModel, windows: Tensor, last: int) -> Tensor:
    """(windows, last): of their last characters."""
    windows = windows.to(model.embedding.weight.device)
    states = model(windows[:, :-1])[:, -last:]
    logits = states @ model.embedding.weight.T
    targets = windows[:, 1:][:, -last:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def _require_room(config: Config, text: Characters) -> None:
    """Validation and test have a window, and the test a block, or training would end in an evaluation of nothing."""
    need = max(config.length + 2, BLOCK + 1)
    for name, part in (("validation", text.validation), ("test", text.test)):
        if len(part) < need:
            raise DataError(
                f"the text is too short: its {name} part, a twentieth, has {len(part)} characters, and with length "
                f"{config.length} it needs {need}. Give a text of {20 * need} characters or more, or lower length."
            )


def as_language_model(model: nn.Module) -> LanguageModel:
    """What is evaluated, by its type."""
    if not isinstance(model, LanguageModel):
        raise TypeError(f"expected a LanguageModel, got {type(model).__name__}")
    return model


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
