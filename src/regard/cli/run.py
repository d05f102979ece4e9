"""`regard run NAME INPUT`: a trained recipe on the user's own input. One function for each recipe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
        Folder of a training run. Left out: out/train/translation where it is, else the one that comes with regard.
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
        _tell(found.facts(), [found.translation], json_output=json_output)
    if wish.heatmap is not None and not json_output:
        _write(str(wish.heatmap))


def _translator(trained: Path | None) -> TrainedTranslator:
    """From the folder that was named, from the last training here, or the one that came with the package."""
    from regard.recipes.translation.packaged import is_packaged, packaged_translator
    from regard.recipes.translation.translate import TrainedTranslator

    here = _default("translation")
    if trained is None and is_packaged() and not here.is_dir():
        return packaged_translator()
    if trained is None and is_packaged():
        from regard.cli._app import complain

        complain("regard run translation", f"with what was trained in {str(here)!r}, not with what comes with regard")
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
    lines = _LINE_END.split(read_text(wish.file).removesuffix("\n").removesuffix("\r"))
    for number, line in enumerate(lines, 1):
        try:
            readable(line)
        except DataError as problem:
            raise DataError(f"{str(wish.file)!r}, line {number}: {problem}") from problem
    return lines


_LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line for people and programs; `splitlines` also cuts at marks that may stand within one."""


def image_classification(
    picture: Path, /, *, trained: Trained = None, heatmap: Path | None = None, json_output: Json = False
) -> int:
    """Say what piece of clothing is on a picture.

    Parameters
    ----------
    picture
        Any picture file; it is made grey, 28 x 28 and bright on black.
    trained
        Folder of a training run. Left out: out/train/image_classification.
    heatmap
        Draw there where the class token looks (of a ViT, the default model).
    json_output
        Print the result as JSON.
    """

    def work() -> None:
        from regard.recipes.image_classification.recipe import lines, run

        found = run(picture, folder=trained or _default("image_classification"), heatmap=heatmap)
        _tell(found, lines(found), json_output=json_output)

    return _guarded("image_classification", work)


def image_text(
    given: str,
    /,
    *,
    trained: Trained = None,
    language: Literal["en", "zh"] = "en",
    best: int = 5,
    download: Annotated[bool, Parameter(negative="")] = False,
    json_output: Json = False,
) -> int:
    """Find captions for a picture, or emoji for a text.

    Parameters
    ----------
    given
        A picture file, or a text.
    trained
        Folder of a training run. Left out: out/train/image_text.
    language
        Of the captions: en or zh.
    best
        How many are found.
    download
        Take the emoji from their package registries, if they are absent.
    json_output
        Print the result as JSON.
    """

    def work() -> None:
        from regard.recipes.image_text.search import lines, run

        folder = trained or _default("image_text")
        found = run(given, folder=folder, language=language, best=best, download=download)
        _tell(found, lines(found), json_output=json_output)

    return _guarded("image_text", work)


def summarization(
    text: str | None = None, /, *, file: Path | None = None, trained: Trained = None, json_output: Json = False
) -> int:
    """Summarize a text.

    Parameters
    ----------
    text
        The text, its paragraphs apart by empty lines.
    file
        Summarize this UTF-8 file instead.
    trained
        Folder of a training run. Left out: out/train/summarization.
    json_output
        Print the result as JSON.
    """

    def work() -> None:
        from regard.recipes.summarization.recipe import run

        found = dict(run(_one_of(text, file), trained or _default("summarization")))
        _tell(found, [str(found["summary"])], json_output=json_output)

    return _guarded("summarization", work)


def dialogue(
    text: str | None = None,
    /,
    *,
    file: Path | None = None,
    trained: Trained = None,
    temperature: float = 0.8,
    seed: int = 1,
    json_output: Json = False,
) -> int:
    """Reply to what was said.

    Parameters
    ----------
    text
        One turn.
    file
        Reply to each dialogue of this JSONL file instead.
    trained
        Folder of a training run. Left out: out/train/dialogue.
    temperature
        Of the draws: 0 takes the likeliest word each time.
    seed
        Of the draws.
    json_output
        Print the replies as JSON.
    """

    def work() -> None:
        from regard.recipes.dialogue.recipe import run

        folder = trained or _default("dialogue")
        replies = run(_one_of(text, file), folder, temperature=temperature, seed=seed)
        _tell({"replies": replies}, replies, json_output=json_output)

    return _guarded("dialogue", work)


def language_model(
    prompt: str,
    /,
    *,
    trained: Trained = None,
    characters: int = 400,
    temperature: float = 0.8,
    seed: int = 1,
    json_output: Json = False,
) -> int:
    """Go on writing after a prompt.

    Parameters
    ----------
    prompt
        What the text begins with.
    trained
        Folder of a training run. Left out: out/train/language_model.
    characters
        How many are written.
    temperature
        Of the draws: 0 takes the likeliest character each time.
    seed
        Of the draws.
    json_output
        Print prompt and text as JSON.
    """

    def work() -> None:
        from regard.recipes.language_model.recipe import run

        folder = trained or _default("language_model")
        written = run(prompt, folder, characters=characters, temperature=temperature, seed=seed)
        _tell({"prompt": prompt, "text": written}, [written], json_output=json_output)

    return _guarded("language_model", work)


def _one_of(text: str | None, file: Path | None) -> str | Path:
    from regard._errors import DataError

    if text is not None and file is None:
        return text
    if file is not None and text is None:
        return file
    raise DataError("expected a text or --file, and not both. Give one.")


def _tell(found: Mapping[str, Any], lines: Sequence[str], *, json_output: bool) -> None:
    if json_output:
        says_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        _write(json.dumps(found, ensure_ascii=not says_all))
    else:
        _write("\n".join(lines))


def _write(text: str) -> None:
    """To whatever reads; what its encoding has no sign for, and half a surrogate pair, becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")


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
