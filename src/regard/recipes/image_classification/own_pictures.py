"""Pictures of one's own: a folder with `labels.tsv`, each line the name of a file, a tab, and its class.

Each becomes grey, 28 x 28 and bright on black, as Fashion-MNIST is. Of the different pictures of a class every tenth is
for the test and every tenth for validation, in an order that their pixels decide: it stays when others are added to
other classes, and the same picture is never on two sides.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from regard._errors import CheckpointError, DataError
from regard.recipes.image_classification.data import CLASSES, Pictures, Splits, preprocessed
from regard.recipes.pictures import read_picture
from regard.training.records import LabelledImage, read_images
from regard.training.whole_file import write_whole

FEWEST = 3
"""Different pictures of a class: one for each split."""
_OF_TEN = 10
_NAMES = "classes.json"


def load_own(folder: Path) -> Splits:
    """The pictures of a folder, see `regard.training.records.read_images`.

    Raises:
        DataError: no such folder, a line or a picture that cannot be used, one class alone, a class of fewer than three
            different pictures, or one picture in two classes.
    """
    labelled = read_images(folder)
    classes = tuple(sorted({each.label for each in labelled}))
    if len(classes) < 2:
        raise DataError(f"{folder}: expected pictures of two classes or more, got {', '.join(classes)!r} alone")
    images = [preprocessed(read_picture(each.path, each.content)) for each in labelled]
    sides = _sides(folder, labelled, [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images])

    def part(side: str) -> Pictures:
        places = [place for place, found in enumerate(sides) if found == side]
        labels = torch.tensor([classes.index(labelled[place].label) for place in places])
        return Pictures(torch.stack([images[place] for place in places]), labels)

    return Splits(part("train"), part("validation"), part("test"), classes)


def keep_classes(classes: Sequence[str], folder: Path) -> None:
    """Write the names of classes of one's own beside what is trained."""
    if tuple(classes) != CLASSES:
        write_whole(folder / _NAMES, json.dumps(list(classes), ensure_ascii=False) + "\n")


def kept_classes(folder: Path, *, own: bool) -> tuple[str, ...]:
    """The names of the classes that a run in a folder learned.

    Args:
        folder: of the run.
        own: whether it was trained on pictures of one's own.

    Raises:
        CheckpointError: they were its own, and are not there.
    """
    if not own:
        return CLASSES
    try:
        return tuple(map(str, cast("list[object]", json.loads((folder / _NAMES).read_text(encoding="utf-8")))))
    except (OSError, ValueError, TypeError) as problem:
        raise CheckpointError(
            f"{str(folder / _NAMES)!r}: expected the names of the classes, as training keeps them ({problem}). "
            "Train again, or bring the file back."
        ) from problem


def _sides(folder: Path, labelled: Sequence[LabelledImage], digests: Sequence[str]) -> list[str]:
    """To which split each picture belongs."""
    by_class: defaultdict[str, set[str]] = defaultdict(set)
    first: dict[str, LabelledImage] = {}
    for each, digest in zip(labelled, digests, strict=True):
        same = first.setdefault(digest, each)
        if same.label != each.label:
            raise DataError(
                f"{folder}: {same.path.name!r} and {each.path.name!r} are the same picture at 28 x 28, got two classes "
                f"for it, {same.label!r} and {each.label!r}. Keep one of them."
            )
        by_class[each.label].add(digest)
    side: dict[str, str] = {}
    for label, of_class in by_class.items():
        if len(of_class) < FEWEST:
            raise DataError(f"{folder}: expected {FEWEST} different pictures of {label!r} or more, got {len(of_class)}")
        for place, digest in enumerate(sorted(of_class)):
            side[digest] = {0: "test", 1: "validation"}.get(place % _OF_TEN, "train")
    return [side[digest] for digest in digests]
