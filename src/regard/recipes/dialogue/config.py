"""Settings of the dialogue recipe."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regard.recipes.dialogue.babi import WORDS_OF_A_TURN
from regard.recipes.dialogue.model import Memory
from regard.training.config import TrainingConfig


class Config(TrainingConfig):
    """`TrainingConfig`, and for this recipe:

    Args:
        data: "chitchat", conversations, or "babi", stories with a question (`STORIES` has defaults for them).
        path: a JSONL file of one's own dialogues, or a saved dataset, instead of chitchat.
        memory: "none", "ema", "cache" or "recurrent"; see `regard.recipes.dialogue.model`.
        slots: vectors of "ema", tokens of "recurrent".
        decay: lambda of "ema" at the beginning; it is learned for each slot.
        reach: tokens of "cache" beside the segment.
        embed_dim, num_heads, num_layers: sizes of the model; its feed-forward width follows from the budget.
        dropout_p: of the model.
        segment: tokens that are read at once.
        gradient_segments: how many segments the gradient goes back.
        batch_tokens: tokens in a batch, at most.
        most_tokens: longer conversations are trained on in parts of so many tokens. Tests read them whole.
        vocabulary: of the text; three tokens come in addition.
        validation_conversations: how many are evaluated while training.
        distances: of stories, in turns; as many of each.
        facts: supporting facts of a story, 1 or 2.
        story_turns: of six words each.
        test_stories: for each distance.
    """

    data: Literal["chitchat", "babi"] = "chitchat"
    path: str | None = None
    memory: Memory = "ema"
    slots: int = Field(16, ge=1)
    decay: float = Field(0.9, gt=0, lt=1)
    reach: int = Field(64, ge=1)
    embed_dim: int = Field(128, ge=2, multiple_of=2)
    num_heads: int = Field(4, ge=1)
    num_layers: int = Field(4, ge=1)
    dropout_p: float = Field(0.1, ge=0, lt=1)
    segment: int = Field(64, ge=2)
    gradient_segments: int = Field(4, ge=1)
    batch_tokens: int = Field(8192, ge=2)
    most_tokens: int = Field(1024, ge=2)
    vocabulary: int = Field(4096, ge=300)
    validation_conversations: int = Field(100, ge=1)
    distances: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    facts: int = Field(1, ge=1, le=2)
    story_turns: int = Field(72, ge=3)
    test_stories: int = Field(200, ge=1)
    steps: int = Field(560, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    evaluate_every: int = Field(280, ge=1)

    @model_validator(mode="after")
    def _distances_fit(self) -> Self:
        if not self.distances or not all(self.facts <= distance < self.story_turns for distance in self.distances):
            raise ValueError("distances: expected from as many turns as there are facts to less than story_turns")
        return self


STORIES: dict[str, Any] = {
    "data": "babi",
    "memory": "ema",
    "num_layers": 2,
    "dropout_p": 0.0,
    "segment": 8 * WORDS_OF_A_TURN,
    "reach": 8 * WORDS_OF_A_TURN,
    "gradient_segments": 9,
    "batch_tokens": 2048,
    "steps": 2000,
    "evaluate_every": 1000,
}
"""For stories: segments of 8 turns, so that a fact 8 turns or more away stands in another one."""
