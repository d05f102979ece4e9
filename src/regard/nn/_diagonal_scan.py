"""Scans of diagonal linear state spaces, by chunks: `regard::diagonal_scan` and its backward, as operators of torch.

    s_t = w s_{t-1} + u_t          w = exp(log_decay), complex, one for each of n modes of each channel
    y_t = 2 Re(sum over modes of readout s_t)

This is at once a recurrence and a convolution with K[t] = 2 Re(sum readout w^t). Neither is fast as it stands: the
recurrence takes `length` small steps, and the convolution wants a kernel as long as the text, which costs n complex
exponentials for every one of its numbers. So the text is cut into chunks of T tokens. Within a chunk, the output is a
matrix product with the T x T Toeplitz matrix of K; what a chunk adds to the state, and what the state at its begin adds
to the outputs, are matrix products with tables of w^0 ... w^T; and the states at the begins of the chunks are a
recurrence of length/T steps. The tables are made by doubling, from powers w^1, w^2, w^4 ... computed in float64, so
that no phase is large when it is rounded.

Time for each token and channel: T + 4 n multiplications, and as many for each chunk's tables. Memory: channels are
independent, so a group of them at a time; in backward its tables and states are computed anew. Every product of a token
with what came before it is by a number that is exactly 0, never by a transform that mixes both: no gradient leaks.

Whoever has a faster way to compute both operators replaces `scan` and `scan_gradients`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import library as operator_library

from regard._errors import UnsupportedError
from regard.nn._forward_mode import refuse_tangents

_GROUP_NUMBERS = 2**17  # of one table or of the inputs of one group of channels: about what fits a core's cache
_FEWEST_CHANNELS = 16  # a line of cache in float32


class Scanned(NamedTuple):
    """What a scan gives.

    Attributes:
        output: (batch, length, channels).
        last: (batch, channels, modes, 2), the state after the last token, real and imaginary part.
    """

    output: Tensor
    last: Tensor


class Problem(NamedTuple):
    """One scan.

    Attributes:
        inputs: (batch, length, channels), float32 or float64.
        log_decay: (channels, modes, 2), float64; the real part is negative.
        readout: (channels, modes, 2), in the dtype of the inputs.
        state: (batch, channels, modes, 2), before the first token, in the dtype of the inputs.
        chunk: the most tokens of a chunk.
    """

    inputs: Tensor
    log_decay: Tensor
    readout: Tensor
    state: Tensor
    chunk: int


def scan(problem: Problem) -> Scanned:
    """Both results of the scan, in the dtype of the inputs. Not differentiable by itself: see `diagonal_scan`."""
    inputs, state = problem.inputs, problem.state
    if not inputs.numel():
        return Scanned(torch.zeros_like(inputs), state.clone())
    output, last = torch.empty_like(inputs), torch.empty_like(state)
    for group in _groups(problem):
        begins = group.begins()
        within = torch.bmm(group.inputs, group.toeplitz())
        within.baddbmm_(_real_rows(begins), group.out_of_state.transpose(1, 2))
        output[:, :, group.channels] = group.as_tokens(within)
        last[:, group.channels] = group.last(begins).transpose(0, 1)
    return Scanned(output, last)


def scan_gradients(problem: Problem, grad_output: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of inputs, log_decay, readout and state."""
    inputs, log_decay, readout, state, _ = problem
    if not inputs.numel():
        return torch.zeros_like(inputs), torch.zeros_like(log_decay), torch.zeros_like(readout), grad_last.clone()
    found = tuple(torch.empty_like(tensor) for tensor in (inputs, log_decay, readout, state))
    for group in _groups(problem):
        gradients = _group_gradients(group, grad_output, grad_last)
        found[0][:, :, group.channels] = group.as_tokens(gradients[0])
        found[1][group.channels] = torch.view_as_real(gradients[1])
        found[2][group.channels] = torch.view_as_real(gradients[2])
        found[3][:, group.channels] = torch.view_as_real(gradients[3]).transpose(0, 1)
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True)
class _Group:
    """Some channels, c of them, with their tables. A row is a chunk of a sample; T is its size, n the modes.

    Attributes:
        channels: which.
        inputs: (c, rows, T); beyond the last token there are zeros.
        powers: (c, T + 1, n) complex, w^0 ... w^T.
        into_state: (c, T, 2 n): what an input adds to the state at the end of its chunk.
        weighted: (c, T + 1, n) complex, 2 readout w^t.
        out_of_state: (c, T, 2 n): what the state at the begin of a chunk adds to an output.
        state: (c, batch, n) complex, before the first token.
        readout: (c, n) complex.
        length: tokens of the text.
    """

    channels: slice
    inputs: Tensor
    powers: Tensor
    into_state: Tensor
    weighted: Tensor
    out_of_state: Tensor
    state: Tensor
    readout: Tensor
    length: int

    @property
    def size(self) -> int:
        return self.inputs.shape[2]

    @property
    def chunks(self) -> int:
        return -(-self.length // self.size)

    @property
    def tail(self) -> int:
        """How many tokens the last chunk has."""
        return self.length - (self.chunks - 1) * self.size

    def toeplitz(self) -> Tensor:
        """(c, T, T): what input j adds to output i of its chunk; exactly 0 for i < j."""
        kernel = self.weighted[:, :-1].real.sum(2)
        count, size = kernel.shape
        # Rows of kernel and zeros, 2 T long, read with a step of 2 T - 1: each row stands one place further right.
        rows = torch.cat([kernel, torch.zeros_like(kernel)], 1)[:, None].expand(count, size, 2 * size)
        sheared = rows.reshape(count, -1)[:, : size * (2 * size - 1)].view(count, size, 2 * size - 1)
        return sheared[:, :, :size]

    def begins(self) -> Tensor:
        """(c, batch, chunks, n) complex: the state at the begin of each chunk."""
        added = torch.bmm(self.inputs, self.into_state)
        added = torch.view_as_complex(added.view(*self.inputs.shape[:1], -1, self.chunks, self.readout.shape[1], 2))
        begins, state = torch.empty_like(added), self.state
        decay = self.powers[:, -1, None]
        for new, begin in zip(added.unbind(2), begins.unbind(2), strict=True):
            begin.copy_(state)
            state = torch.addcmul(new, state, decay)
        return begins

    def last(self, begins: Tensor) -> Tensor:
        """(c, batch, n, 2): the state after the last token, which need not be the end of a chunk."""
        ending = torch.bmm(self.last_row()[:, :, : self.tail], self.into_state[:, self.size - self.tail :])
        carried = torch.view_as_real(begins[:, :, -1] * self.powers[:, self.tail, None])
        return carried + ending.view(carried.shape)

    def last_row(self) -> Tensor:
        """(c, batch, T): the inputs of the last chunk of each sample."""
        return self.inputs.view(self.inputs.shape[0], -1, self.chunks, self.size)[:, :, -1]

    def rows_of(self, tokens: Tensor) -> Tensor:
        """(batch, length, all channels) -> (c, rows, T)."""
        return _rows(tokens[:, :, self.channels], self.chunks, self.size)

    def as_tokens(self, rows: Tensor) -> Tensor:
        """(c, rows, T) -> (batch, length, c)."""
        return rows.view(rows.shape[0], -1, self.chunks * self.size)[:, :, : self.length].permute(1, 2, 0)


def _groups(problem: Problem) -> Iterator[_Group]:
    inputs, log_decay, readout, state, chunk = problem
    (batch, length, count), modes = inputs.shape, log_decay.shape[1]
    size = min(chunk, _power_of_two(length))
    chunks = -(-length // size)
    each = max(size * max(size, 2 * modes), batch * chunks * size)
    together = max(_FEWEST_CHANNELS, _GROUP_NUMBERS // each)
    for first in range(0, count, together):
        channels = slice(first, min(first + together, count))
        powers = _powers(torch.view_as_complex(log_decay[channels].contiguous()), size, inputs.dtype)
        weights = torch.view_as_complex(readout[channels].contiguous())
        weighted = powers * (2 * weights[:, None])
        yield _Group(
            channels=channels,
            inputs=_rows(inputs[:, :, channels], chunks, size),
            powers=powers,
            into_state=_real_rows(powers[:, :-1].flip(1)),
            weighted=weighted,
            out_of_state=_real_rows(weighted[:, 1:].conj().resolve_conj()),
            state=torch.view_as_complex(state[:, channels].transpose(0, 1).contiguous()),
            readout=weights,
            length=length,
        )


def _group_gradients(group: _Group, grad_output: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of inputs (c, rows, T), log_decay (c, n), readout (c, n), state (c, batch, n).

    The gradient of a complex number is that of its real part plus i times that of its imaginary part.
    """
    size, tail = group.size, group.tail
    begins, outputs = group.begins(), group.rows_of(grad_output)
    last = torch.view_as_complex(grad_last[:, group.channels].transpose(0, 1).contiguous())
    of_begins = torch.view_as_complex(torch.bmm(outputs, group.out_of_state).view(*begins.shape, 2))
    of_begins[:, :, -1] += last * group.powers[:, tail, None].conj()
    of_added, of_state = _backwards(of_begins, group.powers[:, -1])

    of_inputs = torch.bmm(outputs, group.toeplitz().transpose(1, 2))
    of_inputs.baddbmm_(_real_rows(of_added), group.into_state.transpose(1, 2))
    ending = torch.bmm(_real_rows(last), group.into_state[:, size - tail :].transpose(1, 2))
    of_inputs.view(of_inputs.shape[0], -1, group.chunks, size)[:, :, -1, :tail] += ending

    of_into = torch.bmm(group.inputs.transpose(1, 2), _real_rows(of_added))
    of_into[:, size - tail :].baddbmm_(group.last_row()[:, :, :tail].transpose(1, 2), _real_rows(last))
    of_out = torch.bmm(outputs.transpose(1, 2), _real_rows(begins))
    of_kernel = _diagonal_sums(torch.bmm(group.inputs.transpose(1, 2), outputs))

    of_weighted = torch.zeros_like(group.weighted)
    of_weighted[:, 1:] = _complex_rows(of_out).conj()
    of_weighted[:, :-1] += of_kernel[:, :, None]
    of_powers = of_weighted * (2 * group.readout[:, None]).conj()
    of_powers[:, :-1] += _complex_rows(of_into).flip(1)
    of_powers[:, -1] += (begins.conj() * of_added).sum((1, 2))
    of_powers[:, tail] += (begins[:, :, -1].conj() * last).sum(1)

    exponents = torch.arange(size + 1, dtype=of_inputs.dtype, device=of_inputs.device)
    of_log_decay = (group.powers.conj() * of_powers * exponents[:, None]).sum(1)
    of_readout = 2 * (group.powers.conj() * of_weighted).sum(1)
    return of_inputs, of_log_decay, of_readout, of_state


def _backwards(of_begins: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """From what each begin of a chunk gets by itself: the gradients of what each chunk adds, and of the first state."""
    of_added, later = torch.empty_like(of_begins), torch.zeros_like(of_begins[:, :, 0])
    decay = decay.conj().resolve_conj()[:, None]
    for own, added in zip(reversed(of_begins.unbind(2)), reversed(of_added.unbind(2)), strict=True):
        added.copy_(later)
        later = torch.addcmul(own, later, decay)
    return of_added, later


def _diagonal_sums(square: Tensor) -> Tensor:
    """(c, T, T) -> (c, T): the sum over all j of [j, j + t]: `toeplitz` backwards."""
    count, size, _ = square.shape
    wide = torch.nn.functional.pad(square, (0, size - 1)).flatten(1)
    return torch.nn.functional.pad(wide, (0, size)).view(count, size, 2 * size).sum(1)[:, :size]


def _powers(log_decay: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(c, n) complex128 -> (c, size + 1, n): exp(log_decay t) for t = 0 ... size, each within a few roundings."""
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    powers = torch.empty(log_decay.shape[0], size + 1, log_decay.shape[1], dtype=kind, device=log_decay.device)
    powers[:, 0] = 1
    known = 1
    while known <= size:
        new = min(known, size + 1 - known)
        factor = torch.exp(log_decay * known).to(kind)[:, None]
        torch.mul(powers[:, :new], factor, out=powers[:, known : known + new])
        known += new
    return powers


def _rows(tokens: Tensor, chunks: int, size: int) -> Tensor:
    """(batch, length, c) -> (c, batch * chunks, size), with zeros after the last token."""
    batch, length, count = tokens.shape
    rows = tokens.new_empty(count, batch, chunks * size)
    rows[:, :, :length] = tokens.permute(2, 0, 1)
    rows[:, :, length:] = 0
    return rows.view(count, batch * chunks, size)


def _real_rows(numbers: Tensor) -> Tensor:
    """Complex (c, ..., n) -> (c, rows, 2 n)."""
    return torch.view_as_real(numbers).reshape(numbers.shape[0], -1, 2 * numbers.shape[-1])


def _complex_rows(numbers: Tensor) -> Tensor:
    """(c, rows, 2 n) -> complex (c, rows, n)."""
    return torch.view_as_complex(numbers.view(*numbers.shape[:2], -1, 2))


def _power_of_two(length: int) -> int:
    """The least one that is not below `length`."""
    return 1 << max(length - 1, 0).bit_length()


_library: Any = operator_library  # whose functions have types for some of their arguments only
_PROBLEM = "Tensor inputs, Tensor log_decay, Tensor readout, Tensor state, int chunk"
_library.define("regard::diagonal_scan", f"({_PROBLEM}) -> (Tensor output, Tensor last)")
_library.define(
    "regard::diagonal_scan_backward",
    f"(Tensor grad_output, Tensor grad_last, {_PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_library.impl("regard::diagonal_scan", "CompositeExplicitAutograd")
def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments)
    with torch.autocast(problem.inputs.device.type, enabled=False):
        return scan(problem)


@_library.impl("regard::diagonal_scan_backward", "CompositeExplicitAutograd")
def _scan_backward(grad_output: Tensor, grad_last: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = Problem(*arguments)
    with torch.autocast(problem.inputs.device.type, enabled=False):
        return scan_gradients(problem, grad_output, grad_last)


@_library.register_fake("regard::diagonal_scan")
def _scan_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments)
    return torch.empty_like(problem.inputs), torch.empty_like(problem.state)


@_library.register_fake("regard::diagonal_scan_backward")
def _scan_backward_fake(_output: Tensor, _last: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, log_decay, readout, state, _ = Problem(*arguments)
    return torch.empty_like(inputs), torch.empty_like(log_decay), torch.empty_like(readout), torch.empty_like(state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    del output  # autograd hands it over by this name
    problem = Problem(*inputs)
    ctx.chunk = problem.chunk
    ctx.save_for_backward(problem.inputs, problem.log_decay, problem.readout, problem.state)


def _differentiate(ctx: Any, grad_output: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.regard.diagonal_scan_backward(grad_output, grad_last, *ctx.saved_tensors, ctx.chunk)
    return (*gradients, None)


def refuse_twice(*_: Any) -> None:
    """Autograd of a backward that has none."""
    raise UnsupportedError(
        {"the scan of a state space": "it has no second derivative"},
        do="Differentiate through a loop over module.step(token, state) instead.",
    )


_library.register_autograd("regard::diagonal_scan", _differentiate, setup_context=_save)
_library.register_autograd("regard::diagonal_scan_backward", refuse_twice)


def diagonal_scan(problem: Problem) -> Scanned:
    """The operator: differentiable, and opaque to torch.compile."""
    refuse_tangents("the scan of a state space", *problem[:4])
    return Scanned(*torch.ops.regard.diagonal_scan(*problem))
