"""A trained pair of towers at work: captions for a picture, emoji for a text.

What may be found are all emoji of the data, those of the test too. Their embeddings are computed once for a training
run and kept in its folder, so that later searches need no data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from regard._errors import ArgumentError, CheckpointError, DataError
from regard._text import check_text
from regard.recipes.image_text import data
from regard.recipes.image_text.captions import Captions
from regard.recipes.image_text.data import LANGUAGES, SIDE, STYLES, Emoji, Language
from regard.recipes.image_text.model import TwoTowers
from regard.recipes.image_text.recipe import (
    VOCABULARY,
    Config,
    build,
    captions_of,
    embedded_captions,
    embedded_pictures,
)
from regard.recipes.image_text.views import plain_pictures
from regard.recipes.pictures import contained, on_background, read_picture, tensor_of
from regard.recipes.trained import open_run
from regard.training.sources import sha256_of
from regard.training.state import load_weights

GALLERY, NAMES = "gallery.safetensors", "gallery.json"
_LONGEST_PATH = 1000
_files: Any = safetensors
"""Its functions have no types of their own."""


@dataclass(frozen=True)
class Gallery:
    """What may be found.

    Attributes:
        emoji: each as it is typed.
        captions: by language.
        of_captions: unit vectors (emoji, width) by language.
        of_pictures: unit vectors (emoji, styles, width).
    """

    emoji: list[str]
    captions: dict[str, list[str]]
    of_captions: dict[str, Tensor]
    of_pictures: Tensor


class Search:
    """The towers of a training run, with its gallery.

    Args:
        folder: of the run.
        download: take the data, if the gallery is not made yet and they are not in the cache.

    Raises:
        CheckpointError: no usable run.
        DataError: no gallery yet, and no data to make it of.
    """

    def __init__(self, folder: Path, *, download: bool = False) -> None:
        self.config, weights = open_run(folder, Config, "image_text")
        vocabulary = folder / VOCABULARY
        if not vocabulary.is_file():
            raise CheckpointError(f"{str(folder)!r}: {VOCABULARY}, the vocabulary of the run, is gone. Train again.")
        self.captions = Captions.load(vocabulary, self.config.most_tokens)
        self.towers: TwoTowers = build(self.config, len(self.captions)).eval()
        load_weights(self.towers, weights)
        self.gallery = self._gallery(folder, download=download)

    def captions_for(self, picture: Path, *, language: Language = "en", best: int = 5) -> list[dict[str, Any]]:
        """The captions that fit a picture: "emoji", "caption" and "score", the cosine, best first.

        The picture is laid on white and made square by white beside it, as emoji are.

        Raises:
            DataError: the picture cannot be used.
        """
        own = embedded_pictures(self.towers, prepared(picture))[0]
        _check_options(language, best)
        return self._best(self.gallery.of_captions[language] @ own, language, best)

    def emoji_for(self, text: str, *, language: Language = "en", best: int = 5) -> list[dict[str, Any]]:
        """The emoji that fit a text in either language: as `captions_for`, by each emoji's most alike style.

        Raises:
            DataError: no text in it.
        """
        _check_options(language, best)
        own = embedded_captions(self.towers, self.captions, [check_text(text)])[0]
        return self._best((self.gallery.of_pictures @ own).amax(1), language, best)

    def _best(self, scores: Tensor, language: Language, best: int) -> list[dict[str, Any]]:
        found = scores.topk(min(best, len(scores)))
        names, captions = self.gallery.emoji, self.gallery.captions[language]
        return [
            {"emoji": names[int(place)], "caption": captions[int(place)], "score": float(score)}
            for score, place in zip(found.values, found.indices, strict=True)
        ]

    def _gallery(self, folder: Path, *, download: bool) -> Gallery:
        mark = _mark(self.towers, folder / VOCABULARY)
        kept = _kept(folder, mark)
        if kept is not None:
            return kept
        made = self._made(data.load(download=download))
        tensors = {f"captions.{language}": each for language, each in made.of_captions.items()}
        try:
            _files.save_file({**tensors, "pictures": made.of_pictures}, folder / GALLERY)
            facts = {"mark": mark, "emoji": made.emoji, "captions": made.captions}
            (folder / NAMES).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
        except (OSError, SafetensorError):  # a folder that may only be read: it is made again the next time
            pass
        return made

    def _made(self, emoji: Emoji) -> Gallery:
        texts = {language: captions_of(emoji.concepts, language) for language in LANGUAGES}
        pictures = [
            embedded_pictures(self.towers, plain_pictures(emoji.pictures[:, style])) for style in range(len(STYLES))
        ]
        return Gallery(
            [concept.emoji for concept in emoji.concepts],
            {language: list(each) for language, each in texts.items()},
            {language: embedded_captions(self.towers, self.captions, each) for language, each in texts.items()},
            torch.stack(pictures, 1),
        )


def run(
    given: str, *, folder: Path, language: Language = "en", best: int = 5, download: bool = False
) -> dict[str, Any]:
    """`captions_for` a picture, if `given` is the path of a file or ends like one, else `emoji_for` a text.

    Returns:
        "input", "kind" ("picture" or "text") and "found", see `Search`.

    Raises:
        DataError, ArgumentError, CheckpointError: see `Search`; a bad input is refused before any model is read.
    """
    _check_options(language, best)
    picture = is_picture(given)
    if picture:
        prepared(Path(given))
    else:
        check_text(given)
    search = Search(folder, download=download)
    found = (
        search.captions_for(Path(given), language=language, best=best)
        if picture
        else search.emoji_for(given, language=language, best=best)
    )
    return {"input": given, "kind": "picture" if picture else "text", "found": found}


def lines(found: dict[str, Any]) -> list[str]:
    """The result of `run` for people."""
    return [f"{each['score']:6.3f}  {each['emoji']}  {each['caption']}" for each in found["found"]]


def is_picture(given: str) -> bool:
    """A path that exists, or one word that ends as picture files do."""
    endings = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    if given.casefold().endswith(endings):
        return True
    try:
        return bool(given) and len(given) < _LONGEST_PATH and Path(given).exists()
    except (OSError, ValueError):  # no path at all, such as a text with a null character
        return False


def prepared(path: Path) -> Tensor:
    """A picture as the towers take them, (1, 3, side, side) from -1 to 1. Raises DataError."""
    from PIL import Image

    fitting = contained(on_background(read_picture(path)), SIDE)
    square = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    square.paste(fitting, ((SIDE - fitting.width) // 2, (SIDE - fitting.height) // 2))
    return tensor_of(square)[None].to(torch.float32) / 127.5 - 1.0


def _check_options(language: str, best: int) -> None:
    if language not in LANGUAGES:
        raise ArgumentError("language", expected="en or zh", got=repr(language), do="Take one of these.")
    if best < 1:
        raise ArgumentError("best", expected="1 or more", got=str(best), do="Leave it out for 5.")


def _mark(towers: TwoTowers, vocabulary: Path) -> str:
    """By which a gallery of other weights is told."""
    total = sum(float(parameter.detach().double().abs().sum()) for parameter in towers.parameters())
    return f"{total!r}/{sha256_of(vocabulary)}"


def _kept(folder: Path, mark: str) -> Gallery | None:
    try:
        facts = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        if facts["mark"] != mark:
            return None
        tensors = _files.load_file(folder / GALLERY)
        of_captions = {language: tensors[f"captions.{language}"] for language in LANGUAGES}
        return Gallery(facts["emoji"], facts["captions"], of_captions, tensors["pictures"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, DataError):
        return None
