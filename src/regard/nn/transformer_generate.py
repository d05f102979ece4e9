"""Beam search: the likeliest texts that a model can write, one token at a time. The guide's 2.1.

A beam is a text begun; in each step every beam is continued by every token, and the best `beams` continuations go on.
A text that ends is scored by

    score = log p(text) / length^length_penalty

(Wu et al. 2016, "Google's Neural Machine Translation System", https://arxiv.org/abs/1609.08144, has another form of
the same). With one beam this is greedy decoding. With as many beams as there are texts it is exhaustive search, which
is how it is tested. A sample is done when nothing that is still running can beat what it has found: log p only falls,
so that is known for certain. Nothing is drawn: the same model gives the same texts.

Cost: one step of the model for batch * beams rows and each token; O(batch * beams * most_tokens) memory beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.nn._arguments import require_positive

Step = Callable[[Tensor], Tensor]
"""All tokens so far, int64 (batch * beams, length), to the logits of the next one, (batch * beams, vocabulary)."""


class Generated(NamedTuple):
    """What was written, best first.

    tokens: int64 (batch, best, longest), without what it began from; `pad` behind each end.
    scores: float32 (batch, best); -inf where there are fewer texts than were asked for.
    lengths: int64 (batch, best), the end token counted.
    """

    tokens: Tensor
    scores: Tensor
    lengths: Tensor


def beam_search(
    step: Step,
    begin: Tensor,
    *,
    end: int,
    most_tokens: int,
    beams: int = 1,
    best: int = 1,
    length_penalty: float = 1.0,
    pad: int | None = None,
    reorder: Callable[[Tensor], None] | None = None,
) -> Generated:
    """Write texts with any model that can say how likely each next token is.

    Args:
        step: see `Step`. A model with a cache reads only the tokens that its cache has not.
        begin: int64 (batch, length >= 1), what the texts begin from: a begin token, or a prompt.
        end: the token that ends a text.
        most_tokens: texts that have not ended after so many new tokens end there.
        beams: how many texts are kept running; 1 is greedy.
        best: how many texts to give for each sample, at most `beams`.
        length_penalty: 0 prefers short texts as log p does, 1 scores the mean log p of a token, above 1 prefers long.
        pad: stands behind the end of shorter texts; `end` unless given.
        reorder: called with int64 (batch * beams,) before each further step, for caches: row i goes on from rows[i].

    Raises:
        ArgumentError: a number below 1, best above beams, a length_penalty that is not finite.
        ShapeError: begin or logits of another shape.
    """
    require_positive(most_tokens=most_tokens, beams=beams, best=best)
    _require_sensible(begin, beams, best, length_penalty)
    batch, begun = begin.shape
    texts = begin.repeat_interleave(beams, 0).view(batch, beams, begun)
    totals = torch.full((batch, beams), -math.inf, device=begin.device)
    totals[:, 0] = 0.0  # all beams are the same at first: one of them runs
    found = _Found(batch, best, most_tokens, end if pad is None else pad, begin.device)
    for length in range(1, most_tokens + 1):
        following = _log_probabilities(step(texts.flatten(0, 1)), texts, end)
        likely = _likeliest(totals, following, beams)
        ended = (likely.token == end) | (length == most_tokens)
        ended[:, beams:] = False  # a text ends when its end is among the best, not whenever it could
        scores = likely.total / length**length_penalty
        found.add(torch.where(ended, scores, -math.inf), _continued(texts, likely)[..., begun:])
        goes_on = _first_running(likely, end, beams)
        texts, totals = _continued(texts, goes_on), goes_on.total
        found.finish(_attainable(totals, length, most_tokens, length_penalty), greedy=beams == 1)
        if length == most_tokens or bool(found.done.all()):
            break
        if reorder is not None:
            reorder((goes_on.parent + beams * torch.arange(batch, device=begin.device)[:, None]).flatten())
    return found.generated()


class _Continuations(NamedTuple):
    """Some continuations of each sample, best first; each (batch, count)."""

    total: Tensor
    parent: Tensor
    token: Tensor

    def at(self, places: Tensor) -> _Continuations:
        return _Continuations(*(each.gather(1, places) for each in self))


class _Found:
    """The best texts of each sample that have ended."""

    def __init__(self, batch: int, best: int, most_tokens: int, pad: int, device: torch.device) -> None:
        self.best, self.pad = best, pad
        self.scores = torch.full((batch, best), -math.inf, device=device)
        self.tokens = torch.full((batch, best, most_tokens), pad, dtype=torch.int64, device=device)
        self.lengths = torch.zeros((batch, best), dtype=torch.int64, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)

    def add(self, scores: Tensor, tokens: Tensor) -> None:
        """More texts (batch, count, length) with their scores (batch, count), -inf for those that have not ended."""
        scores = scores.masked_fill(self.done[:, None], -math.inf)
        if not bool((scores > -math.inf).any()):
            return
        length, room = tokens.shape[2], self.tokens.shape[2]
        padded = torch.nn.functional.pad(tokens, (0, room - length), value=self.pad)
        lengths = torch.full(scores.shape, length, dtype=torch.int64, device=scores.device)
        self.scores, places = torch.cat([self.scores, scores], 1).topk(self.best, 1)
        self.lengths = torch.cat([self.lengths, lengths], 1).gather(1, places)
        self.tokens = torch.cat([self.tokens, padded], 1).gather(1, places[..., None].expand(-1, -1, room))

    def finish(self, attainable: Tensor, *, greedy: bool) -> None:
        """Samples are done that nothing attainable (batch,) can better; greedily, those that have a text."""
        self.done |= self.scores[:, -1] > -math.inf if greedy else self.scores[:, -1] >= attainable

    def generated(self) -> Generated:
        there = self.scores > -math.inf
        lengths = self.lengths * there
        longest = int(lengths.max()) if lengths.numel() else 0
        tokens = self.tokens.masked_fill(~there[..., None], self.pad)
        return Generated(tokens[..., :longest], self.scores, lengths)


def _likeliest(totals: Tensor, following: Tensor, beams: int) -> _Continuations:
    """The best 2 * beams continuations: each beam ends in one way only, so `beams` of them do not end."""
    vocabulary = following.shape[-1]
    every = (totals[..., None] + following).flatten(1)
    total, places = every.topk(min(2 * beams, every.shape[1]), 1)
    return _Continuations(total, places // vocabulary, places % vocabulary)


def _first_running(likely: _Continuations, end: int, beams: int) -> _Continuations:
    """The best `beams` that do not end, in their order."""
    places = torch.sort((likely.token == end).to(torch.int8), stable=True, dim=1).indices[:, :beams]
    chosen = likely.at(places)
    return chosen._replace(total=chosen.total.masked_fill(chosen.token == end, -math.inf))


def _continued(texts: Tensor, by: _Continuations) -> Tensor:
    """(batch, count, length + 1): the texts that these continuations make."""
    before = texts.gather(1, by.parent[..., None].expand(-1, -1, texts.shape[2]))
    return torch.cat([before, by.token[..., None]], 2)


def _attainable(totals: Tensor, length: int, most_tokens: int, length_penalty: float) -> Tensor:
    """The best score (batch,) that a running text could still end with: log p does not rise."""
    longest = most_tokens if length_penalty > 0 else length + 1
    return totals.amax(1) / longest**length_penalty


def _log_probabilities(logits: Tensor, texts: Tensor, end: int) -> Tensor:
    batch, beams, _ = texts.shape
    if logits.dim() != 2 or logits.shape[0] != batch * beams or not 0 <= end < logits.shape[1] or logits.shape[1] < 2:
        raise ShapeError(
            "logits of a step",
            expected=f"(batch * beams {batch * beams}, vocabulary), with the end token {end} in the vocabulary",
            got=shape_of(logits),
            do="Give one row of logits for each text, those of its next token.",
        )
    return logits.to(torch.float32).log_softmax(-1).view(batch, beams, logits.shape[1])


def _require_sensible(begin: Tensor, beams: int, best: int, length_penalty: float) -> None:
    if best > beams:
        raise ArgumentError(
            "best",
            expected=f"at most beams {beams}",
            got=str(best),
            do="Search with as many beams as texts are wanted.",
        )
    if not math.isfinite(length_penalty):
        raise ArgumentError(
            "length_penalty", expected="a finite number", got=repr(length_penalty), do="0 is none, 1 is the mean."
        )
    if begin.dim() != 2 or begin.dtype != torch.int64 or begin.shape[1] < 1:
        raise ShapeError(
            "begin",
            expected="int64 (batch, length >= 1)",
            got=f"{begin.dtype} {shape_of(begin)}",
            do="Give each sample its begin token: torch.full((batch, 1), begin).",
        )
