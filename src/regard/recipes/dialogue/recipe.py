"""Conversations and stories, read segment by segment, with four kinds of memory.

    regard train dialogue --download                                  EMA memory, chitchat
    regard train dialogue --set memory=cache
    regard train dialogue --set data=babi --set num_layers=2 --set segment=48
    regard run dialogue "Hello, how are you?"
    regard run dialogue conversations.jsonl

A model that has no memory sees its segment alone. What a memory is worth is how much better it predicts late turns,
and how far back a fact may stand that it still answers with.
"""

from __future__ import annotations

from torch import nn

from regard.recipes.dialogue.config import STORIES, Config
from regard.recipes.dialogue.data import load
from regard.recipes.dialogue.reply import run
from regard.recipes.dialogue.tasks import (
    DEPTHS,
    ConversationTask,
    StoryTask,
    as_dialogue_model,
    losses_by_depth,
)
from regard.training.task import Task

__all__ = ["STORIES", "Config", "make_task", "report", "run"]


def make_task(config: Config, *, download: bool) -> Task:
    """Chitchat, one's own dialogues or stories, and the variant that the configuration describes."""
    if config.data == "babi":
        return StoryTask(config)
    return ConversationTask(config, load(config.path, vocabulary=config.vocabulary, download=download))


def report(task: Task, model: nn.Module, config: Config) -> dict[str, object]:
    """The test: sums of losses and numbers of tokens of each conversation by depth, or answers of each story."""
    made = as_dialogue_model(model.eval())
    if isinstance(task, StoryTask):
        right = task.answered(made, "test", config.test_stories)
        return {
            "accuracy": {str(distance): float(each.mean()) for distance, each in right.items()},
            "right": {str(distance): [int(value) for value in each] for distance, each in right.items()},
        }
    if not isinstance(task, ConversationTask):
        raise TypeError(f"no report of {type(task).__name__}")
    sums, counts = losses_by_depth(made, task.corpus.examples("test"), config.segment)
    perplexity = (sums.sum(0) / counts.sum(0).clamp(min=1)).exp()
    return {
        "perplexity": {depth_name(depth): float(value) for depth, value in zip(DEPTHS, perplexity, strict=True)},
        "perplexity_of_all": float((sums.sum() / counts.sum()).exp()),
        "losses": [[round(float(value), 4) for value in row] for row in sums],
        "tokens": [[int(value) for value in row] for row in counts],
    }


def depth_name(depth: tuple[int, int | None]) -> str:
    """Such as 1-4 or 33+."""
    first, last = depth
    return f"{first}+" if last is None else f"{first}-{last}"
