"""One application, one folder: its model, its data with their licences, its recipe.

`regard train NAME` trains, `regard run NAME INPUT` uses what was trained. The list is literal: what exists does not
depend on what was imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A recipe by name.

    Attributes:
        name: on the command line.
        title: what it does, in one line.
        home: the module with `Config`, `make_task`, `report` and, for most, `run`.
    """

    name: str
    title: str
    home: str


RECIPES = (
    Recipe("translation", "English to Chinese (or German), with word alignment.", "regard.recipes.translation.recipe"),
    Recipe(
        "image_classification",
        "Fashion-MNIST: what each kind of image attention brings to one CNN, and a small ViT.",
        "regard.recipes.image_classification.recipe",
    ),
    Recipe("image_text", "Emoji and captions in two languages, CLIP and SigLIP.", "regard.recipes.image_text.recipe"),
    Recipe(
        "summarization",
        "Long documents: flat, windowed and hierarchical attention.",
        "regard.recipes.summarization.recipe",
    ),
    Recipe("dialogue", "Conversations with four kinds of memory.", "regard.recipes.dialogue.recipe"),
    Recipe(
        "language_model",
        "Characters of Shakespeare: positions, gates, windows.",
        "regard.recipes.language_model.recipe",
    ),
)
