"""Scans whose decay depends on the token: `regard::selective_scan` and its backward, as operators of torch.

    h_t = exp(step_t decay) h_{t-1} + step_t write_t u_t        n numbers of state for each channel
    y_t = sum over the n numbers of read_t h_t

There is no table of powers here, for every token decays in its own way: each number of state costs one exponential and
one multiplication, and nothing is computed twice to save steps. A chunk of tokens is expanded to (tokens, batch, n,
channels) at once, in a block of samples and channels so small that it stays in the cache; its exponentials, what flows
in and what is read out are whole operations over the block; only h itself goes token by token, one fused
multiply-and-add that overwrites what flowed in. Backward keeps the states at the begins of the chunks, n / 32 of the
size of the inputs, and computes the others again, chunk by chunk from the end.

The native core does the same in float32 (`_native_selective_scan.py`); `scan` and `scan_gradients` are for everything
else, and what the core is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import library as operator_library

from regard.nn import _native_selective_scan as native
from regard.nn._diagonal_scan import refuse_twice
from regard.nn._forward_mode import refuse_tangents

_CHUNK = native.CHUNK  # tokens
_BLOCK_NUMBERS = 2**15  # numbers of state of one block


class Scanned(NamedTuple):
    """What a scan gives.

    Attributes:
        output: (batch, length, channels).
        last: (batch, n, channels), the state after the last token.
        begins: (chunks, batch, n, channels), the states that backward starts from; no gradient flows through them.
    """

    output: Tensor
    last: Tensor
    begins: Tensor


class Problem(NamedTuple):
    """One scan, float32 or float64 throughout.

    Attributes:
        inputs: u, (batch, length, channels).
        step: (batch, length, channels), not negative; at a step of 0 no time passes and nothing is written.
        decay: (n, channels), negative.
        write: (batch, length, n).
        read: (batch, length, n).
        state: (batch, n, channels), before the first token.
    """

    inputs: Tensor
    step: Tensor
    decay: Tensor
    write: Tensor
    read: Tensor
    state: Tensor


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def scan(problem: Problem) -> Scanned:
    """The results, in the dtype of the inputs. Not differentiable by itself: see `selective_scan`."""
    state = problem.state
    chunks = -(-problem.inputs.shape[1] // _CHUNK)
    begins = state.new_empty(chunks, *state.shape)
    output, last = torch.empty_like(problem.inputs), state.clone()
    for block in _blocks(problem):
        state = block.state
        for place, tokens in enumerate(_chunks(problem)):
            begins[place, block.samples, :, block.channels] = state
            part = block.part(tokens)
            states = part.states(state, part.decays())
            state = states[-1]
            found = torch.matmul(part.read[:, :, None], states)[:, :, 0]
            output[block.samples, tokens, block.channels] = found.transpose(0, 1)
        last[block.samples, :, block.channels] = state
    return Scanned(output, last, begins)


def scan_gradients(problem: Problem, grad_output: Tensor, grad_last: Tensor, begins: Tensor) -> Gradients:
    """The gradients of each of the problem's tensors, in its order."""
    grads = Problem(*(torch.zeros_like(tensor) for tensor in problem))
    for block in _blocks(problem):
        samples, channels = block.samples, block.channels
        later = grad_last[samples, :, channels].clone()
        for place, tokens in reversed(list(enumerate(_chunks(problem)))):
            part = block.part(tokens)
            of_output = grad_output[samples, tokens, channels].transpose(0, 1)
            found = part.gradients(begins[place, samples, :, channels], of_output, later)
            grads.inputs[samples, tokens, channels] = found.inputs.transpose(0, 1)
            grads.step[samples, tokens, channels] = found.step.transpose(0, 1)
            grads.decay[:, channels] += found.decay
            grads.write[samples, tokens] += found.write.transpose(0, 1)
            grads.read[samples, tokens] += found.read.transpose(0, 1)
            later = found.state
        grads.state[samples, :, channels] = later
    return grads.inputs, grads.step, grads.decay, grads.write, grads.read, grads.state


