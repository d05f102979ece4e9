"""Fashion-MNIST at equal budget: one CNN with six kinds of attention, and a ViT that shows where its class looks.

regard train image_classification --download                        a ViT
regard train image_classification --set model=cnn --set attention=se
regard train image_classification --compare --out DIR               all of them, three seeds each
regard train image_classification --set images=FOLDER               your own pictures, named in FOLDER/labels.tsv
regard run image_classification photo.png --heatmap where.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from regard._errors import UnsupportedError
from regard.recipes.draws import integers
from regard.recipes.equal_budget import drawn_from
from regard.recipes.image_classification import data
from regard.recipes.image_classification.data import CLASSES, SIDE, Pictures, Splits
from regard.recipes.image_classification.model import CNN, Attention, ViT, class_attention
from regard.recipes.image_classification.overlay import check_target, draw_class_attention
from regard.recipes.image_classification.own_pictures import keep_classes, kept_classes, load_own
from regard.recipes.pictures import read_picture
from regard.recipes.trained import open_run
from regard.training.config import TrainingConfig
from regard.training.data_digest import digest_of
from regard.training.intervals import mean_interval
from regard.training.order import shuffled_batches
from regard.training.state import load_weights

SHIFT = 2
"""Pixels by which a training picture is moved at most, in each direction."""
_AT_ONCE = 500
"""Pictures that are evaluated together."""


class Config(TrainingConfig):
    """Settings of this recipe, beside those of `TrainingConfig`.

    Args:
        model: "vit" or "cnn".
        attention: of the CNN: none, se, eca, cbam, coordinate, or self.
        width: of the CNN's first convolution; a multiple of 8.
        embed_dim, num_heads, num_layers: of the ViT.
        batch_size: pictures.
        augment: move training pictures by up to 2 pixels, and mirror half of them.
        images: a folder of one's own pictures with `labels.tsv`, or a saved dataset, instead of Fashion-MNIST.
        pictures: how many of each split are used; 0 is all. For tries.
    """

    model: Literal["vit", "cnn"] = "vit"
    attention: Attention = "none"
    width: int = Field(16, ge=8, multiple_of=8)
    embed_dim: int = Field(64, ge=1)
    num_heads: int = Field(4, ge=1)
    num_layers: int = Field(4, ge=1)
    batch_size: int = Field(128, ge=1)
    augment: bool = True
    images: str | None = None
    pictures: int = Field(0, ge=0)
    steps: int = Field(1716, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    evaluate_every: int = Field(429, ge=1)
    checkpoint_every: int = Field(429, ge=1)


class Classification:
    """The task: pictures to one of some classes."""

    metric: str = "accuracy"

    def __init__(self, config: Config, splits: Splits) -> None:
        self.config = config
        train, validation, test = (
            part.first(config.pictures) for part in (splits.train, splits.validation, splits.test)
        )
        self.splits = Splits(train, validation, test, splits.classes)
        self._padded = functional.pad(self.splits.train.images, (SHIFT,) * 4)
        self.model: nn.Module = build(config, len(splits.classes))

    def keep(self, folder: Path) -> None:
        """What the trained model cannot be used without."""
        keep_classes(self.splits.classes, folder)

    def data_digest(self) -> str:
        """Of the training pictures and their labels."""
        train = self.splits.train
        return digest_of(train.images.flatten(1), [train.labels])

    def order(self, epoch: int) -> list[list[int]]:
        """An example's number also says in which epoch it is seen, so that it is moved otherwise in each."""
        count, config = len(self.splits.train), self.config
        batches = shuffled_batches(count, config.batch_size, seed=config.seed, epoch=epoch)
        return [[epoch * count + place for place in batch] for batch in batches]

    def units(self, indices: Sequence[int]) -> int:
        """Pictures."""
        return len(indices)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (batch, 1, 28, 28) and labels (batch,)."""
        numbers = torch.tensor(indices, dtype=torch.int64)
        places = numbers % len(self.splits.train)
        images = self._moved(numbers, places) if self.config.augment else self.splits.train.images[places]
        return data.normalised(images), self.splits.train.labels[places]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Sum of the smoothed cross entropies."""
        images, labels = batch
        logits = model(images).float()
        return functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing, reduction="sum")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy and mean cross entropy on the validation split."""
        split = self.splits.validation
        logits = logits_of(model, split)
        return {
            "accuracy": float((logits.argmax(1) == split.labels).float().mean()),
            "cross_entropy": float(functional.cross_entropy(logits, split.labels)),
        }

    def _moved(self, numbers: Tensor, places: Tensor) -> Tensor:
        seed, across = self.config.seed, torch.arange(SIDE)
        top, left = (integers(numbers, 2 * SHIFT + 1, seed=seed, stream=stream) for stream in (1, 2))
        mirrored = integers(numbers, 2, seed=seed, stream=3).bool()[:, None]
        columns = torch.where(mirrored, SIDE - 1 - across, across) + left[:, None]
        rows = across + top[:, None]
        return self._padded[places[:, None, None], rows[:, :, None], columns[:, None, :]]


def make_task(config: Config, *, download: bool) -> Classification:
    """The data and an untrained model.

    Raises:
        DataError: the data are not in the cache and not to be downloaded.
    """
    return Classification(config, splits_of(config, download=download))


def splits_of(config: Config, *, download: bool) -> Splits:
    """The pictures that the configuration names."""
    return data.load(download=download) if config.images is None else load_own(Path(config.images))


def build(config: Config, classes: int = len(CLASSES)) -> CNN | ViT:
    """The model of a configuration, with the weights of its seed."""
    with drawn_from(config.seed):
        if config.model == "vit":
            return ViT(config.embed_dim, config.num_heads, config.num_layers, side=SIDE, classes=classes)
        return CNN(config.width, config.attention, classes)


@torch.no_grad()
def logits_of(model: nn.Module, split: Pictures) -> Tensor:
    """(pictures, classes) in float32 on the CPU."""
    device = next(model.parameters()).device
    parts = (data.normalised(images).to(device) for images in torch.split(split.images, _AT_ONCE))
    return torch.cat([model(part).float().cpu() for part in parts])


def report(task: Classification, model: nn.Module, _config: Config) -> dict[str, Any]:
    """As `accuracy_of`, and two baselines that learn nothing."""
    return {**accuracy_of(task, model), "baselines": baselines(task.splits)}


def accuracy_of(task: Classification, model: nn.Module) -> dict[str, Any]:
    """Accuracy on the test split with its 95 % interval, and by class."""
    test = task.splits.test
    right = logits_of(model.eval(), test).argmax(1) == test.labels
    of_class = {name: right[test.labels == place] for place, name in enumerate(task.splits.classes)}
    found = part_of(right)
    return {
        "accuracy": found["mean"],
        "accuracy_low": found["low"],
        "accuracy_high": found["high"],
        "by_class": {name: float(each.float().mean()) for name, each in of_class.items() if len(each)},
    }


def baselines(splits: Splits) -> dict[str, dict[str, float]]:
    """What needs no training: the nearest mean picture of a class, and the nearest training picture, by pixels."""
    train, test = (_flat(split) for split in (splits.train, splits.test))
    means = torch.stack(
        [train[splits.train.labels == place].mean(0).nan_to_num() for place in range(len(splits.classes))]
    )
    to_means = torch.cdist(test, means).argmin(1)
    size = train.square().sum(1)
    nearest = torch.cat([torch.argmin(size - 2.0 * (part @ train.T), 1) for part in torch.split(test, _AT_ONCE)])
    return {
        "nearest class mean": part_of(to_means == splits.test.labels),
        "nearest picture": part_of(splits.train.labels[nearest] == splits.test.labels),
    }


def part_of(right: Tensor) -> dict[str, float]:
    """How many cases are right, with the 95 % bootstrap interval."""
    found = mean_interval(right.to(torch.float32))
    return {"mean": found.value, "low": found.low, "high": found.high}


@torch.no_grad()
def run(picture: Path, *, folder: Path, heatmap: Path | None = None) -> dict[str, Any]:
    """What is on a picture, by the model that was trained in `folder`.

    Args:
        picture: any picture file; it is made grey, 28 x 28 and bright on black.
        folder: of a training run.
        heatmap: draw there where the class token looks (a ViT only).

    Returns:
        "picture", "probabilities" (class and probability, the likeliest first), and "heatmap" with "class_attention":
        the mean over heads (7 x 7) and what the class token gives to itself.

    Raises:
        DataError: the picture cannot be used, or the drawing not be written.
        CheckpointError: no usable training run.
        UnsupportedError: a heatmap of a CNN.
    """
    if heatmap is not None:
        check_target(heatmap)
    image = data.preprocessed(read_picture(picture))
    config, weights = open_run(folder, Config, "image_classification")
    classes = kept_classes(folder, own=config.images is not None)
    model = build(config, len(classes)).eval()
    load_weights(model, weights)
    if heatmap is not None and not isinstance(model, ViT):
        raise UnsupportedError(
            {f"the CNN in {str(folder)!r}": "it has no class token whose weights could be drawn"},
            do="Train a ViT, the default: regard train image_classification",
        )
    found: dict[str, Any] = {"picture": str(picture)}
    if isinstance(model, ViT):
        seen = class_attention(model, data.normalised(image))
        chances = seen.logits.softmax(0)
        found["class_attention"] = {
            "patches": [[float(weight) for weight in row] for row in seen.patches.mean(0)],
            "class_token_on_itself": float(seen.to_itself.mean()),
        }
    else:
        seen, chances = None, torch.softmax(model(data.normalised(image)[None])[0], 0)
    ranked = sorted(zip(classes, map(float, chances), strict=True), key=lambda each: -each[1])
    found["probabilities"] = [{"class": name, "probability": chance} for name, chance in ranked]
    if heatmap is not None and seen is not None:
        draw_class_attention(image, seen, f"{ranked[0][0]} ({ranked[0][1]:.0%})", heatmap)
        found["heatmap"] = str(heatmap)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The result of `run` for people."""
    told = [f"{each['probability']:6.1%}  {each['class']}" for each in found["probabilities"]]
    return [*told, *([f"Where it looked: {found['heatmap']}"] if "heatmap" in found else [])]


def _flat(split: Pictures) -> Tensor:
    return split.images.flatten(1).to(torch.float32) / 255.0
