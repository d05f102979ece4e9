"""A name for a bool matrix: causal, a window, padding, documents, or what it is not.

The same eye looks at what was recovered and at what was declared, so that both are named alike. What it names it also
builds: a name is given only to a matrix that the mask of that name makes again, cell by cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.masks import Blocks, Causal, Dense, Dilated, Documents, GlobalTokens, Keys, Mask, Padding, PrefixLM
from regard.masks import SlidingWindow as Window
from regard.masks._align import Align

PREFIXES, STEPS = 8, 8
"""Prefixes, global tokens and steps of a dilation up to this many are tried."""


@dataclass(frozen=True)
class Description:
    """A mask in words.

    words: "causal", "causal, window 4 before", "padding: 7, 12 real keys" ...
    mask: the mask of that name, or None when there is none.
    """

    words: str
    mask: Mask | None


def describe(allowed: Tensor) -> Description:
    """Name a recovered mask, bool (batch, heads, q_len, kv_len)."""
    if allowed.numel() == 0:
        return Description("no pairs", None)
    if not bool((allowed == allowed[:, :1]).all()):
        return _by_head(allowed)
    samples = allowed[:, 0]
    if bool((samples == samples[:1]).all()):
        return describe_one(samples[0])
    return _by_sample(samples)


def _by_head(allowed: Tensor) -> Description:
    told: dict[str, list[int]] = {}
    for head in range(allowed.shape[1]):
        told.setdefault(describe(allowed[:, head : head + 1]).words, []).append(head)
    return Description("; ".join(f"head {_span(heads)}: {words}" for words, heads in told.items()), Dense(allowed))


def _span(numbers: list[int]) -> str:
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _by_sample(samples: Tensor) -> Description:
    """Samples that differ in their real keys only, and are one mask beside."""
    real = samples.any(1)
    rest = _without_hidden_keys(samples, real)
    if rest is None:
        told = "; ".join(f"sample {index}: {describe_one(one).words}" for index, one in enumerate(samples))
        return Description(told, Dense(samples[:, None]))
    return _joined(_padding(real), describe_one(rest))


def _without_hidden_keys(samples: Tensor, real: Tensor) -> Tensor | None:
    """The mask that, met with each sample's real keys, makes the samples; None when there is none."""
    # Where a key is real in some sample, that sample says what the mask has there.
    rest = samples.any(0) | ~real.any(0)
    again = rest[None] & real[:, None]
    return rest if torch.equal(again, samples) else None


def _padding(real: Tensor) -> Description:
    """Which keys of each sample are real, bool (batch, kv_len)."""
    lengths = [int(count) for count in real.sum(1)]
    told = f"padding, {', '.join(map(str, lengths))} real keys"
    for side in ("right", "left"):
        if _makes(mask := Padding(lengths, side=side), real[:, None, None].expand(-1, 1, 1, -1)):
            return Description(told + ("" if side == "right" else ", on the left"), mask)
    return Description(f"some keys of each sample ({', '.join(map(str, lengths))} of {real.shape[1]})", Keys(real))


def _joined(left: Description, right: Description) -> Description:
    if right.words == _EVERYTHING:
        return left
    both = None if left.mask is None or right.mask is None else right.mask & left.mask
    return Description(f"{right.words}; {left.words}", both)


_EVERYTHING = "every pair"


def describe_one(allowed: Tensor) -> Description:
    """Name one bool matrix (q_len, kv_len)."""
    if bool(allowed.all()):
        return Description(_EVERYTHING, None)
    if not bool(allowed.any()):
        return Description("no pair", Dense(allowed))
    for found in _candidates(allowed):
        if found.mask is not None and _makes(found.mask, allowed):
            return found
    real = allowed.any(0)
    rest = allowed | ~real
    if not bool(real.all()) and not torch.equal(rest, allowed):
        return _joined(_hidden(real), describe_one(rest))
    return Description(f"another mask, {100 * float(allowed.float().mean()):.0f}% of pairs", Dense(allowed))


def _hidden(real: Tensor) -> Description:
    hidden = [place for place in range(real.numel()) if not bool(real[place])]
    return Description(f"no key {_span(hidden)}", Dense(real[None]) if real.numel() == 1 else Keys(real[None]))


def _makes(mask: Mask, allowed: Tensor) -> bool:
    q_len, kv_len = allowed.shape[-2:]
    made = mask.dense(q_len, kv_len)
    same = made == allowed
    return same.dim() == allowed.dim() and bool(same.all())


def _candidates(allowed: Tensor) -> Iterator[Description]:
    q_len, kv_len = allowed.shape
    yield from _bands(allowed)
    if q_len == kv_len:
        yield from _packed(allowed)
    yield from _prefixes(allowed)
    yield from _globals(allowed)
    yield from _dilated(allowed)


