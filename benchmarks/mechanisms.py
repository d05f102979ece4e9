"""Mechanisms beside the layers of others, and each alone: `python -m benchmarks.mechanisms --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from rich.console import Console

from benchmarks import image_pairs, module_memory, module_survey, token_pairs
from benchmarks.attention import NOT_MET, OK, RESULTS, WIDTH, WRONG_USAGE, Flag, carry_out, refused
from benchmarks.module_contest import errors_of_line, time_line
from benchmarks.module_pairs import Line
from benchmarks.module_results import Results, print_results
from benchmarks.problems import Direction
from benchmarks.sides import Sizes
from benchmarks.survey import DIRECTIONS
from benchmarks.timing import Plan
from benchmarks.verdicts import all_met

SIZES = Sizes()

app = App(name="python -m benchmarks.mechanisms", help_format="markdown", result_action="return_value")


@dataclass(frozen=True)
class Step:
    """One measurement: where its row goes, and whether other programs would disturb it."""

    name: str
    section: str
    row: str
    measure: Callable[[], dict[str, object]]
    timed: bool = True


def lines() -> list[Line]:
    """Every line beside the layers of others."""
    return [*token_pairs.lines(), *image_pairs.lines()]


def pair_steps(sizes: Sizes, plan: Plan, *, claimed: bool) -> Iterator[Step]:
    """Each line in each of its directions; with `claimed` only where something is claimed."""
    for line in lines():
        directions: tuple[Direction, ...] = tuple(line.needed) or ("forward",)
        for direction in directions:
            if claimed and line.needed.get(direction) is None and line.error_needed is None:
                continue
            name = f"{line.name} {direction}"

            def errors(line: Line = line, direction: Direction = direction) -> dict[str, object]:
                return errors_of_line(line, direction, sizes)

            def times(line: Line = line, direction: Direction = direction) -> dict[str, object]:
                return time_line(line, direction, sizes, plan)

            yield Step(f"error: {name}", "pairs", name, errors, timed=False)
            if direction in line.needed:
                yield Step(f"pair: {name}", "pairs", name, times)


def memory_steps(sizes: Sizes) -> Iterator[Step]:
    """Each form in each direction, in processes of their own."""
    for form in module_memory.FORMS:
        for direction in DIRECTIONS:

            def measure(form: str = form, direction: Direction = direction) -> dict[str, object]:
                return module_memory.peaks_of(form, sizes, direction)

            name = f"{form} {direction}"
            yield Step(f"memory: {name}", "memory", name, measure, timed=False)


def survey_steps(sizes: Sizes, plan: Plan) -> Iterator[Step]:
    """The error of every mechanism, which nobody disturbs, and its times."""
    subjects = module_survey.subjects(sizes)
    for subject in subjects:

        def error(subject: module_survey.Subject = subject) -> dict[str, object]:
            return module_survey.error_of(subject, sizes)

        yield Step(f"error: {subject.kind}", "survey", subject.kind, error, timed=False)
    for subject in subjects:
        for direction in DIRECTIONS:

            def time(subject: module_survey.Subject = subject, direction: Direction = direction) -> dict[str, object]:
                return module_survey.time_of(subject, sizes, direction, plan)

            yield Step(f"time: {subject.kind} {direction}", "survey", subject.kind, time)


def wanted_steps(sizes: Sizes, plan: Plan, only: str, *, table: bool, survey: bool) -> list[Step]:
    """What is asked for: the table, the survey, or both; of that, what `only` names a part of."""
    everything = table == survey
    steps = list[Step]()
    if everything or table:
        steps += [*pair_steps(sizes, plan, claimed=not everything), *memory_steps(sizes)]
    if everything or survey:
        steps += survey_steps(sizes, plan)
    parts = [part.strip() for part in only.split(",") if part.strip()]
    chosen = [step for step in steps if not parts or any(part in step.name for part in parts)]
    if not chosen:
        raise ValueError(f"nothing is called {only!r}; names begin with pair:, memory:, error: or time:")
    return chosen


def _plan(repeats: int, seconds: float, threads: int | None) -> Plan:
    if repeats < 1 or seconds <= 0 or (threads is not None and threads < 1):
        raise ValueError("repeats and threads must be at least 1, and seconds above 0")
    return Plan(repeats, seconds)


@app.default
def run(
    *,
    only: str = "",
    repeats: int = 15,
    seconds: float = 4.0,
    threads: int | None = None,
    out: Path = RESULTS,
    name: str = "mechanisms",
    table: Annotated[bool, Parameter(name="--acceptance", negative="")] = False,
    survey: Flag = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
    anyway: Flag = False,
) -> int:
    """Measure mechanisms; OUT/NAME.json keeps what other runs on the same machine measured.

    Parameters
    ----------
    only
        Parts of names, comma-separated: pair: Longformer, memory: S4D, error: CBAM, time: CBAM forward, or pair: and
        so on for all of a kind. error: and memory: need no quiet machine.
    repeats
        Rounds of every comparison; fewer, but at least 3, where they would take longer than `seconds`.
    seconds
        See `repeats`.
    threads
        Threads of every contestant; torch's own number unless given.
    out
        Folder for the results.
    name
        Name of the results file.
    table
        Only the lines for which something is promised, and peak memory; the exit code says whether all are met.
    survey
        Only every mechanism alone, for docs/mechanisms.md.
    json_output
        Print the document on standard output, and no tables.
    anyway
        Run on a busy machine, with a warning.
    """
    console = Console(stderr=True)
    try:
        steps = wanted_steps(SIZES, _plan(repeats, seconds, threads), only, table=table, survey=survey)
    except ValueError as problem:
        console.print(f"benchmarks: {problem}", style="red", highlight=False, soft_wrap=True)
        return WRONG_USAGE
    timed = any(step.timed for step in steps)
    if timed and refused(console, anyway=anyway):
        return WRONG_USAGE
    torch.set_num_threads(threads or torch.get_num_threads())
    results = Results(out / f"{name}.json", SIZES, timed=timed)
    measured: dict[tuple[str, str], None] = {}

    def take(step: Step) -> None:
        results.put(step.section, step.row, step.measure())
        measured[step.section, step.row] = None

    carry_out([(step.name, lambda step=step: take(step)) for step in steps], results.save, console)
    _show(results, measured, json_output=json_output)
    return OK if not table or all_met(results.verdicts()) else NOT_MET


def _show(results: Results, measured: dict[tuple[str, str], None], *, json_output: bool) -> None:
    if json_output:
        sys.stdout.write(results.path.read_text(encoding="utf-8"))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    print_results(results, console, measured=measured)
    console.print(str(results.path), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(app())
