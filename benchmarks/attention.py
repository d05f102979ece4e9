"""Attention side by side with the peers, in one process and in turns: `python -m benchmarks.attention --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import acceptance, machine, memory, plots, small, survey
from benchmarks.contest import hold
from benchmarks.report import Report, print_report, write_json
from benchmarks.timing import Plan
from benchmarks.verdicts import all_met, judge

OK, NOT_MET, WRONG_USAGE = 0, 1, 2
WIDTH = 160
"""Columns of the tables when they go to a file or a pipe, which have no width of their own."""

RESULTS = Path(__file__).resolve().parent / "results"

app = App(name="python -m benchmarks.attention", help_format="markdown", result_action="return_value")

Flag = Annotated[bool, Parameter(negative="")]


@dataclass(frozen=True)
class Wish:
    """What is to be run."""

    ours: str
    plan: Plan
    only: tuple[str, ...]
    survey: survey.Survey


Step = tuple[str, Callable[[], None]]


def survey_steps(wish: Wish, report: Report) -> list[Step]:
    """One step for each problem, then one for each peak memory."""

    def contest(entries: Sequence[survey.Entry]) -> None:
        report.limits.look({entry.problem.dtype for entry in entries})
        report.contests.append(hold(entries, wish.plan))

    def peak(entry: survey.Entry) -> None:
        report.memory.append(memory.peak_of(entry))

    contests = wish.survey.contests()
    steps: list[Step] = [(some[0].problem.name, lambda some=some: contest(some)) for some in contests]
    peaks = wish.survey.peaks()
    return steps + [(f"memory: {entry.label}", lambda entry=entry: peak(entry)) for entry in peaks]


def acceptance_steps(wish: Wish, report: Report) -> list[Step]:
    """One step for each line of the acceptance table."""

    def contest(line: acceptance.Line) -> None:
        dtypes = {entry.problem.dtype for entry in line.entries}
        report.limits.look(dtypes)
        found = hold(line.entries, wish.plan)
        report.limits.look(dtypes)
        report.contests.append(found)
        report.verdicts += [judge(line.name, claim, found, report.limits) for claim in line.claims]

    def peaks(direction: survey.Direction) -> None:
        found = [memory.peak_of(entry) for entry in survey.memory_entries(wish.ours, direction)]
        report.memory += found
        report.verdicts += survey.memory_verdicts(found)

    lines = [line for line in acceptance.lines(wish.ours) if _wanted(line.name, wish.only)]
    steps: list[Step] = [(line.name, lambda line=line: contest(line)) for line in lines]
    for direction in survey.DIRECTIONS:
        name = f"peak memory {direction}"
        if _wanted(name, wish.only):
            steps.append((name, lambda direction=direction: peaks(direction)))
    return steps


def small_steps(wish: Wish, report: Report) -> list[Step]:
    """One step for each dtype, direction and head size; the verdicts come last, when all is known."""
    groups: dict[str, list[small.Problem]] = {}
    for problem in small.problems():
        name = f"small shapes {problem.dtype} {problem.direction} d={problem.head_dim}"
        if _wanted(name, wish.only):
            groups.setdefault(name, []).append(problem)

    def group(problems: Sequence[small.Problem]) -> None:
        report.cells += small.measure((wish.ours, "activated"), problems, wish.plan)

    def conclude() -> None:
        report.verdicts += small.verdicts(report.cells)

    steps: list[Step] = [(name, lambda some=some: group(some)) for name, some in groups.items()]
    return [*steps, ("small shapes", conclude)] if steps else []


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(part in name for part in only)


def carry_out(steps: Sequence[Step], after: Callable[[], None], console: Console) -> None:
    """Do every step, with a bar when somebody watches, and save after each."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(steps))
        for name, step in steps:
            bar.update(task, description=name)
            step()
            after()
            bar.advance(task)


def refused(console: Console, *, anyway: bool) -> bool:
    """Is the machine too busy to time anything? Says so; with `anyway` it warns and goes on."""
    why = machine.busy()
    if why is None:
        return False
    advice = "TIMINGS ARE NOT TO BE TRUSTED" if anyway else "wait, or give --anyway"
    console.print(f"benchmarks: {why}: {advice}.", style="bold red", highlight=False, soft_wrap=True)
    return not anyway


