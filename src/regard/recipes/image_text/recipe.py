"""Emoji and their captions: two styles are trained on, a third and concepts never seen are what is tested.

regard train image_text --download
regard train image_text --set loss=siglip
regard train image_text --compare --out DIR
regard run image_text photo.png                        captions that fit, the best first
regard run image_text "a cat that is happy"            emoji that fit
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.recipes.equal_budget import drawn_from
from regard.recipes.image_text import data
from regard.recipes.image_text.captions import Captions
from regard.recipes.image_text.data import LANGUAGES, NEW_STYLE, STYLES, TRAINED_STYLES, Emoji
from regard.recipes.image_text.model import LossName, TwoTowers
from regard.recipes.image_text.retrieval import AT, both_ways, captions_of, chance, pixel_scores, ranks
from regard.recipes.image_text.views import drawn_captions, drawn_pictures, plain_pictures
from regard.training.config import TrainingConfig
from regard.training.data_digest import digest_of
from regard.training.order import shuffled_batches

VOCABULARY = "captions.json"
_AT_ONCE = 256


class Config(TrainingConfig):
    """Settings of this recipe, beside those of `TrainingConfig`.

    Args:
        loss: "clip" or "siglip".
        embed_dim, num_heads, picture_layers, caption_layers: of the towers; embed_dim is a multiple of 32.
        width: of the space in which pictures and captions meet.
        dropout_p: in both towers.
        vocabulary: most pieces of captions.
        most_tokens: of a caption; longer ones are cut.
        batch_size: pairs. Each is a negative for the others, so accumulate is 1.
        concepts: how many emoji are used; 0 is all. For tries.
    """

    loss: LossName = "clip"
    embed_dim: int = Field(128, ge=32, multiple_of=32)
    num_heads: int = Field(4, ge=1)
    picture_layers: int = Field(2, ge=1)
    caption_layers: int = Field(2, ge=1)
    width: int = Field(128, ge=1)
    dropout_p: float = Field(0.0, ge=0, lt=1)
    vocabulary: int = Field(4000, ge=300)
    most_tokens: int = Field(24, ge=2)
    batch_size: int = Field(128, ge=2)
    concepts: int = Field(0, ge=0)
    steps: int = Field(5000, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    average_decay: float = Field(0.998, ge=0, lt=1)
    evaluate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _negatives_stay_together(self) -> Self:
        if self.accumulate != 1:
            raise ValueError("accumulate: expected 1: pairs of one batch are each other's negatives; lower batch_size")
        return self


class ImageText:
    """The task: a picture of a concept in one of two styles, and a caption of it, are to meet."""

    metric: str = "recall@5"

    def __init__(self, config: Config, emoji: Emoji) -> None:
        self.config = config
        some = config.concepts or len(emoji.concepts)
        self.emoji = Emoji(emoji.concepts[:some], emoji.pictures[:some])
        self.places = torch.tensor(self.emoji.of("train"))
        trained = [self.emoji.concepts[place] for place in self.emoji.of("train")]
        texts = [text for concept in trained for language in LANGUAGES for text in captions_of([concept], language)]
        self.captions = Captions.learned(texts, config.vocabulary, config.most_tokens)
        self.model: nn.Module = build(config, len(self.captions))

    def order(self, epoch: int) -> list[list[int]]:
        """An example's number also says in which epoch it is seen, so that it is drawn otherwise in each."""
        count, config = len(self.places) * len(TRAINED_STYLES), self.config
        batches = shuffled_batches(count, config.batch_size, seed=config.seed, epoch=epoch)
        return [[epoch * count + place for place in batch] for batch in batches]

    def units(self, indices: Sequence[int]) -> int:
        """Pairs."""
        return len(indices)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Pictures, tokens of captions and which are real, and the concept of each pair."""
        numbers, seed = torch.tensor(indices, dtype=torch.int64), self.config.seed
        styles = torch.tensor(TRAINED_STYLES)[numbers % len(TRAINED_STYLES)]
        concepts = self.places[numbers // len(TRAINED_STYLES) % len(self.places)]
        texts = drawn_captions([self.emoji.concepts[int(place)] for place in concepts], numbers, seed=seed)
        tokens, real = self.captions(texts)
        pictures = drawn_pictures(self.emoji.pictures[concepts, styles], numbers, seed=seed)
        return {"pictures": pictures, "tokens": tokens, "real": real, "groups": concepts}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean over the whole batch, of all processes, times this part's pairs: parts sum up to all pairs."""
        towers = as_towers(model)
        pictures, captions = towers(batch["pictures"], batch["tokens"], batch["real"])
        return towers.loss(pictures, captions, batch["groups"]) * len(batch["pictures"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recall@5, mean of both ways, languages and trained styles, of concepts that are never trained on."""
        places = self.emoji.of("validation") or self.emoji.of("train")
        right, found = torch.arange(len(places)), list[Tensor]()
        captions = self.caption_embeddings(model, places)
        for style in TRAINED_STYLES:
            pictures = self.picture_embeddings(model, places, style)
            for each in captions.values():
                scores = pictures @ each.T
                found += [ranks(scores, right), ranks(scores.T, right)]
        return {f"recall@{k}": float((torch.stack(found) <= k).float().mean()) for k in AT}

    def data_digest(self) -> str:
        """Of the trained concepts, and of the tokens of their captions."""
        trained = [self.emoji.concepts[int(place)] for place in self.places]
        tokens = [self.captions(captions_of(trained, language))[0] for language in LANGUAGES]
        return digest_of([self.places], tokens)

    def keep(self, folder: Path) -> None:
        """The vocabulary, which the weights are of no use without."""
        folder.mkdir(parents=True, exist_ok=True)
        self.captions.save(folder / VOCABULARY)

    def picture_embeddings(self, model: nn.Module, places: Sequence[int], style: int) -> Tensor:
        """Unit vectors (concepts, width) of their pictures in one style."""
        rgba = self.emoji.pictures[torch.tensor(places), style]
        return embedded_pictures(as_towers(model), plain_pictures(rgba))

    def caption_embeddings(self, model: nn.Module, places: Sequence[int]) -> dict[str, Tensor]:
        """Unit vectors (concepts, width) of their captions by language."""
        concepts = [self.emoji.concepts[place] for place in places]
        towers = as_towers(model)
        return {
            language: embedded_captions(towers, self.captions, captions_of(concepts, language))
            for language in LANGUAGES
        }


def make_task(config: Config, *, download: bool) -> ImageText:
    """The data and an untrained model.

    Raises:
        DataError: the data are not in the cache and not to be downloaded.
        ArgumentError: more processes than pairs in a batch.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > config.batch_size:
        raise ArgumentError(
            "batch_size", expected=f"{processes} or more, a pair a process", got=str(config.batch_size), do="Raise it."
        )
    return ImageText(config, data.load(download=download))


def build(config: Config, vocabulary: int) -> TwoTowers:
    """The model of a configuration, with the weights of its seed."""
    with drawn_from(config.seed):
        return TwoTowers(
            vocabulary,
            config.embed_dim,
            config.num_heads,
            picture_layers=config.picture_layers,
            caption_layers=config.caption_layers,
            width=config.width,
            loss=config.loss,
            dropout_p=config.dropout_p,
        )


@torch.no_grad()
def embedded_pictures(towers: TwoTowers, pictures: Tensor) -> Tensor:
    """Unit vectors on the CPU of pictures (count, 3, side, side)."""
    device = towers.picture.places.device
    parts = [towers.picture(part.to(device)).float().cpu() for part in torch.split(pictures, _AT_ONCE)]
    return nn.functional.normalize(torch.cat(parts), dim=1)


@torch.no_grad()
def embedded_captions(towers: TwoTowers, captions: Captions, texts: Sequence[str]) -> Tensor:
    """Unit vectors on the CPU of texts."""
    device = towers.picture.places.device
    parts: list[Tensor] = []
    for first in range(0, len(texts), _AT_ONCE):
        tokens, real = captions(texts[first : first + _AT_ONCE])
        parts.append(towers.caption(tokens.to(device), real.to(device)).float().cpu())
    return nn.functional.normalize(torch.cat(parts), dim=1)


def tested(emoji: Emoji) -> dict[str, tuple[list[int], list[int], tuple[int, ...]]]:
    """What is tested: concepts that are asked for, concepts that may be found, and the styles of the pictures."""
    known, new, everything = emoji.of("train"), emoji.of("test"), list(range(len(emoji.concepts)))
    new = new or known
    return {
        "known concepts, new style": (known, known, (NEW_STYLE,)),
        "new concepts, new style": (new, new, (NEW_STYLE,)),
        "new concepts, trained styles": (new, new, TRAINED_STYLES),
        "new concepts, new style, among all concepts": (new, everything, (NEW_STYLE,)),
    }


def report(task: ImageText, model: nn.Module, _config: Config) -> dict[str, Any]:
    """As `recalls_of`, and those of two baselines that learn nothing."""
    return {**recalls_of(task, model), "baselines": baselines(task)}


def recalls_of(task: ImageText, model: nn.Module) -> dict[str, Any]:
    """Recalls by test set, style and language, each with its interval; and two of them in short, English alone."""
    model.eval()
    found: dict[str, Any] = {}
    for name, (asked, answers, styles) in tested(task.emoji).items():
        right = torch.tensor([answers.index(place) for place in asked])
        captions = task.caption_embeddings(model, answers)
        for style in styles:
            pictures = task.picture_embeddings(model, asked, style)
            for language, each in captions.items():
                found[f"{name} | {STYLES[style]} | {language}"] = both_ways(pictures @ each.T, right)
    short = {
        f"recall@5, {name}, {way}": found[f"{name} | {STYLES[NEW_STYLE]} | en"][way]["recall@5"]["mean"]
        for name in ("known concepts, new style", "new concepts, new style")
        for way in ("picture to caption", "caption to picture")
    }
    return {**short, "recalls": found}


def baselines(task: ImageText) -> dict[str, Any]:
    """The same recalls of drawing at random, and of the nearest training pictures by their pixels."""
    emoji, known = task.emoji, task.emoji.of("train")
    seen = torch.stack([plain_pictures(emoji.pictures[torch.tensor(known), style]) for style in TRAINED_STYLES], 1)
    random, pixels = dict[str, Any](), dict[str, Any]()
    for name, (asked, answers, styles) in tested(emoji).items():
        right = torch.tensor([answers.index(place) for place in asked])
        for style in styles:
            pictures = plain_pictures(emoji.pictures[torch.tensor(asked), style])
            for language in LANGUAGES:
                those = captions_of([emoji.concepts[place] for place in known], language)
                these = captions_of([emoji.concepts[place] for place in answers], language)
                key = f"{name} | {STYLES[style]} | {language}"
                random[key] = {"picture to caption": chance(len(answers)), "caption to picture": chance(len(asked))}
                pixels[key] = both_ways(pixel_scores(pictures, seen, those, these), right)
    return {"random": random, "nearest pixels": pixels}


def as_towers(model: nn.Module) -> TwoTowers:
    """The model by its type."""
    if not isinstance(model, TwoTowers):
        raise TypeError(f"expected TwoTowers, got {type(model).__name__}")
    return model
