"""`regard.verify`: is this attention, with every option that it offers?

A target is asked the cases of `cases.py` and `edge_cases.py`. Each answer is compared with the float64
reference, and its error told in units of what plain eager torch makes in the same dtype: 2 of them are allowed forward
and 3 in gradients (`budget.py`). What a target does not offer is listed, never passed; what it takes and drops is a
failure.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection

import torch

from regard._errors import ArgumentError
from regard._version import __version__
from regard.backends import _library
from regard.masks._align import Align
from regard.trust.calling import Layout
from regard.trust.target import Adapter, as_target
from regard.trust.verify.case import DTYPES, Case
from regard.trust.verify.cases import FUSED, MASKS, OPTIONS, PAIRS, SHAPES, STRUCTURED, all_pairs
from regard.trust.verify.edge_cases import EDGES
from regard.trust.verify.examiner import Examiner
from regard.trust.verify.random_cases import random_cases
from regard.trust.verify.report import CaseResult, Report

TABLE: tuple[Case, ...] = (*SHAPES, *MASKS, *OPTIONS, *PAIRS, *EDGES)
QUICK_RANDOM_CASES, RANDOM_CASES = 25, 150
TRACED = ("flex",)
"""Targets that trace every problem anew, at a third of a second each: a quick run of them is brief."""
Progress = Callable[[str, int, int], None]


def verify(
    target: object,
    adapter: Adapter | None = None,
    *,
    quick: bool = True,
    seed: int = 0,
    layout: Layout = "bhnd",
    corner: Align | None = None,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a target with the float64 reference: forward, gradients, repeated runs, masks, options, edges.

    Args:
        target: "native", "sdpa", "flex", "eager" or "auto"; "torch" (F.scaled_dot_product_attention);
            "module:function"; a backend; or a callable f(query, key, value, ...) with (batch, heads, length, head_dim).
        adapter: how the callable is asked where its signature does not say: from an option to a parameter, or a
            function from a `regard.trust.Question` to the output.
        quick: the cases that take seconds, 25 of them drawn by chance; False asks every case in every dtype, every
            pair of options, and 150 cases drawn by chance.
        seed: of all numbers, 0 or more. The same seed asks the same questions.
        layout: "bnhd" when the callable has (batch, length, heads, head_dim).
        corner: of the callable's `causal` and windows where q_len != kv_len.
        only: names of the cases to ask, instead of all.
        progress: called with a case's name, how many were asked, and how many there are.

    Returns:
        A `Report`: `passed`, `cases`, `worst`, `not_offered`, `json()`, `markdown()`.

    Raises:
        ArgumentError: no target or case of that name, or a seed that is negative.
    """
    if seed < 0:
        raise ArgumentError("seed", expected="0 or more", got=repr(seed), do="Leave it out for 0.")
    start = time.perf_counter()
    examined = as_target(target, adapter, layout=layout, corner=corner)
    environment, absent = _environment(), _library.why_absent()
    if examined.name == "native" and absent is not None:
        return Report("native", quick, seed, environment, (), (), absent, 0.0)
    examiner = Examiner(examined, seed=seed)
    examiner.probe(DTYPES)
    asked = _chosen(schedule(quick=quick, seed=seed, brief=examined.name in TRACED), only)
    results: list[CaseResult] = []
    for number, (case, dtype) in enumerate(asked):
        if progress is not None:
            progress(case.name, number, len(asked))
        results.append(examiner.examine(case, dtype))
    seconds = time.perf_counter() - start
    return Report(examined.name, quick, seed, environment, tuple(results), examiner.not_offered(), None, seconds)


def schedule(*, quick: bool, seed: int, brief: bool = False) -> list[tuple[Case, torch.dtype]]:
    """Every case with every dtype that it is asked in.

    A brief run has one dtype for each case, `plain` and `long` excepted, and draws none by chance.
    """
    if quick and brief:
        kept = {"plain", "long"}
        return [(case, dtype) for case in TABLE for dtype in (case.dtypes if case.name in kept else case.dtypes[:1])]
    if quick:
        by_chance = ((case, case.full[0]) for case in random_cases(seed, QUICK_RANDOM_CASES))
        return [*((case, dtype) for case in TABLE for dtype in case.dtypes), *by_chance]
    more = (*STRUCTURED, *all_pairs(), *random_cases(seed, RANDOM_CASES), FUSED)
    return [(case, dtype) for case in (*TABLE, *more) for dtype in case.full]


def _chosen(asked: list[tuple[Case, torch.dtype]], only: Collection[str] | None) -> list[tuple[Case, torch.dtype]]:
    unknown = sorted(set(only or ()) - {case.name for case, _ in asked})
    if unknown:
        raise ArgumentError(
            "only",
            expected="names of cases",
            got=", ".join(unknown),
            do="A report lists them; some are asked by a full run only.",
        )
    return [(case, dtype) for case, dtype in asked if only is None or case.name in only]


def _environment() -> dict[str, str]:
    native = "absent" if _library.why_absent() is not None else _library.isa()
    return {
        "regard": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "native": native,
        "threads": str(torch.get_num_threads()),
    }
