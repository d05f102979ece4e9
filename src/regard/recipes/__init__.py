"""One application, one folder: its model, its data with their licences, its recipe.

`regard train NAME` trains, `regard run NAME INPUT` uses what was trained. The list is literal: what exists does not
depend on what was imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from regard._errors import ArgumentError, DependencyError


@dataclass(frozen=True)
class Recipe:
    """A recipe by name.

    Attributes:
        name: on the command line.
        title: what it does, in one line.
        home: its folder. `recipe` in it has `Config`, `make_task`, `report` and, for most, `run`; `compare` trains
            every variant at equal budget.
    """

    name: str
    title: str
    home: str


RECIPES = (
    Recipe("translation", "English to Chinese (or German), with word alignment.", "regard.recipes.translation"),
    Recipe(
        "word_alignment",
        "Greek and English verses: one cross-attention head taught to align, against gold links.",
        "regard.recipes.word_alignment",
    ),
    Recipe(
        "image_classification",
        "Fashion-MNIST: what each kind of image attention brings to one CNN, and a small ViT.",
        "regard.recipes.image_classification",
    ),
    Recipe("image_text", "Emoji and captions in two languages, CLIP and SigLIP.", "regard.recipes.image_text"),
    Recipe(
        "summarization",
        "Long documents: flat, windowed and hierarchical attention.",
        "regard.recipes.summarization",
    ),
    Recipe("dialogue", "Conversations with four kinds of memory.", "regard.recipes.dialogue"),
    Recipe(
        "language_model",
        "Characters of Shakespeare: positions, gates, windows.",
        "regard.recipes.language_model",
    ),
)


def find(name: str) -> ModuleType:
    """The module `recipe` of a recipe.

    Raises:
        ArgumentError: no recipe has this name.
        DependencyError: a package of the group `train` is absent.
    """
    return _module(name, "recipe")


def find_comparison(name: str) -> ModuleType:
    """The module `compare` of a recipe.

    Raises:
        ArgumentError: no recipe has this name.
        DependencyError: a package of the group `train` is absent.
    """
    return _module(name, "compare")


def _module(name: str, part: str) -> ModuleType:
    homes = {recipe.name: recipe.home for recipe in RECIPES}
    if name not in homes:
        raise ArgumentError("recipe", expected=f"one of {', '.join(homes)}", got=repr(name), do="Name one of these.")
    try:
        return import_module(f"{homes[name]}.{part}")
    except ImportError as problem:
        if (problem.name or "").partition(".")[0] == "regard":
            raise
        raise DependencyError(problem.name or "a package", "train") from problem