@dataclass(frozen=True)
class _Part:
    """A chunk of tokens in a block: b samples and c channels, time first.

    Attributes:
        inputs: (tokens, b, c).
        step: (tokens, b, c).
        decay: (n, c).
        write: (tokens, b, n).
        read: (tokens, b, n).
    """

    inputs: Tensor
    step: Tensor
    decay: Tensor
    write: Tensor
    read: Tensor

    def decays(self) -> Tensor:
        """(tokens, b, n, c)."""
        return torch.mul(self.step[:, :, None], self.decay).exp_()

    def states(self, begin: Tensor, decays: Tensor) -> Tensor:
        """(tokens, b, n, c): the state after each token; `begin` is that before the first."""
        states = (self.inputs * self.step)[:, :, None] * self.write[..., None]
        for now, decay in zip(states.unbind(0), decays.unbind(0), strict=True):
            begin = now.addcmul_(decay, begin)
        return states

    def gradients(self, begin: Tensor, of_output: Tensor, later: Tensor) -> Problem:
        """Of each of its tensors, and as `state` of what it began with; `later` is that of its last state."""
        decays = self.decays()
        states = self.states(begin, decays)
        of_states = of_output[:, :, None] * self.read[..., None]
        of_states[-1] += later
        every, shrinks = of_states.unbind(0), decays.unbind(0)
        for place in range(len(every) - 1, 0, -1):
            every[place - 1].addcmul_(shrinks[place], every[place])
        of_begin = shrinks[0] * every[0]

        written = (self.inputs * self.step)[..., None]
        of_written = torch.matmul(self.write[:, :, None], of_states)[:, :, 0]
        of_write = torch.matmul(of_states, written)[..., 0]
        of_read = torch.matmul(states, of_output[..., None])[..., 0]
        # Of the exponents: what each state gets, times the part of it that came from the state before.
        decays[1:].mul_(states[:-1])
        decays[0].mul_(begin)
        of_exponents = decays.mul_(of_states)
        of_decay = torch.mul(of_exponents, self.step[:, :, None], out=states).sum((0, 1))
        of_step = of_exponents.mul_(self.decay).sum(2).addcmul_(of_written, self.inputs)
        return Problem(of_written * self.step, of_step, of_decay, of_write, of_read, of_begin)


@dataclass(frozen=True)
class _Block:
    """Some samples and channels of a problem: no other ones have anything to do with their states."""

    problem: Problem
    samples: slice
    channels: slice

    @property
    def state(self) -> Tensor:
        return self.problem.state[self.samples, :, self.channels]

    def part(self, tokens: slice) -> _Part:
        problem, samples, channels = self.problem, self.samples, self.channels
        return _Part(
            inputs=problem.inputs[samples, tokens, channels].transpose(0, 1),
            step=problem.step[samples, tokens, channels].transpose(0, 1),
            decay=problem.decay[:, channels],
            write=problem.write[samples, tokens].transpose(0, 1),
            read=problem.read[samples, tokens].transpose(0, 1),
        )


def _chunks(problem: Problem) -> Iterator[slice]:
    length = problem.inputs.shape[1]
    return (slice(first, min(first + _CHUNK, length)) for first in range(0, length, _CHUNK))


def _blocks(problem: Problem) -> Iterator[_Block]:
    batch, numbers, channels = problem.state.shape
    across = min(channels, max(1, _BLOCK_NUMBERS // numbers))
    down = max(1, _BLOCK_NUMBERS // max(1, numbers * across))
    for sample in range(0, batch, down):
        for channel in range(0, channels, across):
            yield _Block(
                problem,
                slice(sample, min(sample + down, batch)),
                slice(channel, min(channel + across, channels)),
            )


_library: Any = operator_library  # whose functions have types for some of their arguments only
_PROBLEM = "Tensor inputs, Tensor step, Tensor decay, Tensor write, Tensor read, Tensor state"
_library.define("regard::selective_scan", f"({_PROBLEM}) -> (Tensor output, Tensor last, Tensor begins)")
_library.define(
    "regard::selective_scan_backward",
    f"(Tensor grad_output, Tensor grad_last, Tensor begins, {_PROBLEM})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_library.impl("regard::selective_scan", "CompositeExplicitAutograd")
def _scan(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if native.serves(tensors):
        return native.forward(tensors)
    problem = Problem(*tensors)
    with torch.autocast(problem.inputs.device.type, enabled=False):
        return scan(problem)


@_library.impl("regard::selective_scan_backward", "CompositeExplicitAutograd")
def _scan_backward(grad_output: Tensor, grad_last: Tensor, begins: Tensor, *tensors: Tensor) -> Gradients:
    if native.serves(tensors):
        return native.backward(tensors, grad_output, grad_last, begins)
    problem = Problem(*tensors)
    with torch.autocast(problem.inputs.device.type, enabled=False):
        return scan_gradients(problem, grad_output, grad_last, begins)


@_library.register_fake("regard::selective_scan")
def _scan_fake(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem(*tensors)
    chunks = -(-problem.inputs.shape[1] // _CHUNK)
    begins = problem.state.new_empty(chunks, *problem.state.shape)
    return torch.empty_like(problem.inputs), torch.empty_like(problem.state), begins


@_library.register_fake("regard::selective_scan_backward")
def _scan_backward_fake(_output: Tensor, _last: Tensor, _begins: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in tensors)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *inputs)


def _differentiate(ctx: Any, grad_output: Tensor, grad_last: Tensor, _: Any) -> tuple[Tensor, ...]:
    begins, *tensors = ctx.saved_tensors
    return tuple(torch.ops.regard.selective_scan_backward(grad_output, grad_last, begins, *tensors))


_library.register_autograd("regard::selective_scan", _differentiate, setup_context=_save)
_library.register_autograd("regard::selective_scan_backward", refuse_twice)


def selective_scan(problem: Problem) -> Scanned:
    """The operator: differentiable, and opaque to torch.compile."""
    refuse_tangents("the scan of a state space", *problem)
    return Scanned(*torch.ops.regard.selective_scan(*problem))
