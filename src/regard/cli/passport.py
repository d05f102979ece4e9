"""`regard passport`: what a model computes here, recorded, and compared elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from regard.trust.passport import Report
    from regard.trust.passport.report import Row

Json = Annotated[bool, Parameter(name="--json", negative="")]
Backend = Literal["native", "sdpa", "eager", "flex"]
DEFAULT_LIMIT = 64
REPORT_WIDTH = 120
MOST_ROWS = 20


def record(
    model: str,
    path: Path,
    /,
    *,
    text: str | None = None,
    pair: Annotated[tuple[str, str] | None, Parameter(negative="")] = None,
    limit: int = DEFAULT_LIMIT,
    layers: Annotated[tuple[str, ...] | None, Parameter(negative="")] = None,
    gradients: bool = True,
    budget: str = "64 MB",
    backend: Backend | None = None,
    seed: int = 0,
    json_output: Json = False,
) -> int:
    """Record what a model computes on this machine, with what is true in float64 and what plain torch makes of it.

    Parameters
    ----------
    model
        A Hugging Face folder or hub name, or package.module:factory, which gives a model and its inputs.
    path
        A folder that does not exist yet.
    text
        What the model reads. Left out: a short text in English and Chinese.
    pair
        Source and target text, for an encoder-decoder model.
    limit
        Read at most this many tokens.
    layers
        Names of modules to record. Left out: all that fit.
    gradients
        Record gradients too.
    budget
        The most bytes of tensors, like 64MB; what does not fit is left out and told.
    backend
        Who computes attention meanwhile. Left out: the model as it is.
    seed
        Of torch's random numbers before each run.
    json_output
        Print what was recorded as JSON.
    """

    def run() -> int:
        from regard.trust.passport import record as recorded
        from regard.trust.passport.folder import check_new
        from regard.xray.demo_text import DEMO_TEXT
        from regard.xray.encode import encode
        from regard.xray.loading import load

        check_new(path)
        _check_one(text, pair)
        loaded = load(model)
        source, target = (text or DEMO_TEXT, None) if pair is None else pair
        inputs = encode(loaded, source, target, limit).inputs
        found = recorded(
            loaded.model, inputs, path, layers=layers, gradients=gradients, budget=budget, backend=backend, seed=seed
        )
        _print(found, found.to_json(), json_output=json_output)
        return 0

    return _guarded("record", run)


def replay(
    path: Path,
    model: str | None = None,
    /,
    *,
    backend: str | None = None,
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    json_output: Json = False,
) -> int:
    """Compute again what a passport holds, and compare with what is true; 1 where something differs.

    Parameters
    ----------
    path
        The folder that was recorded.
    model
        The model, as for record. Left out: its attention calls are replayed, which needs no model.
    backend
        Who computes attention: native, sdpa, eager, flex, or without a model also auto and module:function.
    dtype
        To compute in. Left out: that of the model, or of the passport.
    device
        To compute on. Left out: that of the model, or the CPU. Others are unproven.
    json_output
        Print every row as JSON.
    """

    def run() -> int:
        from regard.cli._app import FAILED, OK
        from regard.trust.passport import replay as replayed
        from regard.xray.loading import load

        found = replayed(
            path, None if model is None else load(model).model, backend=backend, dtype=dtype, device=device
        )
        if json_output:
            _print(found, found.to_json(), json_output=True)
        else:
            _print_report(found)
        return OK if found.passed else FAILED

    return _guarded("replay", run)


def show(path: Path, /, *, json_output: Json = False) -> int:
    """Verify a passport to the last bit, and say what it holds.

    Parameters
    ----------
    path
        The folder that was recorded.
    json_output
        Print all that its manifest says as JSON.
    """

    def run() -> int:
        from regard.trust.passport import show as shown

        found = shown(path)
        _print(found, found.to_json(), json_output=json_output)
        return 0

    return _guarded("show", run)


def _guarded(name: str, run: Callable[[], int]) -> int:
    from regard._errors import RegardError
    from regard.cli._app import WRONG_USAGE, complain

    sys.path.insert(0, "")  # module:function is looked for where the user stands, as `python -m` would
    try:
        return run()
    except RegardError as error:
        complain(f"regard passport {name}", str(error))
        return WRONG_USAGE
    finally:
        if "" in sys.path:
            sys.path.remove("")


def _check_one(text: str | None, pair: tuple[str, str] | None) -> None:
    from regard._errors import DataError

    if text is not None and pair is not None:
        raise DataError("expected one of --text and --pair, got both. Give one.")


def _print(found: object, told: dict[str, Any], *, json_output: bool) -> None:
    sys.stdout.write(f"{json.dumps(told, indent=1) if json_output else found}\n")


def _print_report(found: Report) -> None:
    """What was found in words, and as a table what differs, or else what comes nearest to its limit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from regard.trust.passport.report import label
    from regard.trust.passport.units import FACTORS

    console = Console(width=None if sys.stdout.isatty() else REPORT_WIDTH)
    for line in found.headlines():
        console.print(line, markup=False, highlight=False)
    rows = [row for row in found.rows if row.state != "passed"] or sorted(
        found.rows, key=lambda row: -row.ratio / FACTORS[row.side]
    )
    table = Table("", "", "error", "limit", "in units", "allowed", "same bits", "", box=None, pad_edge=False)
    for row in rows[:MOST_ROWS]:
        same = {True: "yes", False: "no", None: ""}[row.same_bits]
        table.add_row(*map(Text, (row.state, label(row), *_numbers(row), same, row.note)))
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"and {len(rows) - MOST_ROWS} more", highlight=False)


def _numbers(row: Row) -> tuple[str, str, str, str]:
    """Error, limit, the error in units of plain torch's, and how many are allowed."""
    import math

    from regard.trust.passport.units import FACTORS

    if math.isnan(row.error):
        return "", "", "", ""
    return f"{row.error:.2e}", f"{row.limit:.2e}", f"{row.ratio:.3g}", f"{FACTORS[row.side]:g}"
