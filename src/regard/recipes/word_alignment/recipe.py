"""Word alignment by cross-attention, on Greek and English verses that people aligned (the guide's 2.1).

    regard train word_alignment --set guidance=gold --download      one head taught by people
    regard train word_alignment --set guidance=ibm1                 by IBM model 1: no alignment by people is seen
    regard train word_alignment --set guidance=none                 attention as it comes
    regard train word_alignment --compare                           all three

The model is that of the translation recipe, smaller. What is reported is AER on verses that were held out, beside IBM
model 1, for both step rules; layer, head and threshold are chosen on the validation verses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field
from torch import nn

from regard.explain.alignment import Links
from regard.explain.alignment_extract import StepRule
from regard.recipes.translation.guidance import Guidance
from regard.recipes.translation.model import TransformerTranslator
from regard.recipes.translation.verses import Verse, load_verses
from regard.recipes.translation.vocabulary import train_vocabulary
from regard.recipes.word_alignment.measure import RULES, best_reading, told, weights_of_verses
from regard.recipes.word_alignment.task import AlignmentTask
from regard.recipes.word_alignment.teachers import JOINED, ibm1_links
from regard.training.config import TrainingConfig
from regard.training.setup import seed_all

Splits = tuple[Sequence[Verse], Sequence[Verse], Sequence[Verse]]


class Config(TrainingConfig):
    """Settings of the word alignment recipe.

    Args:
        guidance: whose links teach the head: "gold", "ibm1", or "none".
        rule: by which step's weights it is taught.
        guided_layer, guided_head: which head; negative numbers count from the last layer.
        guided_strength: factor of the guided loss.
        pieces: size of the vocabulary of both languages.
        embed_dim, num_heads, encoder_layers, decoder_layers: of the Transformer.
        dropout_p: unless a schedule is given.
        batch_tokens: most pieces of a batch, padding counted, on its longer side.
    """

    guidance: Literal["gold", "ibm1", "none"] = "ibm1"
    rule: StepRule = "consuming"
    guided_layer: int = -2
    guided_head: int = Field(0, ge=0)
    guided_strength: float = Field(0.5, ge=0)
    pieces: int = Field(6000, ge=300)
    embed_dim: int = Field(192, ge=8)
    num_heads: int = Field(4, ge=1)
    encoder_layers: int = Field(3, ge=1)
    decoder_layers: int = Field(3, ge=1)
    dropout_p: float = Field(0.2, ge=0, lt=1)
    batch_tokens: int = Field(3000, ge=1)

    steps: int = Field(3_000, ge=1)
    learning_rate: float = Field(1.5e-3, gt=0)
    warmup_steps: int = Field(300, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    average_decay: float = Field(0.998, ge=0, lt=1)


def make_task(config: Config, *, download: bool) -> AlignmentTask:
    """Load the verses, learn the vocabulary of the training ones, build the model.

    Raises:
        DataError: the package is absent, and the text says how to get it.
    """
    return task_of(config, load_verses(download=download))


def task_of(config: Config, splits: Splits) -> AlignmentTask:
    """The task for verses that are there.

    Raises:
        ArgumentError: a layer or head that there is not.
    """
    guidance = Guidance(config.guided_layer, config.guided_head, config.rule, config.guided_strength)
    guidance.check(config.decoder_layers, config.num_heads)
    train = splits[0]
    texts = (" ".join(side).lower() for verse in train for side in (verse.source_tokens, verse.target_tokens))
    vocabulary = train_vocabulary(texts, config.pieces)
    seed_all(config.seed, 0, 0)
    model = TransformerTranslator(
        len(vocabulary),
        config.embed_dim,
        config.num_heads,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        absolute=None,
        dropout_p=config.dropout_p,
    )
    return AlignmentTask(
        model,
        vocabulary,
        splits,
        taught=_taught(config, train),
        guidance=guidance,
        batch_tokens=config.batch_tokens,
        smoothing=config.label_smoothing,
        seed=config.seed,
    )


def report(task: AlignmentTask, model: nn.Module, config: Config) -> dict[str, Any]:
    """AER on the test verses with its interval: of attention by both step rules, and of IBM model 1."""
    translator = cast("TransformerTranslator", model.eval())
    on_validation = weights_of_verses(translator, task.validation.sources, task.validation.targets)
    on_test = weights_of_verses(translator, task.test.sources, task.test.targets)
    attention: dict[str, Any] = {}
    for rule in RULES:
        reading, aer = best_reading(on_validation, task.validation.gold, rule)
        found = [verse.links(reading) for verse in on_test]
        attention[rule] = {
            "layer": reading.layer,
            "head": "mean" if reading.head is None else reading.head,
            "least": reading.least,
            "validation_aer": aer,
            "test": told(found, task.test.gold),
        }
    return {"guidance": config.guidance, "attention": attention, "ibm1": baselines(task)}


def baselines(task: AlignmentTask) -> dict[str, Any]:
    """IBM model 1 on the test verses, from the text of the training verses, and of all verses: it needs no links."""
    train, validation, test = task.train.verses, task.validation.verses, task.test.verses
    texts = {"training verses": train, "all verses": [*train, *validation, *test]}
    return {
        name: {way: told(found, task.test.gold) for way, found in ibm1_links(text, test).items()}
        for name, text in texts.items()
    }


def _taught(config: Config, train: Sequence[Verse]) -> Sequence[Links] | None:
    match config.guidance:
        case "gold":
            return [frozenset(verse.links) for verse in train]
        case "ibm1":
            return ibm1_links(train, train)[JOINED]
        case "none":
            return None
