"""A small made-up language pair, and a translator that has seen a little of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from regard._sealed_folder import MANIFEST, sealed
from regard.recipes.translation.pairs import Corpus, Pair
from regard.recipes.translation.recipe import Config, task_of
from regard.recipes.translation.task import TranslationTask
from regard.recipes.translation.vocabulary import Vocabulary, train_vocabulary
from regard.training import train

WORDS = {
    "the": "这", "cat": "猫", "dog": "狗", "sat": "坐", "on": "在", "mat": "垫子", "big": "大", "red": "红",
    "runs": "跑", "and": "和", "eats": "吃", "fish": "鱼", "bank": "银行", "river": "河", "money": "钱",
}  # fmt: skip


def made_up_corpus(count: int = 400) -> Corpus:
    """Sentences of random words, translated word by word."""
    chance = random.Random(7)  # noqa: S311 - no secret

    def pair() -> Pair:
        words = chance.choices(list(WORDS), k=chance.randint(2, 7))
        domain = chance.choice(("hsk", "wesnoth", "bible"))
        return Pair(" ".join(words) + ".", "".join(WORDS[word] for word in words) + "。", domain)

    pairs = list({each.source: each for each in (pair() for _ in range(count))}.values())
    return Corpus(pairs[40:], pairs[:20], pairs[20:40], {})


def pieces_of(corpus: Corpus, size: int = 380) -> Vocabulary:
    return train_vocabulary((text for pair in corpus.train for text in (pair.source, pair.target)), size)


TINY = {
    "pieces": 380, "embed_dim": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2, "batch_tokens": 256,
    "steps": 12, "warmup_steps": 4, "evaluate_every": 12, "checkpoint_every": 6, "log_every": 1, "health_every": 0,
}  # fmt: skip


def tiny_task(**settings: object) -> tuple[TranslationTask, Config]:
    config = Config.model_validate({**TINY, **settings})
    corpus = made_up_corpus()
    return task_of(config, corpus, pieces_of(corpus, config.pieces)), config


def tiny_run(folder: Path, **settings: object) -> Path:
    """Train for a few steps, as `regard train` does."""
    task, config = tiny_task(**settings)
    folder.mkdir(parents=True, exist_ok=True)
    task.keep(folder)
    train(task, config, folder)
    return folder


def make_older(folder: Path, key: str) -> None:
    """Take a setting out of all checkpoints below, as if they had been written before there was one."""
    for path in folder.rglob(MANIFEST):
        says = json.loads(path.read_text())
        del says["facts"]["config"][key], says["sha256"]
        path.write_bytes(sealed(says))
