"""What `verify` asks: the table of cases.

A case stands for something that attention is known to get wrong; `faults` names its rows of the fault table. Names are
stable: reports, tests and the list of known faults use them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import torch

from regard._shapes import Sizes
from regard.masks import BigBird, Blocks, Causal, Dilated, Documents, GlobalTokens, Mask, Padding, PrefixLM
from regard.masks import SlidingWindow as Window
from regard.positions import ALiBi, RoPE, Shaw, T5Bias, TransformerXL
from regard.trust.verify.case import (
    DTYPES,
    Case,
    Part,
    constant,
    forbidding_bias,
    mask,
    numbers,
    position,
    random_mask,
)

F32, BF16, F16, F64 = DTYPES
MOST, NOT_HALF, FULL_ONLY = (F32, BF16), (F32, F64), ()


def sized(q_len: int = 8, kv_len: int = 8, **other: int) -> Sizes:
    """Sizes, small unless said."""
    heads, head_dim = other.pop("heads", 4), other.pop("head_dim", 6)
    more = {"batch": 2, "kv_heads": heads, "value_dim": head_dim} | other
    return Sizes(heads=heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim, **more)


BASE, FEWER, MORE = sized(), sized(5, 8), sized(11, 8)
LONG = sized(130, 257, batch=1, heads=2, head_dim=16)
PLAIN = Case("plain", "shapes", BASE, dtypes=DTYPES)
"""The case without anything: a dtype in which it is refused is not offered."""


def _shape(name: str, sizes: Sizes, dtypes: tuple[torch.dtype, ...] = (F32,), *, fault: str = "F13") -> Case:
    words = ("value", "dim") if sizes.value_dim != sizes.head_dim else ()
    return Case(name, "shapes", sizes, dtypes=dtypes, faults=(fault,), refusal_words=words)


SHAPES = (
    PLAIN,
    _shape("one-pair", sized(1, 1, batch=1, heads=1, head_dim=1)),
    _shape("one-query", sized(1, 97, head_dim=8), MOST),
    _shape("prime-lengths", sized(13, 101, batch=1, heads=3, head_dim=17)),
    _shape("below-a-block", sized(63, 65, batch=1, heads=2, head_dim=8)),
    _shape("beyond-a-block", sized(65, 33, batch=1, heads=2, head_dim=8)),
    _shape("head-dim-3", sized(head_dim=3)),
    _shape("head-dim-80", sized(5, 9, heads=2, head_dim=80), MOST),
    _shape("long", LONG, DTYPES),
    _shape("many-keys", sized(4, 2048, batch=1, heads=1, head_dim=32), MOST),
    _shape("value-narrower", sized(5, 9, value_dim=3), MOST, fault="F05"),
    _shape("value-wider", sized(5, 9, value_dim=11), fault="F05"),
)

# ------------------------------------------------------------------------------------------------------ masks


def _masked(name: str, part: Part, sizes: Sizes = BASE, *faults: str) -> Case:
    return Case(name, "masks", sizes, {"mask": part}, dtypes=MOST, faults=faults)


def _fixed(value: Mask) -> Part:
    return mask(lambda _: value)


def _lengths(sizes: Sizes) -> list[int]:
    """The first sample is shorter, by three keys where there are so many."""
    return [max(sizes.kv_len - 3, 1), *[sizes.kv_len] * (sizes.batch - 1)]


CAUSAL, CAUSAL_END = _fixed(Causal("top_left")), _fixed(Causal("bottom_right"))
NOTHING_FIRST = _fixed(Window(2, 0) & ~Window(0))
"""The first query may attend to nothing, every other one to the two keys before it."""
PADDING = mask(lambda sizes: Padding(_lengths(sizes)))
EACH_HEAD = random_mask("batch", "heads", "q_len", "kv_len")
MASKS = (
    _masked("causal", _fixed(Causal())),
    _masked("causal-top-left", CAUSAL, FEWER, "F25"),
    _masked("causal-bottom-right", CAUSAL_END, FEWER, "F25"),
    _masked("causal-of-more-queries", CAUSAL, MORE, "F25"),
    _masked("causal-long", _fixed(Causal()), sized(130, 130, batch=1, heads=2, head_dim=16)),
    _masked("window", _fixed(Window(2, 1)), BASE, "F14"),
    _masked("window-before", _fixed(Window(2, 0)), BASE, "F14"),
    _masked("window-long", _fixed(Window(40, 9, align="bottom_right")), LONG, "F14"),
    _masked("padding", PADDING),
    _masked("padding-left", mask(lambda sizes: Padding(_lengths(sizes), side="left"))),
    _masked("padding-and-causal", mask(lambda sizes: Padding(_lengths(sizes)) & Causal()), BASE, "F24"),
    _masked("documents", mask(lambda sizes: Documents([3, sizes.kv_len - 3]))),
    _masked("pairs", random_mask("q_len", "kv_len")),
    _masked("pairs-of-each-head", EACH_HEAD, FEWER, "F22"),
    _masked("pairs-of-each-sample", random_mask("batch", "1", "q_len", "kv_len"), FEWER, "F22"),
)
STRUCTURED = tuple(
    replace(_masked(name, _fixed(value)), dtypes=FULL_ONLY)
    for name, value in {
        "blocks": Blocks(3),
        "dilated": Dilated(2),
        "prefix": PrefixLM(3),
        "global-or-window": GlobalTokens([1, 4]) | Window(1),
        "bigbird": BigBird(2, window_blocks=1, global_blocks=1, random_blocks=1),
        "window-beyond": Window(99),
    }.items()
)

# ---------------------------------------------------------------------------------------------------- options

SOFTCAP, SINK, SCALE = constant(0.7), numbers(5, "heads"), constant(0.9)
BIAS = numbers(4, "batch", "heads", "q_len", "kv_len")
DROPOUT = {"dropout_p": constant(0.4), "seed": constant(11)}
GROUPED = {"enable_gqa": constant(value=True)}
TWO_HEADS = sized(kv_heads=2)
ALIBI = position(lambda sizes: ALiBi(sizes.heads, align="bottom_right"))
ROPE = position(lambda sizes: RoPE(sizes.head_dim, align="bottom_right"))
T5 = position(lambda sizes: T5Bias(sizes.heads, buckets=8, max_distance=6, align="top_left"))
SHAW = position(lambda sizes: Shaw(sizes.head_dim, 2, value_dim=sizes.value_dim, align="bottom_right"))


def _option(name: str, options: dict[str, Part], sizes: Sizes = BASE) -> Case:
    return Case(name, "options", sizes, options, dtypes=MOST)


OPTIONS = (
    _option("bias", {"bias": BIAS}),
    _option("bias-of-heads", {"bias": numbers(4, "1", "heads", "q_len", "kv_len")}),
    _option("bias-of-keys", {"bias": numbers(4, "batch", "1", "1", "kv_len")}),
    replace(_option("bias-forbidding", {"bias": forbidding_bias()}, FEWER), faults=("F42",)),
    replace(_option("scale-own", {"scale": SCALE}), faults=("F38",)),
    replace(_option("scale-zero", {"scale": constant(0.0)}), faults=("F38",)),
    replace(_option("scale-negative", {"scale": constant(-0.8)}), faults=("F38",)),
    _option("softcap", {"softcap": SOFTCAP}),
    replace(_option("softcap-high", {"softcap": constant(30.0)}), dtypes=(F32,), full=NOT_HALF),
    _option("sink", {"sink": SINK}),
    replace(_option("dropout", DROPOUT), faults=("F41",)),
    replace(_option("dropout-all", {"dropout_p": constant(1.0), "seed": constant(11)}), faults=("F39",)),
    replace(_option("grouped", GROUPED, TWO_HEADS), faults=("F08",)),
    replace(_option("multi-query", GROUPED, sized(kv_heads=1)), faults=("F08",)),
    replace(_option("lse", {}, FEWER), lse=True, faults=("F68",)),
    replace(_option("lse-with-sink", {"sink": SINK}, FEWER), lse=True),
    _option("alibi", {"position": ALIBI}, FEWER),
    _option(
        "t5", {"position": position(lambda at: T5Bias(at.heads, buckets=8, max_distance=6, align="top_left"))}, FEWER
    ),
    _option("rope", {"position": ROPE}, FEWER),
    _option("rope-interleaved", {"position": position(lambda at: RoPE(at.head_dim, style="interleaved"))}),
    _option("shaw", {"position": SHAW}, FEWER),
    _option("transformer-xl", {"position": position(lambda at: TransformerXL(at.heads, at.head_dim))}),
)


def _pair(name: str, options: dict[str, Part], sizes: Sizes = BASE) -> Case:
    return Case(name, "pairs", sizes, options)


PAIRS = (
    _pair("softcap-then-bias", {"softcap": SOFTCAP, "bias": BIAS}),
    _pair("softcap-then-mask", {"softcap": SOFTCAP, "mask": EACH_HEAD}),
    _pair("softcap-then-sink", {"softcap": SOFTCAP, "sink": SINK}),
    _pair("softcap-of-scaled", {"softcap": SOFTCAP, "scale": constant(-0.8)}),
    _pair("bias-and-causal", {"bias": BIAS, "mask": CAUSAL_END}, FEWER),
    _pair("bias-of-keys-and-causal", {"bias": numbers(4, "batch", "1", "1", "kv_len"), "mask": CAUSAL}),
    _pair("causal-with-scale-negative", {"scale": constant(-0.8), "mask": CAUSAL}),
    _pair("causal-with-scale-zero", {"scale": constant(0.0), "mask": CAUSAL}),
    _pair("grouped-and-mask", {"mask": EACH_HEAD, **GROUPED}, sized(5, 8, kv_heads=2)),
    _pair("grouped-and-bias", {"bias": BIAS, **GROUPED}, sized(5, 8, kv_heads=2)),
    _pair("grouped-and-causal", {"mask": CAUSAL, **GROUPED}, TWO_HEADS),
    _pair("grouped-and-dropout", {**GROUPED, **DROPOUT}, TWO_HEADS),
    _pair("grouped-and-sink", {"sink": SINK, **GROUPED}, TWO_HEADS),
    _pair("dropout-and-mask", {"mask": EACH_HEAD, **DROPOUT}),
    _pair("value-wider-and-mask", {"mask": EACH_HEAD}, sized(5, 8, value_dim=11)),
    _pair("alibi-and-window", {"position": ALIBI, "mask": _fixed(Window(3, 0, align="bottom_right"))}, FEWER),
    _pair("alibi-and-bias", {"position": ALIBI, "bias": BIAS}, FEWER),
    _pair("rope-and-grouped", {"position": ROPE, **GROUPED}, TWO_HEADS),
)


def all_pairs() -> Iterable[Case]:
    """Every pair of one value of each option, for a full run."""
    values: dict[str, dict[str, Part]] = {
        "pairs": {"mask": EACH_HEAD},
        "causal": {"mask": CAUSAL_END},
        "bias": {"bias": BIAS},
        "scale": {"scale": SCALE},
        "softcap": {"softcap": SOFTCAP},
        "sink": {"sink": SINK},
        "alibi": {"position": ALIBI},
        "rope": {"position": ROPE},
        "shaw": {"position": SHAW},
        "dropout": DROPOUT,
        "grouped": GROUPED,
    }
    for (first, one), (second, other) in combinations(values.items(), 2):
        if not set(one) & set(other):
            sizes = sized(5, 8, kv_heads=2) if "grouped" in {first, second} else FEWER
            yield replace(_pair(f"{first}+{second}", {**one, **other}, sizes), dtypes=FULL_ONLY, full=MOST)


FUSED = Case(
    "four-million-scores",
    "shapes",
    sized(728, 728, batch=1, heads=8, head_dim=32),
    {"mask": CAUSAL},
    dtypes=FULL_ONLY,
    full=MOST,
    gradient=None,
)
"""Large enough for FlexAttention to be compiled, which takes many seconds."""
