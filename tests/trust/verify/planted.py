"""Copies of the backends with one bug each, and wrong callables: what `verify` must find.

A bug takes the `run` of a backend and a problem, and gives (output, lse).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

import regard
from regard.backends import BACKENDS, Backend, Support
from regard.masks import Causal, Padding, SlidingWindow
from regard.positions import RoPE


class Planted(Backend):
    """A copy of a backend with a bug."""

    name = "planted"

    def __init__(self, name, bug, *, refuses=True):
        self.own = next(backend for backend in BACKENDS if backend.name == name)
        self.bug = bug
        self.refuses = refuses

    def support(self, problem):
        return self.own.support(problem) if self.refuses else Support(ok=True, reason="it takes everything")

    def run(self, problem):
        return self.bug(self.own.run, problem)


def changed(**changes):
    """The problem with something else in it: a value, or a function of the problem."""

    def bug(run, problem):
        made = {name: change(problem) if callable(change) else change for name, change in changes.items()}
        return run(replace(problem, **made))

    return bug


def on_output(change):
    """The output of the backend, changed by a function of it and the problem."""

    def bug(run, problem):
        output, lse = run(problem)
        return change(output, problem), lse

    return bug


def right(run, problem):
    return run(problem)


def other_corner(problem):
    return Causal("top_left") if problem.mask == Causal("bottom_right") else problem.mask


def wider_window(problem):
    mask = problem.mask
    return SlidingWindow(mask.before + 1, mask.after) if isinstance(mask, SlidingWindow) else mask


def no_padding(problem):
    return None if isinstance(problem.mask, Padding) else problem.mask


def softcap_after_bias(run, problem):
    if problem.softcap is None or problem.bias is None:
        return run(problem)
    key = problem.key.repeat_interleave(problem.sizes.group, 1)
    scores, cap = (problem.query @ key.mT * problem.scale).float(), problem.softcap
    bias = cap * torch.tanh((scores + problem.bias) / cap) - cap * torch.tanh(scores / cap)
    return run(replace(problem, bias=bias.to(problem.bias.dtype)))


def interleaved_groups(run, problem):
    if not problem.sizes.grouped:
        return run(problem)
    key, value = (tensor.repeat(1, problem.sizes.group, 1, 1) for tensor in (problem.key, problem.value))
    sizes = replace(problem.sizes, kv_heads=problem.sizes.heads)
    return run(replace(problem, key=key, value=value, sizes=sizes))


def empty(problem):
    """Which rows may attend to nothing, (batch or 1, heads or 1, q_len, 1)."""
    allowed = problem.allowed()
    if allowed is None:
        return torch.zeros(problem.sizes.q_len, 1, dtype=torch.bool)
    return ~allowed.any(-1, keepdim=True)


def average_of_values(problem):
    return problem.value.repeat_interleave(problem.sizes.group, 1).mean(2, keepdim=True)


def without_nan(tensor):
    return torch.where(tensor.isfinite(), tensor, 0.0)


def leaking(output, problem):
    """What 0 * NaN does."""
    value = problem.value.repeat_interleave(problem.sizes.group, 1)
    return output + (value * 0.0).sum(2, keepdim=True)


def everywhere_nan(output, _):
    return output * math.nan if bool(output.isnan().any()) else output


def as_if_contiguous(tensor):
    """Strides ignored: what a kernel reads that takes a pointer and sizes."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    fits = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset() >= reach
    return tensor.as_strided(tensor.shape, strides) if fits else tensor


def first_64_widths(problem):
    return (
        problem.query if problem.sizes.head_dim <= 64 else problem.query * (torch.arange(problem.sizes.head_dim) < 64)
    )


def last_key_lost(run, problem):
    if problem.sizes.kv_len % 32 != 1 or problem.mask is not None or problem.bias is not None:
        return run(problem)
    sizes = replace(problem.sizes, kv_len=problem.sizes.kv_len - 1)
    return run(replace(problem, key=problem.key[:, :, :-1], value=problem.value[:, :, :-1], sizes=sizes))


def lse_in_log2(run, problem):
    output, lse = run(problem)
    return output, None if lse is None else lse / math.log(2)


def other_base(problem):
    if not isinstance(problem.position, RoPE):
        return problem.position
    options = problem.position.options() | {"base": 500.0}
    return RoPE(options.pop("dim"), **options).to(problem.query.dtype)


