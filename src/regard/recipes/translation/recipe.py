"""English to Chinese (or German) with an encoder-decoder Transformer. The guide's 2.1.

regard train translation --download                     the translator
regard train translation --set num_heads=1              the same with one head
regard train translation --set model=gru                recurrent, with additive attention
regard run translation "The cat sat on the mat."
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from regard.explain.alignment_extract import StepRule
from regard.recipes.equal_budget import parameters_of
from regard.recipes.translation import data
from regard.recipes.translation.baselines import GruTranslator
from regard.recipes.translation.guidance import Guidance, PieceLinks
from regard.recipes.translation.model import TransformerTranslator, Translator
from regard.recipes.translation.pairs import Corpus, Language
from regard.recipes.translation.scoring import score_by_domain
from regard.recipes.translation.task import TranslationTask, encoded, one_source
from regard.recipes.translation.vocabulary import Vocabulary, train_vocabulary
from regard.training.config import OptimizerName, TrainingConfig
from regard.training.data_digest import digest_of
from regard.training.order import listed
from regard.training.setup import seed_all
from regard.training.sources import cache_folder, fresh_file
from regard.training.task import Task


def usual_rate(model: object, optimizer: object) -> float:
    """The best learning rate of those tried, which `docs/results/translation.md` lists."""
    if optimizer == "adamw":
        return 1.5e-3
    return 0.003 if model == "gru" else 0.012


class Config(TrainingConfig):
    """Settings of the translation recipe.

    Args:
        language: of the targets.
        pairs: a TSV or JSONL file of your own, or a saved dataset, to train on instead.
        model: "transformer", or "gru", which has as many parameters.
        pieces: size of the vocabulary of both languages.
        embed_dim, num_heads, encoder_layers, decoder_layers: of the Transformer.
        absolute: places that the Transformer has beside T5's relative positions: "sinusoid", or null for none.
        guidance: "ibm1": one head that looks at the source is taught by IBM model 1, or "none".
        guided_layer, guided_head: which head of the Transformer; negative numbers count from the last layer.
        guided_rule: by which step's weights it is taught, "consuming" or "predicting"; a GRU, whose state looks at the
            source before it reads a piece, by those of "predicting" only.
        guided_strength: factor of the guided loss.
        dropout_p: unless a schedule is given.
        batch_tokens: most pieces of a batch, padding counted, on its longer side.
        others: training pairs that are no prose in each epoch, as a part of those that are.
        beams: of the test's translations.
        learning_rate: unless given, 0.012 for the Transformer and 0.003 for the GRU, which diverges at 0.012; with
            optimizer=adamw 0.0015 for both. A comparison takes one that is given, and is not the usual, for all.
    """

    language: Language = "zh"
    pairs: str | None = None
    model: Literal["transformer", "gru"] = "transformer"
    pieces: int = Field(8000, ge=300)
    embed_dim: int = Field(256, ge=8)
    num_heads: int = Field(8, ge=1)
    encoder_layers: int = Field(4, ge=1)
    decoder_layers: int = Field(3, ge=1)
    absolute: Literal["sinusoid"] | None = "sinusoid"
    guidance: Literal["ibm1", "none"] = "none"
    guided_layer: int = -2
    guided_head: int = Field(0, ge=0)
    guided_rule: StepRule = "consuming"
    guided_strength: float = Field(0.5, ge=0)
    dropout_p: float = Field(0.1, ge=0, lt=1)
    batch_tokens: int = Field(4096, ge=1)
    others: float = Field(0.5, ge=0)
    beams: int = Field(4, ge=1)

    steps: int = Field(3_000, ge=1)
    optimizer: OptimizerName = "muon"
    learning_rate: float = Field(0.012, gt=0)
    warmup_steps: int = Field(500, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    average_decay: float = Field(0.999, ge=0, lt=1)
    dropout_start: float | None = Field(0.0, ge=0, lt=1)
    dropout_end: float | None = Field(0.15, ge=0, lt=1)
    health_every: int = Field(1_000, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_hang_together(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        found = cast("dict[str, Any]", given)
        rule: StepRule = "predicting" if found.get("model") == "gru" else "consuming"
        rate = usual_rate(found.get("model"), found.get("optimizer", "muon"))
        return {"guided_rule": rule, "learning_rate": rate, **found}

    @model_validator(mode="after")
    def _recurrent_look_comes_first(self) -> Self:
        if self.guidance != "none" and self.model == "gru" and self.guided_rule != "predicting":
            raise ValueError("guided_rule: expected predicting with model=gru, which looks at the source first")
        return self

    @classmethod
    def completed(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """AdamW was the only optimizer, and a Transformer had relative positions alone, which a GRU never has."""
        of_model = {"guided_rule": "predicting"} if saved.get("model") == "gru" else {"absolute": None}
        return {"optimizer": "adamw", **of_model, **saved}


def make_task(config: Config, *, download: bool) -> TranslationTask:
    """Load the pairs, learn the vocabulary, build the model.

    Raises:
        DataError: a package is absent, and the text says how to get it.
    """
    corpus = corpus_of(config, download=download)
    return task_of(config, corpus, vocabulary_of(config, corpus))


def corpus_of(config: Config, *, download: bool) -> Corpus:
    """The pairs that the configuration names."""
    if config.pairs is not None:
        return data.own(Path(config.pairs), config.language)
    return data.load(config.language, download=download)


def task_of(config: Config, corpus: Corpus, vocabulary: Vocabulary) -> TranslationTask:
    """The task for pairs that are there."""
    return TranslationTask(
        build(config, len(vocabulary)),
        corpus,
        vocabulary,
        language=config.language,
        batch_tokens=config.batch_tokens,
        others=config.others,
        smoothing=config.label_smoothing,
        taught=taught_of(config, corpus, vocabulary),
        seed=config.seed,
    )


def taught_of(config: Config, corpus: Corpus, vocabulary: Vocabulary) -> tuple[PieceLinks, Guidance] | None:
    """Links of the training pairs, kept in the cache as the vocabulary is, and how they are taught.

    Raises:
        ArgumentError: a layer or head that there is not.
    """
    if config.guidance == "none":
        return None
    guidance = Guidance(config.guided_layer, config.guided_head, config.guided_rule, config.guided_strength)
    if config.model == "transformer":
        guidance.check(config.decoder_layers, config.num_heads)
    sources, targets = encoded(corpus.train, vocabulary)
    path = _prepared("links", digest_of(sources, targets), f"-{PieceLinks.MADE_BY}.safetensors")
    if not path.exists():
        with fresh_file(path) as part:
            if not path.exists():  # another process has counted them while this one waited
                PieceLinks.by_ibm1(sources, targets).save(part)
    return PieceLinks.load(path), guidance


def build(config: Config, pieces: int) -> nn.Module:
    """The model, its weights decided by the seed."""
    seed_all(config.seed, 0, 0)
    whole = TransformerTranslator(
        pieces,
        config.embed_dim,
        config.num_heads,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        absolute=config.absolute,
        dropout_p=config.dropout_p,
    )
    if config.model == "transformer":
        return whole
    hidden = hidden_for(parameters_of(whole), pieces, config.embed_dim)
    return GruTranslator(pieces, config.embed_dim, hidden, config.dropout_p)


def hidden_for(budget: int, pieces: int, embed_dim: int) -> int:
    """The widest recurrent states with which the GRU has at most this many parameters."""
    with torch.device("meta"):
        widths = range(1, 1 + math.isqrt(budget))
        return max(
            1, bisect_right(widths, budget, key=lambda h: parameters_of(GruTranslator(pieces, embed_dim, h, 0.0)))
        )


def vocabulary_of(config: Config, corpus: Corpus) -> Vocabulary:
    """Of the training pairs; kept in the cache, for learning it takes a while."""
    path = _prepared("pieces", corpus.digest, f"-{config.pieces}.json")
    if not path.exists():
        texts = (text for pair in corpus.train for text in (pair.source, pair.target))
        vocabulary = train_vocabulary(texts, config.pieces)
        with fresh_file(path) as part:
            vocabulary.save(part)
    return Vocabulary.load(path)


def _prepared(what: str, digest: str, end: str) -> Path:
    return cache_folder() / "prepared" / f"translation-{what}-{digest[:16]}{end}"


def report(task: Task, model: nn.Module, config: Config) -> dict[str, Any]:
    """BLEU and chrF by domain on the test sentences, and what was written; one sentence at a time, as `run` does."""
    if not isinstance(task, TranslationTask):
        raise TypeError
    pairs = task.corpus.test
    written = translations(model, task.vocabulary, [pair.source for pair in pairs], beams=config.beams)
    scores = score_by_domain(written, pairs, config.language)
    return {"scores": scores, "corpus": task.corpus.digest, "written": written}


@torch.no_grad()
def translations(model: nn.Module, vocabulary: Vocabulary, sources: Sequence[str], *, beams: int) -> list[str]:
    """Of one sentence after the other."""
    translator = cast("Translator", model.eval())
    device = translator.vocabulary_weight().device
    written: list[str] = []
    for source in sources:
        pieces = one_source(source, vocabulary).to(device)
        lengths = torch.tensor([pieces.shape[1]], device=device)
        found = translator.generate(pieces, lengths, beams=beams, most_pieces=2 * pieces.shape[1] + 10)
        written.append(vocabulary.decode(listed(found.tokens[0, 0])))
    return written
