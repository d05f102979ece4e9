"""`regard verify`: is what computes attention here right?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from regard.trust.verify import CaseResult, Report

REPORT_WIDTH = 120
"""Columns of the tables when they go to a file or a pipe, which have no width of their own."""


def verify(
    *targets: str,
    full: Annotated[bool, Parameter(negative="")] = False,
    seed: int = 0,
    layout: Literal["bhnd", "bnhd"] = "bhnd",
    corner: Literal["top_left", "bottom_right"] | None = None,
    only: Annotated[list[str] | None, Parameter(negative="")] = None,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
    markdown: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Compare what computes attention with the float64 reference.

    Forward, gradients, second runs, masks, options, empty rows, NaN: each error is told in units of what plain eager
    torch makes in the same dtype, of which 2 are allowed forward and 3 in gradients. What a target does not offer is
    listed. A failure comes with the lines of Python that reproduce it. Ends with 1 when something fails.

    Parameters
    ----------
    targets
        native, sdpa, flex, eager, auto, torch (its scaled_dot_product_attention), or module:function. Left out: every
        backend that is here.
    full
        Every case in every dtype, every pair of options, and cases drawn by chance: minutes instead of seconds.
    seed
        Of all numbers that are drawn.
    layout
        Of the tensors of module:function: bhnd (batch, heads, length, head_dim), or bnhd.
    corner
        Of its causal flag where there are more keys than queries: top_left or bottom_right.
    only
        Ask this case alone; as often as needed: --only causal --only softcap
    json_output
        Print the reports as JSON.
    markdown
        Print the reports as Markdown.
    """
    from regard._errors import RegardError
    from regard.cli._app import FAILED, OK, WRONG_USAGE, complain

    try:
        reports = _reports(targets, quick=not full, seed=seed, layout=layout, corner=corner, only=only)
    except RegardError as error:
        complain("regard verify", str(error))
        return WRONG_USAGE
    if json_output:
        sys.stdout.write(json.dumps(_facts(reports), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif markdown:
        sys.stdout.write("\n".join(report.markdown() for report in reports))
    else:
        _print(reports)
    asked = reports if targets else [report for report in reports if report.absent is None]
    return OK if asked and all(report.passed for report in asked) else FAILED


def _reports(targets: tuple[str, ...], **how: Any) -> list[Report]:
    """One report for each target, with a progress bar when somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from regard.backends import BACKENDS
    from regard.trust.target import as_target
    from regard.trust.verify import verify as verify_one

    sys.path.insert(0, "")  # module:function is looked for where the user stands, as `python -m` would
    named = targets or tuple(backend.name for backend in BACKENDS)
    for target in named:
        as_target(target)  # a name that is wrong is told before minutes are spent on those before it
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        return [verify_one(target, **how, progress=_watching(bar, target)) for target in named]


def _watching(bar: Progress, target: str) -> Callable[[str, int, int], None]:
    task = bar.add_task(target, total=None)

    def progress(case: str, done: int, total: int) -> None:
        bar.update(task, description=f"{target}: {case}", completed=done + 1, total=total)

    return progress


def _facts(reports: list[Report]) -> dict[str, Any]:
    """For JSON: the verdict on all, the worst of all, and each report."""
    worst = {report.target: report.worst for report in reports if report.worst is not None}
    target = max(worst, key=lambda name: worst[name].ratio / worst[name].allowed, default=None)
    return {
        "passed": all(report.passed or report.absent is not None for report in reports),
        "worst": None if target is None else {"target": target, **vars(worst[target])},
        "reports": [report.json() for report in reports],
    }


# -------------------------------------------------------------------------------------------------- for people


def _print(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else REPORT_WIDTH, highlight=False)
    table = Table("target", "verdict", "passed", "failed", "not offered", "largest error", "seconds")
    for report in reports:
        verdict = "absent" if report.absent is not None else "passed" if report.passed else "failed"
        counts = (str(report.count(status)) for status in ("passed", "failed", "not offered"))
        table.add_row(report.target, verdict, *counts, str(report.worst or ""), f"{report.seconds:.1f}")
    console.print(table)
    for report in reports:
        _print_one(report, console)
    told = [f"seed {reports[0].seed}", *(f"{name} {value}" for name, value in reports[0].environment.items())]
    console.print(", ".join(told), markup=False)
    console.print("An error is told in units of what plain eager torch makes in the same dtype.", markup=False)


def _print_one(report: Report, console: Console) -> None:
    if report.absent is not None:
        console.print(f"{report.target}: absent ({report.absent})", markup=False)
    for case in report.failed:
        _print_failure(report.target, case, console)
    for each in report.not_offered:
        console.print(f"{report.target}: not offered: {each.what}: {each.reason}", markup=False)


def _print_failure(target: str, case: CaseResult, console: Console) -> None:
    console.print(f"\n{target}: FAILED {case.name}, {case.dtype}: {'; '.join(case.told)}", markup=False)
    if case.known:
        console.print(f"known: {case.known}", markup=False)
    for line in case.lines:  # as it is, to be copied: nothing is wrapped
        sys.stdout.write(f"    {line}\n")
    if case.lines:
        sys.stdout.write("\n")
