"""`regard run NAME INPUT`: a trained recipe on the user's own input. One function for each recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from regard.recipes.translation.translate import TrainedTranslator

Json = Annotated[bool, Parameter(name="--json", negative="")]
Trained = Annotated[Path | None, Parameter(name="--from")]


@dataclass(frozen=True)
class _Wish:
    """What is to be translated, and how."""

    text: str | None
    file: Path | None
    beams: int
    heatmap: Path | None


def translation(
    text: str | None = None,
    /,
    *,
    file: Path | None = None,
    trained: Trained = None,
    beams: int = 4,
    heatmap: Path | None = None,
    json_output: Json = False,
) -> int:
    """Translate English, and say which source word each target word comes from.

    Parameters
    ----------
    text
        The text, of at most 2000 characters.
    file
        Translate each line of this UTF-8 file instead; one line (with --json one JSON value) for each.
    trained
        Folder of a training run. Left out: out/train/translation.
    beams
        How many translations are followed at once.
    heatmap
        Draw the alignment there: .png, .svg, .pdf or .html.
    json_output
        Print source, translation, source_words, target_words and alignment (target x source) as JSON.
    """
    wish = _Wish(text, file, beams, heatmap)
    return _guarded("translation", lambda: _translate(wish, trained, json_output=json_output))


def _translate(wish: _Wish, trained: Path | None, *, json_output: bool) -> None:
    """Everything is checked before the model is loaded, and loaded before the first line is written."""
    from regard.recipes.translation.drawing import check_heatmap, draw_heatmap

    lines = _lines(wish)
    if wish.heatmap is not None:
        check_heatmap(wish.heatmap)
    translator = _translator(trained)
    for line in lines:
        found = translator.translate(line, beams=wish.beams)
        if wish.heatmap is not None:
            draw_heatmap(found, wish.heatmap)
        told = json.dumps(found.facts(), ensure_ascii=False) if json_output else found.translation
        sys.stdout.write(told + "\n")
    if wish.heatmap is not None and not json_output:
        sys.stdout.write(f"{wish.heatmap}\n")


def _translator(trained: Path | None) -> TrainedTranslator:
    """From the folder that was named, from the last training here, or the one that came with the package."""
    from regard.recipes.translation.packaged import is_packaged, packaged_translator
    from regard.recipes.translation.translate import TrainedTranslator

    here = _default("translation")
    if trained is None and is_packaged() and not here.is_dir():
        return packaged_translator()
    return TrainedTranslator.from_run(trained or here)


def _lines(wish: _Wish) -> list[str]:
    """The texts to translate, each checked."""
    from regard._errors import ArgumentError, DataError
    from regard._text import read_text
    from regard.recipes.translation.translate import readable

    if (wish.text is None) == (wish.file is None):
        raise DataError("expected a text or --file, and not both. Give one.")
    if wish.heatmap is not None and wish.file is not None:
        raise DataError("--heatmap draws one text. Give a text instead of --file.")
    if not 1 <= wish.beams <= 64:
        raise ArgumentError("--beams", expected="from 1 to 64", got=str(wish.beams), do="Leave it out for 4.")
    if wish.file is None:
        readable(wish.text or "")
        return [wish.text or ""]
    lines = read_text(wish.file).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            readable(line)
        except DataError as problem:
            raise DataError(f"{str(wish.file)!r}, line {number}: {problem}") from problem
    return lines


def _default(name: str) -> Path:
    from regard.cli.train import OUT

    return OUT / name


def _guarded(name: str, work: Callable[[], Any]) -> int:
    from regard._errors import RegardError
    from regard.cli._app import OK, WRONG_USAGE, complain

    try:
        work()
    except RegardError as error:
        complain(f"regard run {name}", str(error))
        return WRONG_USAGE
    return OK
