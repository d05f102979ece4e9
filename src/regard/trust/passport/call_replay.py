"""Recorded attention calls computed again, each as a problem of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regard._errors import CheckpointError, RegardError
from regard.trust import budget
from regard.trust.passport import calls, units
from regard.trust.passport.calls import Answer
from regard.trust.passport.contents import Call
from regard.trust.passport.folder import Passport
from regard.trust.passport.report import Row
from regard.trust.passport.units import Side
from regard.trust.passport.written import dtype_of
from regard.trust.plain import plain_attention
from regard.trust.question import Question
from regard.trust.target import Target, why_refused


def question_of(call: Call, passport: Passport) -> Question:
    """The problem that a call is.

    Raises:
        CheckpointError: it is none.
    """
    tensors = passport.tensors
    try:
        options = calls.read_options(call.options, tensors)
        question = Question(tensors[call.query], tensors[call.key], tensors[call.value], options)
        _check_truth(call, question, tensors)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, RegardError) as problem:
        raise CheckpointError(
            f"{str(passport.folder)!r}: the attention call {call.name!r} is not readable ({problem})."
        ) from problem
    return question


def _check_truth(call: Call, question: Question, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where what is true is not of this problem."""
    sizes, learned = question.sizes, calls.learning(question).leaves()
    shapes = {"output": (sizes.batch, sizes.heads, sizes.q_len, sizes.value_dim)}
    shapes |= {name: tuple(leaf.shape) for name, leaf in learned.items()}
    for name, key in (*call.truth.items(), *call.made.items()):
        if tuple(tensors[key].shape) != shapes.get(name):
            raise ValueError(f"{name!r} of {tuple(tensors[key].shape)}, expected {shapes.get(name, 'no such name')}")


@dataclass(frozen=True)
class CallReplay:
    """How calls are replayed: by whom, in which dtype (None: as recorded), on which device."""

    target: Target
    dtype: torch.dtype | None
    device: torch.device

    def rows(self, call: Call, passport: Passport) -> list[Row]:
        """What the target makes of one call: its output, and its gradients where they were recorded."""
        question, recorded = question_of(call, passport), dtype_of(call.dtype)
        dtype = self.dtype or recorded
        true = {name: passport.tensors[key] for name, key in call.truth.items()}
        made = {name: passport.tensors[key] for name, key in call.made.items()} if dtype == recorded else {}
        given = calls.learning(question, dtype)
        exact = calls.truth_of(question)
        rows = _reference_rows(call, true, exact)
        if dtype != recorded:
            exact = calls.truth_of(given)
            true = {name: exact.gradients[name] if name != "output" else exact.output for name in true}
        plain = calls.answered(given, plain_attention(given.query, given.key, given.value, **given.options))
        judge = _Judge(call, true, plain, made)
        wants_gradient = set(true) != {"output"}
        try:
            answer = self._answer(calls.learning(question, dtype) if wants_gradient else question.copied(dtype))
        except Exception as problem:
            reason = why_refused(problem, given)
            if reason is None or not wants_gradient:
                return [*rows, _refused(call, reason) if reason else _raised(call, problem)]
            return [*rows, *self._without_gradient(question.copied(dtype), judge, reason)]
        if wants_gradient and not answer.gradients:
            rows.append(_refused(call, "what it gives has no gradient", side="gradient"))
        return rows + [judge.row(name, answer) for name in true if _given(answer, name)]

    def _without_gradient(self, question: Question, judge: _Judge, reason: str) -> list[Row]:
        """The output alone, of a target that may refuse only its gradient."""
        try:
            answer = self._answer(question)
        except Exception:
            return [_refused(judge.call, reason)]
        return [_refused(judge.call, reason, side="gradient"), judge.row("output", answer)]

    def _answer(self, question: Question) -> Answer:
        """On the device, and back on the CPU; no gradients where none are asked for, or none are given."""
        there = _on(question, self.device)
        output = self.target.call(there)
        if not output.requires_grad or not there.query.requires_grad:
            return Answer(output.detach().cpu(), {})
        answer = calls.answered(there, output)
        return Answer(answer.output.cpu(), {name: tensor.cpu() for name, tensor in answer.gradients.items()})


@dataclass(frozen=True)
class _Judge:
    """What one call is compared with: the truth, plain torch, and what was made where it was recorded."""

    call: Call
    true: Mapping[str, Tensor]
    plain: Answer
    made: Mapping[str, Tensor]

    def row(self, name: str, answer: Answer) -> Row:
        """Of the output, or of one gradient."""
        side: Side = "forward" if name == "output" else "gradient"
        found, made = _part(answer, name), self.made.get(name)
        limit = _limit(name, self.plain, self.true)
        error = units.gap(found, self.true[name])
        own = None if made is None else units.gap(made, self.true[name])
        return Row(
            what="attention",
            name=self.call.name,
            part=name,
            side=side,
            state="passed" if error <= limit else "differs",
            error=error,
            limit=limit,
            ratio=budget.ratio(error, limit, units.FACTORS[side]),
            recorder=None if own is None else budget.ratio(own, limit, units.FACTORS[side]),
            same_bits=None if made is None or made.dtype != found.dtype else torch.equal(found, made),
            note=self.call.kept and f"of the call {self.call.kept}",
        )


def _limit(name: str, plain: Answer, true: Mapping[str, Tensor]) -> float:
    """As `regard.verify` has it, for numbers of any size."""
    if name == "output":
        size = units.size_of(true[name])
        return size * budget.forward(plain.output / size, true[name] / size)
    names = [other for other in true if other != "output"]
    size = max(units.size_of(true[other]) for other in names)
    return size * budget.gradient(
        name,
        {other: plain.gradients[other] / size for other in names},
        {other: true[other] / size for other in names},
    )


def _reference_rows(call: Call, recorded: Mapping[str, Tensor], here: Answer) -> list[Row]:
    """Whether float64 says here what it said there; a row where it does not."""
    rows: list[Row] = []
    for name, expected in recorded.items():
        side: Side = "forward" if name == "output" else "gradient"
        limit = units.CAPS[side] * units.size_of(expected)
        error = units.gap(_part(here, name), expected)
        if error > limit:
            note = "the reference in float64 says something else here than where the passport was made"
            ratio = budget.ratio(error, limit, units.FACTORS[side])
            rows.append(Row("attention", call.name, name, side, "differs", error, limit, ratio, note=note))
    return rows


def _refused(call: Call, reason: str, side: Side = "forward") -> Row:
    none = float("nan")
    part = "output" if side == "forward" else "gradients"
    return Row("attention", call.name, part, side, "refused", none, none, none, note=reason)


def _raised(call: Call, problem: Exception) -> Row:
    none = float("nan")
    told = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
    return Row("attention", call.name, "output", "forward", "differs", none, none, none, note=told)


def _part(answer: Answer, name: str) -> Tensor:
    return answer.output if name == "output" else answer.gradients[name]


def _given(answer: Answer, name: str) -> bool:
    return name == "output" or name in answer.gradients


def _on(question: Question, device: torch.device) -> Question:
    """On a device, still as leaves. On another than the CPU unproven: none was at hand."""
    if device.type == "cpu":
        return question

    def there(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

    options = {
        name: there(given) if isinstance(given, Tensor) else given.to(device) if name == "position" else given
        for name, given in question.options.items()
    }
    return Question(there(question.query), there(question.key), there(question.value), options)