@app.default
def run(
    *,
    only: str = "",
    lengths: str = "",
    head_dims: str = "",
    patterns: str = "",
    peers: str = "",
    backend: str = "native",
    repeats: int = 15,
    seconds: float = 60.0,
    threads: int | None = None,
    out: Path = RESULTS,
    name: str | None = None,
    table: Annotated[bool, Parameter(name="--acceptance", negative="")] = False,
    quick: Flag = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
    anyway: Flag = False,
) -> int:
    """Time regard beside the peers; write OUT/NAME.json, and plots beside it. Lists are comma-separated.

    Parameters
    ----------
    only
        Parts of the survey: fp32-forward, bf16-forward, fp32-forward+backward, bf16-forward+backward, memory.
        With --acceptance: parts of the names of its lines.
    lengths
        Numbers of tokens; 64 to 16384 unless given.
    head_dims
        Head sizes; 64 and 128 unless given.
    patterns
        Of dense, causal, window, window+global; the first three unless given.
    peers
        Of sdpa, flex, eager, eager-pages-kept, openvino, onnxruntime, activated; all but the last unless given.
    backend
        The backend of regard that is compared with them.
    repeats
        Rounds of every contest; fewer, but at least 3, where they would take longer than `seconds`.
    seconds
        See `repeats`.
    threads
        Threads of every contestant; torch's own number unless given.
    out
        Folder for the results.
    name
        Name of the results file; attention, quick or acceptance unless given.
    table
        Run exactly the acceptance table, and print line / needed / measured / met.
    quick
        Two lengths and few repeats: under two minutes.
    json_output
        Print the document on standard output, and no tables.
    anyway
        Run on a busy machine, with a warning.
    """
    console = Console(stderr=True)
    if refused(console, anyway=anyway):
        return WRONG_USAGE
    try:
        ours, smallest = f"regard-{backend}", survey.quick(f"regard-{backend}") if quick else None
        wanted = _survey(
            smallest or survey.Survey(ours), only if not table else "", lengths, head_dims, patterns, peers
        )
        wish = Wish(ours, _plan(repeats, seconds, quick=quick), _split(only), wanted)
        torch.set_num_threads(_at_least_one("threads", threads or torch.get_num_threads()))
    except ValueError as problem:
        console.print(f"benchmarks: {problem}", style="red", highlight=False, soft_wrap=True)
        return WRONG_USAGE
    command = {"backend": backend, "only": wish.only, "acceptance": table, "quick": quick, "plan": asdict(wish.plan)}
    report = Report(command, ours)
    steps = [*acceptance_steps(wish, report), *small_steps(wish, report)] if table else survey_steps(wish, report)
    path = out / f"{name or ('acceptance' if table else 'quick' if quick else 'attention')}.json"
    carry_out(steps, lambda: write_json(report.as_json(), path), console)
    report.finished = True
    _finish(report, path, json_output=json_output)
    return OK if not table or all_met(report.verdicts) else NOT_MET


def _finish(report: Report, path: Path, *, json_output: bool) -> None:
    document = report.as_json()
    write_json(document, path)
    drawn = plots.draw(document, path.parent, path.stem)
    if json_output:
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    print_report(report, console)
    for place in (path, *drawn):
        console.print(str(place), markup=False, highlight=False, soft_wrap=True)


def _survey(base: survey.Survey, *given: str) -> survey.Survey:
    """`base`, with what was given in its place: parts, lengths, head sizes, patterns, peers."""
    only, lengths, widths, patterns, peers = (_split(text) for text in given)
    return survey.Survey(
        base.ours,
        only or base.parts,
        _numbers("lengths", lengths) or base.lengths,
        _numbers("head_dims", widths) or base.widths,
        survey.patterns_of(patterns) or base.patterns,
        peers or base.peers,
    )


def _plan(repeats: int, seconds: float, *, quick: bool) -> Plan:
    _at_least_one("repeats", repeats)
    if seconds <= 0:
        raise ValueError(f"seconds must be above 0, not {seconds:g}")
    return Plan(min(repeats, 5), min(seconds, 2.0)) if quick else Plan(repeats, seconds)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(option: str, parts: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(_at_least_one(option, int(part)) for part in parts)
    except ValueError as problem:
        raise ValueError(f"{option} takes whole numbers of at least 1, not {','.join(parts)!r}") from problem


def _at_least_one(option: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"{option} must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(app())
