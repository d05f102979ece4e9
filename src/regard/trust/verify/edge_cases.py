"""What `verify` asks at the edges: nothing to attend to, NaN and Inf, extreme numbers, memory, second runs, misuse."""

from __future__ import annotations

from dataclasses import replace

from regard._shapes import Sizes
from regard.masks import Padding
from regard.masks import SlidingWindow as Window
from regard.trust.verify.case import DTYPES, Case, Change, Cut, Laid, Part, Put, constant, mask
from regard.trust.verify.cases import (
    BASE,
    BIAS,
    CAUSAL,
    CAUSAL_END,
    EACH_HEAD,
    FEWER,
    GROUPED,
    LONG,
    MORE,
    NOTHING_FIRST,
    PADDING,
    SINK,
    sized,
)
from regard.trust.verify.drawn import LAYOUTS

F32, BF16, F16, F64 = DTYPES
NAN, INFINITY = float("nan"), float("inf")


def _edge(name: str, fault: str, *changes: Change, sizes: Sizes = BASE, **options: Part) -> Case:
    return Case(name, "edges", sizes, options, changes, faults=(fault,))


def _forward(case: Case) -> Case:
    """Without gradients: what is NaN in them is no part of the contract."""
    return replace(case, gradient=None)


_BEFORE = mask(lambda _: Window(99, 0) & ~Window(0))
"""Every query may attend to the keys before its own, the first one to none."""

EMPTY_ROWS = (
    _edge("empty-row", "F18", mask=NOTHING_FIRST),
    _edge("empty-row-of-causal", "F26", sizes=MORE, mask=CAUSAL_END),
    _edge("empty-sample", "F18", mask=mask(lambda at: Padding([0, *[at.kv_len] * (at.batch - 1)]))),
    _edge("empty-everywhere", "F18", mask=mask(lambda _: Window(0) & ~Window(0))),
    _edge("empty-row-with-sink", "F18", mask=NOTHING_FIRST, sink=SINK),
    _edge("empty-row-with-bias", "F18", mask=NOTHING_FIRST, bias=BIAS),
    replace(_edge("empty-row-lse", "F18", mask=NOTHING_FIRST), lse=True),
    replace(_edge("no-queries", "F01", sizes=sized(0, 5)), refusal_words=("empty", "q_len", "length")),
    replace(_edge("no-keys", "F02", sizes=sized(5, 0)), refusal_words=("empty", "kv_len", "length")),
    replace(_edge("no-samples", "F03", sizes=sized(batch=0)), refusal_words=("empty", "batch")),
)

NOT_FINITE = (
    _forward(_edge("nan-in-one-query", "F31", Put("query", "0, 0, -1", NAN))),
    _forward(_edge("nan-in-every-query", "F32", Put("query", "...", NAN))),
    _forward(_edge("nan-in-every-key", "F32", Put("key", "...", NAN))),
    _forward(_edge("nan-in-one-key", "F31", Put("key", "0, 0, -1, 0", NAN), mask=CAUSAL)),
    _forward(_edge("nan-in-one-value", "F31", Put("value", "0, 0, -1, 0", NAN), mask=CAUSAL)),
    _forward(_edge("inf-in-one-value", "F34", Put("value", "0, 0, -1, 0", INFINITY), mask=CAUSAL)),
    _forward(_edge("inf-in-one-query", "F34", Put("query", "0, 0, -1, 0", INFINITY))),
    _forward(_edge("nan-in-a-neighbour", "F55", *(Put(name, "1", NAN) for name in ("query", "key", "value")))),
    _edge("nan-in-masked-key", "F33", Put("key", "0, :, -1", NAN), mask=PADDING),
    _edge("nan-in-masked-value", "F33", Put("value", "0, :, -1", NAN), mask=PADDING),
    _edge("inf-in-masked-key", "F33", Put("key", "0, :, -1", INFINITY), mask=PADDING),
    _edge("inf-in-masked-value", "F33", Put("value", "0, :, -1", -INFINITY), mask=PADDING),
    _edge("nan-in-key-after-causal", "F33", Put("key", "0, :, -1", NAN), sizes=FEWER, mask=CAUSAL),
    _edge("nan-in-query-of-empty-row", "F33", Put("query", "..., 0, :", NAN), mask=_BEFORE),
)

EXTREME = (
    replace(
        _edge("scores-of-1e30", "F35", Put("query", "...", 1.0), Put("key", "...", 0.0), Put("key", ":, :, -1", 1e30)),
        gradient=None,
        full=(F32, BF16, F64),
    ),
    replace(
        _edge(
            "scores-of-60000", "F35", Put("query", "...", 100.0), Put("key", "...", 0.0), Put("key", ":, :, -1", 99.0)
        ),
        options={"scale": constant(1.0)},
        gradient=None,
        dtypes=(F16,),
        full=(F16,),
    ),
    _forward(_edge("scores-far-below-1e9", "F28", Put("query", "...", 1.0), Put("key", "...", -1e10), mask=CAUSAL)),
    _edge("identical-scores", "F36", Put("key", "...", 0.5)),
    replace(
        _edge("subnormals", "F37", Put("query", "...", -0.0), Put("key", "...", 1e-40), Put("value", ":, :, 0", 1e-40)),
        full=(F32, F64),
    ),
)

_LAYOUTS = {how.__name__.replace("_", "-"): how for how in LAYOUTS}
MEMORY = (
    *(
        Case(f"laid-{how.__name__}".replace("_", "-"), "memory", FEWER, {}, (Laid(how),), faults=("F46",))
        for how in LAYOUTS
    ),
    Case("gradient-of-stride-0", "memory", BASE, gradient="ones", faults=("F46",)),
    Case("gradient-of-heads-last", "memory", BASE, gradient="heads last", faults=("F46",)),
)

REPEATED = (
    Case("twice", "repeats", BASE, check="same_bits", faults=("F54",)),
    Case("twice-long", "repeats", LONG, check="same_bits", dtypes=(F32, BF16), faults=("F54",)),
    Case("twice-masked", "repeats", FEWER, {"mask": EACH_HEAD}, check="same_bits", faults=("F54",)),
    Case("twice-grouped", "repeats", sized(kv_heads=1), dict(GROUPED), check="same_bits", faults=("F54",)),
    Case(
        "dropout-of-torchs-seed",
        "repeats",
        sized(32, 32),
        {"dropout_p": constant(0.3)},
        check="drops",
        gradient=None,
        faults=("F39",),
    ),
)

_MISUSED = (
    _edge("value-shorter-than-key", "F06", Cut("value", 2)),
    _edge("fewer-value-heads-than-key-heads", "F08", Cut("value", 1), sizes=sized(kv_heads=2), **GROUPED),
    _edge("scale-nan", "F38", scale=constant(NAN)),
)
MISUSED = tuple(replace(case, group="misuse", check="refuses", gradient=None) for case in _MISUSED)

EDGES = (*EMPTY_ROWS, *NOT_FINITE, *EXTREME, *MEMORY, *REPEATED, *MISUSED)