def _corners(q_len: int, kv_len: int) -> tuple[Align | None, ...]:
    return (None,) if q_len == kv_len else ("top_left", "bottom_right")


def _told(align: Align | None) -> str:
    return "" if align is None else f", {align.replace('_', '-')}"


def _distances(allowed: Tensor, align: Align | None) -> Tensor:
    q_len, kv_len = allowed.shape
    beside = torch.arange(q_len) + (kv_len - q_len if align == "bottom_right" else 0)
    return torch.arange(kv_len)[None] - beside[:, None]


def _bands(allowed: Tensor) -> Iterator[Description]:
    """Causal, windows, or both; with other lengths, the corner that gives the shorter name comes first."""
    found = [_band(allowed, align) for align in _corners(*allowed.shape)]
    yield from sorted(found, key=lambda band: (len(band.words), band.words))


def _band(allowed: Tensor, align: Align | None) -> Description:
    distance = _distances(allowed, align)
    kept = distance[allowed]
    before, after = -int(kept.min()), int(kept.max())
    to_start, to_end = before >= -int(distance.min()), after >= int(distance.max())
    if after == 0 and to_start:
        return Description(f"causal{_told(align)}", Causal(align))
    if min(before, after) < 0:
        return Description("a band of distances apart from the token itself", None)
    if after == 0:
        return Description(f"causal, window {before} before{_told(align)}", Window(before, 0, align=align))
    if to_start or to_end:
        # A side without a bound is written as one that no pair of these lengths reaches.
        reach = sum(allowed.shape)
        told = f"window {after} after" if to_start else f"window {before} before, all after"
        return Description(
            told + _told(align), Window(reach if to_start else before, after if to_start else reach, align=align)
        )
    told = f"window {before} before, {after} after"
    return Description(told + _told(align), Window(before, after, align=align))


def _packed(allowed: Tensor) -> Iterator[Description]:
    """Documents, and documents read causally or through a window."""
    lengths = document_lengths(allowed)
    if len(lengths) < 2 or len(lengths) == allowed.shape[0]:
        return
    documents: Mask = Documents(lengths)
    named = Description(f"documents of {', '.join(map(str, lengths))}", documents)
    if len(lengths) > 2 and _makes(Blocks(lengths[0]), documents.dense(*allowed.shape)):
        documents = Blocks(lengths[0])
        named = Description(f"blocks of {lengths[0]}", documents)
    yield named
    yield Description(f"causal, within {named.words}", Causal() & documents)
    for band in _bands(allowed):
        if band.mask is not None:
            yield Description(f"{band.words}, within {named.words}", band.mask & documents)


def document_lengths(allowed: Tensor) -> list[int]:
    """Where a text falls into pieces of which none sees another: the lengths of the pieces, of a square matrix."""
    length = allowed.shape[0]
    borders = [0]
    borders += [
        place
        for place in range(1, length)
        if not bool(allowed[:place, place:].any()) and not bool(allowed[place:, :place].any())
    ]
    return [end - start for start, end in itertools.pairwise([*borders, length])]


def _prefixes(allowed: Tensor) -> Iterator[Description]:
    seen_by_all = allowed.all(0)
    length = int(seen_by_all.int().cumprod(0).sum())
    for align in _corners(*allowed.shape):
        for count in (length, length - 1):  # a causal mask shows its first key to all anyway
            if 0 < count <= PREFIXES * 8:
                yield Description(f"prefix of {count}, then causal{_told(align)}", PrefixLM(count, align=align))


def _globals(allowed: Tensor) -> Iterator[Description]:
    """A window and tokens that see all and are seen by all."""
    q_len, kv_len = allowed.shape
    if q_len != kv_len:
        return
    tokens = [token for token in range(q_len) if bool(allowed[token].all()) and bool(allowed[:, token].all())]
    if not 0 < len(tokens) <= PREFIXES:
        return
    mask = GlobalTokens(tokens)
    outside = allowed & ~mask.dense(q_len, kv_len)
    if not bool(outside.any()):
        yield Description(f"global tokens {_span(tokens)}", mask)
        return
    band = _band(outside, None)
    if band.mask is not None:
        yield Description(f"{band.words}, global tokens {_span(tokens)}", band.mask | mask)


def _dilated(allowed: Tensor) -> Iterator[Description]:
    for align in _corners(*allowed.shape):
        distance = _distances(allowed, align)
        kept = distance[allowed]
        before, after = -int(kept.min()), int(kept.max())
        if min(before, after) < 0:
            continue
        for step in range(2, STEPS + 1):
            told = f"one key in {step}, {before // step} before, {after // step} after"
            yield Description(told + _told(align), Dilated(step, before // step, after // step, align=align))
