"""Small corpora for the tests of summaries: written here, and the real ones where they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

from regard.recipes.summarization.documents import Example, Splits
from regard.recipes.summarization.recipe import Config
from regard.recipes.summarization.text import paragraphs_of

PROPOSALS = Path(__file__).parents[3] / "shared" / "data" / "peps_abstracts.jsonl.gz"
"""Where this project's own checkout has them; absent elsewhere."""

_THINGS = ("editor", "compiler", "library", "server", "game", "player", "viewer", "parser", "daemon", "shell")
_KINDS = ("small", "fast", "simple", "graphical", "portable", "modular", "secure", "modern")
_FOR = ("music", "pictures", "chess", "networks", "fonts", "maps", "mail", "files", "graphs", "proofs")


def small_corpus(count: int, seed: int = 0) -> list[Example]:
    """Documents of one to three paragraphs, of which one sentence says what the summary says."""
    drawn = random.Random(seed)  # noqa: S311 - no secret
    examples: list[Example] = []
    for number in range(count):
        kind, thing, use = drawn.choice(_KINDS), drawn.choice(_THINGS), drawn.choice(_FOR)
        summary = f"{kind} {thing} for {use}, edition {number}"
        told = [f"Package {number} is a {kind} {thing} for {use}.", f"It was begun in year {number} by some people."]
        more = [f"Reader number {number} knows {drawn.choice(_FOR)} well." for _ in range(drawn.randrange(4))]
        text = "\n\n".join([" ".join(told), *([" ".join(more)] if more else [])])
        examples.append(Example(f"package-{number}", f"source-{number // 2}", paragraphs_of(text), summary))
    return examples


def small_splits(training: int = 24, other: int = 6) -> Splits:
    examples = small_corpus(training + 2 * other)
    return Splits(
        tuple(examples[:training]),
        tuple(examples[training : training + other]),
        tuple(examples[training + other :]),
    )


def small_config(**options: object) -> Config:
    usual: dict[str, object] = {
        "corpus": "file",
        "embed_dim": 16,
        "num_heads": 2,
        "pieces": 400,
        "decoder_layers": 1,
        "window": 4,
        "flat_tokens": 32,
        "long_tokens": 96,
        "words": 8,
        "batch_tokens": 512,
        "steps": 4,
        "warmup_steps": 1,
        "learning_rate": 3e-3,
        "precision": "float32",
        "threads": 1,
        "evaluate_every": 1000,
        "checkpoint_every": 1000,
    }
    return Config.model_validate({**usual, **options})


def written(path: Path, examples: list[Example]) -> Path:
    """As a user's file of documents."""
    lines = [
        json.dumps({"document": "\n\n".join(" ".join(each) for each in example.paragraphs), "summary": example.summary})
        for example in examples
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
