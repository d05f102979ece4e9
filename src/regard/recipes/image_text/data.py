"""Emoji in three styles, with a label and tags in English and Chinese: small pictures and what they are called.

Texts are of emojibase (MIT; Unicode CLDR), pictures of Noto (Apache-2.0), Twemoji (CC-BY-4.0) and Fluent 3D (MIT),
each from its npm package. Only emoji that all four have, without skin tones; one whose picture another has too, in any
style, or whose label, is left out: flags of islands under their country's flag, for one.

Splits are by concept: a man, a woman and a person who row are one family, and a family is on one side only. About a
tenth of the families is held out for the test and a twentieth for validation, by a hash of their code points, so that
neither seed nor version moves them. The third style is never trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from regard._errors import DataError
from regard.recipes.pictures import read_picture, tensor_of
from regard.training.sources import Package, cache_folder, fetch_all, fresh_folder

Split = Literal["train", "validation", "test"]
Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")
STYLES = ("noto", "twemoji", "fluent")
TRAINED_STYLES, NEW_STYLE = (0, 1), 2
"""Places in `STYLES`."""

SIDE = 48
_VERSION = 1
"""Of what is derived and cached here; another number makes it anew."""

TEXTS = Package(
    registry="npm",
    name="emojibase-data",
    version="17.0.0",
    file="emojibase-data-17.0.0.tgz",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    licence="MIT",
    megabytes=6.7,
    members=("package/en/data.json", "package/zh/data.json"),
)
NOTO = Package(
    registry="npm",
    name="emoji-datasource-google",
    version="16.0.0",
    file="emoji-datasource-google-16.0.0.tgz",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    licence="Apache-2.0",
    megabytes=74.3,
    members=("package/img/google/64/*",),
)
TWEMOJI = Package(
    registry="npm",
    name="emoji-datasource-twitter",
    version="16.0.0",
    file="emoji-datasource-twitter-16.0.0.tgz",
    sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    licence="CC-BY-4.0",
    megabytes=61.7,
    members=("package/img/twitter/64/*",),
)
FLUENT = Package(
    registry="npm",
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    file="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    licence="MIT",
    megabytes=15.8,
    members=("package/assets/*",),
)
_PICTURES = ("package/img/google/64", "package/img/twitter/64", "package/assets")


@dataclass(frozen=True)
class Concept:
    """One emoji.

    Attributes:
        code: its code points, without the variation selector.
        emoji: as it is typed.
        label, tags: by language.
        split: of its family.
    """

    code: str
    emoji: str
    label: dict[str, str]
    tags: dict[str, list[str]]
    split: Split

    def caption(self, language: Language) -> str:
        """Label and all tags: what is searched and found."""
        return caption_of(self.label[language], self.tags[language], language)


@dataclass(frozen=True)
class Emoji:
    """All of them.

    Attributes:
        concepts: in the order of Unicode's chart.
        pictures: uint8 (concepts, styles, 4, side, side), RGBA.
    """

    concepts: list[Concept]
    pictures: Tensor

    def of(self, split: Split) -> list[int]:
        """Places of the concepts of a split."""
        return [place for place, concept in enumerate(self.concepts) if concept.split == split]


def caption_of(label: str, tags: list[str], language: Language) -> str:
    """In the form that captions have."""
    between, after = (", ", ": ") if language == "en" else ("、", "：")
    return label + (after + between.join(tags) if tags else "")


def load(*, download: bool) -> Emoji:
    """Concepts and pictures, decoded once and kept in the cache as one array.

    Raises:
        DataError: a package is not in the cache and not to be downloaded, or it is damaged.
    """
    folders = fetch_all([TEXTS, NOTO, TWEMOJI, FLUENT], download=download, recipe="image_text")
    texts, *styles = folders
    return decoded(texts / "package", [home / part for home, part in zip(styles, _PICTURES, strict=True)])


def decoded(texts: Path, styles: list[Path]) -> Emoji:
    """As `load`, from the folders of the texts and of each style."""
    key = hashlib.sha256("/".join([str(_VERSION), str(SIDE), *map(str, (texts, *styles))]).encode()).hexdigest()
    folder = cache_folder() / "decoded" / f"emoji-{key[:16]}"
    if not (folder / "concepts.json").exists():
        with fresh_folder(folder) as part:
            if not folder.exists():
                _decode(texts, styles, part)
    listed = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    concepts = [Concept(**each) for each in listed]
    sizes = (len(concepts), len(STYLES), 4, SIDE, SIDE)
    size = sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4]
    pictures = torch.from_file(str(folder / "pictures.uint8"), size=size, dtype=torch.uint8)
    return Emoji(concepts, pictures.reshape(sizes))


def family_of(code: str) -> str:
    """What the variants of one concept have in common: their code points without gender, person and direction.

    "1F6A3-200D-2642" (a man who rows) and "1F6A3" are both "1F6A3"; a man and a woman firefighter are "1F692".
    """
    parts = [part for part in code.split("-") if part not in _VARIANT]
    kept = [part for part in parts if part not in _PEOPLE] or parts[:1]
    return "-".join(dict.fromkeys(kept)) or code


_VARIANT = {"200D", "FE0F", "2640", "2642", "27A1", "2194", "2195"}
_PEOPLE = {"1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2"}


def split_of(family: str) -> Split:
    """Of a thousand families 100 are test and 50 validation."""
    place = int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) % 1000
    return "test" if place < 100 else "validation" if place < 150 else "train"


def _decode(texts: Path, styles: list[Path], part: Path) -> None:
    told = {language: _texts(texts / language / "data.json") for language in LANGUAGES}
    files = [_files(style) for style in styles]
    concepts: list[Concept] = []
    known: set[bytes | tuple[str, str]] = set()
    with (part / "pictures.uint8").open("wb") as out:
        for code, entry in told["en"].items():
            if code not in told["zh"] or not all(code in each for each in files):
                continue
            pictures = [_picture(each[code]) for each in files]
            concept = _concept(code, entry, told["zh"][code])
            marks = {hashlib.sha256(bytes([place]) + each).digest() for place, each in enumerate(pictures)}
            names = {(language, label.casefold()) for language, label in concept.label.items()}
            if known.isdisjoint(marks | names):
                out.write(b"".join(pictures))
                concepts.append(concept)
            known |= marks | names
    text = json.dumps([asdict(concept) for concept in concepts], ensure_ascii=False)
    (part / "concepts.json").write_text(text, encoding="utf-8")


def _concept(code: str, english: dict[str, Any], chinese: dict[str, Any]) -> Concept:
    entries = {"en": english, "zh": chinese}
    return Concept(
        code,
        english["emoji"],
        {language: str(entry["label"]) for language, entry in entries.items()},
        {language: list(entry.get("tags", ())) for language, entry in entries.items()},
        split_of(family_of(code)),
    )


def _texts(path: Path) -> dict[str, dict[str, Any]]:
    """By code; without parts of emoji (skin tones, regional letters), which have no group or the group of parts."""
    try:
        entries = cast("list[dict[str, Any]]", json.loads(path.read_text(encoding="utf-8")))
        return {_code(entry["hexcode"]): entry for entry in entries if entry.get("group", 2) != 2}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name}: expected emojibase's list of emoji ({error}). Download it again.") from error


def _files(folder: Path) -> dict[str, Path]:
    return {_code(path.stem): path for path in _sorted(folder) if path.suffix in {".png", ".webp"}}


def _sorted(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder.name}: expected a folder of pictures in the package. Download it again.")
    return iter(sorted(folder.iterdir()))


def _code(written: str) -> str:
    return written.upper().replace("-FE0F", "")


def _picture(path: Path) -> bytes:
    """RGBA of `SIDE` pixels, channels first."""
    from PIL import Image

    picture = read_picture(path)
    return bytes(tensor_of(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)).numpy())