ALL, LEARNING, OWN = ("native", "sdpa", "flex", "eager"), ("native", "sdpa", "eager"), ("native", "eager")
BUGS = {
    "mask-dropped": (changed(mask=None), "causal", ALL),
    "padding-dropped": (changed(mask=no_padding), "padding", ALL),
    "causal-corner": (changed(mask=other_corner), "causal-bottom-right", ALL),
    "window-off-by-one": (changed(mask=wider_window), "window", ALL),
    "scale-ignored": (changed(scale=lambda problem: problem.sizes.head_dim**-0.5), "scale-own", ALL),
    "scale-by-width": (changed(scale=lambda problem: 1.0 / problem.sizes.head_dim), "plain", ALL),
    "bias-dropped": (changed(bias=None), "bias", ALL),
    "softcap-dropped": (changed(softcap=None), "softcap", ("native", "flex", "eager")),
    "softcap-after-bias": (softcap_after_bias, "softcap-then-bias", ("native", "flex", "eager")),
    "sink-dropped": (changed(sink=None), "sink", OWN),
    "groups-interleaved": (interleaved_groups, "grouped", ALL),
    "heads-swapped": (changed(query=lambda problem: problem.query.flip(1)), "plain", ALL),
    "other-base": (changed(position=other_base), "rope", ALL),
    "empty-row-nan": (
        on_output(lambda output, problem: output.masked_fill(empty(problem), math.nan)),
        "empty-row",
        ALL,
    ),
    "empty-row-average": (
        on_output(lambda output, problem: torch.where(empty(problem), average_of_values(problem), output)),
        "empty-sample",
        ALL,
    ),
    "nan-swallowed": (changed(query=lambda problem: without_nan(problem.query)), "nan-in-every-query", OWN),
    "masked-nan-leaks": (on_output(leaking), "nan-in-masked-value", OWN),
    "nan-reaches-the-neighbour": (on_output(everywhere_nan), "nan-in-a-neighbour", OWN),
    "no-gradient-of-sink": (changed(sink=lambda at: None if at.sink is None else at.sink.detach()), "sink", OWN),
    "no-gradient-of-bias": (changed(bias=lambda at: None if at.bias is None else at.bias.detach()), "bias", LEARNING),
    "no-gradient-of-key": (changed(key=lambda problem: problem.key.detach()), "plain", LEARNING),
    "other-bits-each-time": (on_output(lambda output, _: output * (1 + 1e-6 * torch.rand(()))), "twice", ALL),
    "one-part-in-a-thousand": (on_output(lambda output, _: output * 1.001), "plain", ALL),
    "bfloat16-inside": (changed(query=lambda at: at.query.bfloat16().to(at.query.dtype)), "plain", ALL),
    "strides-ignored": (changed(key=lambda problem: as_if_contiguous(problem.key)), "laid-heads-last", ALL),
    "widths-beyond-64": (changed(query=first_64_widths), "head-dim-80", ALL),
    "last-key-of-33": (last_key_lost, "below-a-block", ALL),
    "other-dropout-seed": (changed(seed=lambda at: None if at.seed is None else 1), "dropout", OWN),
    "dropout-ignored": (changed(dropout_p=0.0), "dropout-of-torchs-seed", OWN),
    "lse-in-log2": (lse_in_log2, "lse", LEARNING),
}
"""By name: the bug, a case that must fail, and the backends that it can be planted in: the others refuse the case."""


# ---------------------------------------------------------------------------------------------- callables


def options_ignored(query, key, value, **options):
    """Takes everything and does nothing of it."""
    return regard.attention(query, key, value, backend="eager", enable_gqa=options.get("enable_gqa", False))


def softcap_ignored(query, key, value, *, mask=None, softcap=None):
    return regard.attention(query, key, value, backend="eager", mask=mask)


def causal_from_the_end(query, key, value, attn_mask=None, is_causal=False):
    """`is_causal` with the corner of other libraries."""
    mask = Causal("bottom_right") if is_causal else attn_mask
    return regard.attention(query, key, value, backend="eager", mask=mask)


def wrong_beyond_five_keys(query, key, value):
    """Right up to five keys, and wrong from the sixth."""
    output = regard.attention(query, key, value, backend="eager")
    return output + 0.5 if key.shape[2] > 5 else output


def raises_beyond_five_keys(query, key, value):
    if key.shape[2] > 5:
        raise IndexError("index 5 is out of bounds")
    return regard.attention(query, key, value, backend="eager")


def sums_in_bfloat16(query, key, value, scale=None):
    """Adds the weighted values one after the other in the dtype of the query."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = (query.to(wide) @ key.to(wide).mT * scale).softmax(-1)
    output = torch.zeros(*query.shape[:3], value.shape[3], dtype=query.dtype)
    for start in range(0, key.shape[2], 4):
        part = slice(start, start + 4)
        output = output + (weights[..., part] @ value[:, :, part].to(wide)).to(query.dtype)
    return output


def in_float32_only(query, key, value, mask=None):
    """Refuses half precision and float64 by name, and gives no gradients."""
    if query.dtype != torch.float32:
        raise ValueError(f"expected dtype float32, got {query.dtype}")
    return regard.attention(query.detach(), key.detach(), value.detach(), mask=mask, backend="eager")
