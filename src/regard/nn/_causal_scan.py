"""The causal sum that linear attention is made of, by chunks: no n x n tensor, nothing from the future.

With features phi(q), phi(k) and the weight w_ij = (phi(q_i) . phi(k_j)) exp(log_j):

    out_i = sum_{j <= i} w_ij v_j / sum_{j <= i} w_ij

Within a chunk of C tokens this is a masked product of C x C; what lies before the chunk is one matrix, the state
S = sum_j phi(k_j) exp(log_j) v_j^T (and the same sum without v_j). Time O(n (C (m + d) + m d)) for m features and
width d; memory beyond input and output O(m d + C m) forward and O(n m d / C) backward, which computes the features and
the states again. Katharopoulos et al. 2020, "Transformers are RNNs", give the recurrence; computing it by chunks is
told in Hua et al. 2022, "Transformer quality in linear time".

The state is kept in log space: S is divided by exp(scale), where scale is the largest log weight *so far*. So a large
key neither overflows nor, by a maximum over the whole text, rounds away what came before it: the numbers of a token
are those that it has in the text cut off behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch import library as operator_library

from regard._errors import UnsupportedError
from regard.nn import _native_causal_scan as native
from regard.nn._forward_mode import refuse_tangents
from regard.nn._precision import in_full_precision, working_dtype

CHUNK = 64
"""Tokens at a time. More make the square within a chunk dearer, fewer the calls for each token."""

_EMPTY_SCALE = -1e30  # of a state that has seen nothing; -inf would make NaN of its difference to itself
_SMALLEST = 1e-30  # a normaliser below it has seen nothing: its output is 0

Sums = tuple[Tensor, Tensor, Tensor]
"""What a scan knows of the tokens so far, float32, or float64 where the tokens are; all zeros before the first.

The sum of features times values, (batch, heads, features, value_dim), and that of the features, (batch, heads,
features), both over exp(scale); and the scale, (batch, heads), the largest log weight so far.
"""


def empty_sums(query: Tensor, value: Tensor, features: int) -> Sums:
    """Those before the first token, for tensors (batch, heads, length, ...)."""
    rows, dtype = query.shape[:2], working_dtype(query)
    return (
        query.new_zeros((*rows, features, value.shape[3]), dtype=dtype),
        query.new_zeros((*rows, features), dtype=dtype),
        query.new_zeros(rows, dtype=dtype),
    )


def causal_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_weight: Tensor | None = None,
    projection: Tensor | None = None,
    opposites: bool = False,
    before: Sums | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Sums]:
    """Attend to all tokens so far, with weights (phi(q) . phi(k)) exp(log_weight).

    Args:
        query: (batch, heads, length, width); features themselves, none negative, unless there is a `projection`.
        key: (batch, heads, length, width).
        value: (batch, heads, length, value_dim).
        log_weight: (batch, heads, length), of the keys; -inf for a key that counts for nothing. Needed with a
            `projection`, which makes features of any size.
        projection: (features, width): phi(x) = exp(projection x), never held for more than a chunk. It has no
            gradient.
        opposites: each row of the projection stands for itself and for its opposite: phi(x) = exp(+-projection x).
        before: the sums over the tokens before these; none unless given.
        chunk: tokens at a time. What is computed does not depend on it.

    Returns:
        (batch, heads, length, value_dim) in the dtype of the value, 0 where the weights are all 0; and the sums
        after the last token.
    """
    refuse_tangents("causal_scan", query, key, value, log_weight)
    width = query.shape[3] if projection is None else projection.shape[0] * (1 + opposites)
    before = empty_sums(query, value, width) if before is None else before
    output, _, *after = torch.ops.regard.causal_scan(
        query, key, value, log_weight, projection, *before, opposites, chunk
    )
    return output, (after[0], after[1], after[2])


# ------------------------------------------------------------------------------------------- one chunk


class _Chunk(NamedTuple):
    """The tokens of a chunk, samples and heads in one dimension.

    query, key: their features (rows, length, features). value: (rows, length, value_dim). Of the log weights, which
    are None where there are none: pairs exp(log_j - highest so far at i), lower triangular; past exp(scale of the
    state before - highest so far at i); last exp(log_j - highest at the end); decay exp(scale before - at the end).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    pairs: Tensor | None
    past: Tensor | None
    last: Tensor | None
    decay: Tensor | None
    scale: Tensor


class _Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    log_weight: Tensor | None
    projection: Tensor | None
    values: Tensor
    keys: Tensor
    scale: Tensor
    opposites: bool
    chunk: int

    def places(self) -> Iterator[slice]:
        length = self.query.shape[2]
        for start in range(0, length, self.chunk):
            yield slice(start, min(start + self.chunk, length))

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """values (rows, features, value_dim), keys (rows, features, 1), scale (rows, 1): copies, to be changed."""
        values, keys, scale = (tensor.flatten(0, 1).clone() for tensor in (self.values, self.keys, self.scale))
        empty = ~keys.any(-1, keepdim=True)
        return values, keys.unsqueeze(-1), scale.unsqueeze(-1).masked_fill_(empty, _EMPTY_SCALE)

    def at(self, place: slice, scale: Tensor, *, with_query: bool = True) -> _Chunk:
        query = self._rows(self.query, place)
        key, value = self._rows(self.key, place), self._rows(self.value, place)
        if self.projection is not None:
            query = self._exponential(query)[0] if with_query else query
            key, level = self._exponential(key)
        else:
            level = None
        if self.log_weight is None:
            return _Chunk(query, key, value, None, None, None, None, scale)
        log = self.log_weight[:, :, place].flatten(0, 1).to(self.values.dtype)
        return _weighted(query, key, value, log if level is None else log + level, scale)

    def _rows(self, tensor: Tensor, place: slice) -> Tensor:
        return tensor[:, :, place].to(self.values.dtype).flatten(0, 1)

    def _projection(self) -> Tensor:
        if self.projection is None:
            raise AssertionError("asked only where there is one")
        return self.projection.to(self.values.dtype)

    def _exponential(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """exp(projection x) over its largest feature, and the log of that, (rows, length)."""
        logs = tokens @ self._projection().t()
        if not self.opposites:
            level = logs.amax(-1, keepdim=True)
            return logs.sub_(level).exp_(), level.squeeze(-1)
        lowest, highest = logs.aminmax(dim=-1, keepdim=True)
        level = torch.maximum(highest, -lowest)
        half = logs.shape[-1]
        features = logs.new_empty(*logs.shape[:-1], 2 * half)
        torch.sub(logs, level, out=features[..., :half])
        torch.sub(-level, logs, out=features[..., half:])
        return features.exp_(), level.squeeze(-1)

    def of_tokens(self, of_logs: Tensor) -> Tensor:
        """The gradient of tokens from that of the logs of their features."""
        if self.opposites:
            one, other = of_logs.chunk(2, -1)
            of_logs = one - other
        return of_logs @ self._projection()


def _weighted(query: Tensor, key: Tensor, value: Tensor, log: Tensor, scale: Tensor) -> _Chunk:
    highest = torch.maximum(log.cummax(-1).values, scale)
    end = highest[:, -1:]
    later = torch.ones(log.shape[1], log.shape[1], dtype=torch.bool, device=log.device).triu_(1)
    # A later key may be larger than anything so far: what exp would make of it must not come to be.
    pairs = (log.unsqueeze(-2) - highest.unsqueeze(-1)).masked_fill_(later, -torch.inf).exp_()
    past, last, decay = ((before - after).exp_().unsqueeze(-1) for before, after in _steps(log, scale, highest, end))
    return _Chunk(query, key, value, pairs, past, last, decay, end)


def _steps(log: Tensor, scale: Tensor, highest: Tensor, end: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (scale, highest), (log, end), (scale, end)


def _products(chunk: _Chunk) -> Tensor:
    """The weights within a chunk, (rows, length, length)."""
    products = chunk.query @ chunk.key.mT
    return products.tril_() if chunk.pairs is None else products.mul_(chunk.pairs)


def _times(tensor: Tensor, factor: Tensor | None) -> Tensor:
    return tensor if factor is None else tensor * factor


def _times_(tensor: Tensor, factor: Tensor | None) -> Tensor:
    return tensor if factor is None else tensor.mul_(factor)


# A factor of a token is put on the narrow side of a product: on values, of which there are fewer than features.


def _advance(chunk: _Chunk, values: Tensor, keys: Tensor) -> Tensor:
    """Change the state to that behind the chunk; returns its scale."""
    _times_(values, chunk.decay).baddbmm_(chunk.key.mT, _times(chunk.value, chunk.last))
    last = torch.ones_like(chunk.value[..., :1]) if chunk.last is None else chunk.last
    _times_(keys, chunk.decay).baddbmm_(chunk.key.mT, last)
    return chunk.scale


# --------------------------------------------------------------------------------------------- forward

_Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(*given: Any) -> _Forward:
    inputs, scan = _Inputs(*given), native.Scan(*given[:-1])
    if native.serves(scan):
        output, normaliser = _results(inputs)
        return (output, normaliser, *native.forward(scan, output, normaliser))
    with in_full_precision(given[0]):
        return _scanned(inputs)


def _scanned(inputs: _Inputs) -> _Forward:
    output, normaliser = _results(inputs)
    values, keys, scale = inputs.state()
    for place in inputs.places():
        chunk = inputs.at(place, scale)
        products = _products(chunk)
        total = _times_(torch.bmm(chunk.query, keys), chunk.past).add_(products.sum(-1, keepdim=True))
        found = _times_(torch.bmm(chunk.query, values), chunk.past).baddbmm_(products, chunk.value)
        found.div_(total.clamp_min_(_SMALLEST))
        output[:, :, place] = found.view(*output.shape[:2], *found.shape[1:])
        normaliser[:, :, place] = total.view(*output.shape[:2], total.shape[1])
        scale = _advance(chunk, values, keys)
    return (
        output,
        normaliser,
        values.view(inputs.values.shape),
        keys.view(inputs.keys.shape),
        scale.masked_fill(scale == _EMPTY_SCALE, 0.0).view(inputs.scale.shape),
    )


def _results(inputs: _Inputs) -> tuple[Tensor, Tensor]:
    """The output, laid out so that merging the heads copies nothing, and the normalisers; uninitialised."""
    batch, heads, length, width = inputs.value.shape
    output = inputs.value.new_empty(batch, length, heads, width).transpose(1, 2)
    return output, inputs.values.new_empty(batch, heads, length)


def _forward_fake(*given: Any) -> _Forward:
    inputs = _Inputs(*given)
    state = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given[5:8])
    return cast("_Forward", (*_results(inputs), *state))


# -------------------------------------------------------------------------------------------- backward


def _backward(
    output: Tensor, normaliser: Tensor, grad_output: Tensor, grad_values: Tensor, grad_keys: Tensor, *given: Any
) -> list[Tensor]:
    """Gradients of query, key, value, log weight (empty where there is none), and the state's values and keys."""
    scan, of_state = native.Scan(*given[:-1]), (grad_values, grad_keys)
    if native.serves(scan):
        return native.backward(scan, output, normaliser, grad_output, of_state)
    with in_full_precision(output):
        return _scanned_back(output, normaliser, grad_output, of_state, _Inputs(*given))


def _scanned_back(
    output: Tensor, normaliser: Tensor, grad_output: Tensor, grad_state: tuple[Tensor, Tensor], inputs: _Inputs
) -> list[Tensor]:
    grads = [torch.empty_like(tensor) for tensor in inputs[:3]]
    grad_log = inputs.values.new_empty((0,) if inputs.log_weight is None else inputs.log_weight.shape)
    grad_values, grad_keys = (gradient.flatten(0, 1).clone() for gradient in grad_state)
    grad_keys = grad_keys.unsqueeze(-1)
    states = _states(inputs)
    for place in reversed(list(inputs.places())):
        values, keys, scale = states.pop()
        chunk = inputs.at(place, scale)
        of_output = _rows_of(grad_output, place, inputs) / _rows_of(normaliser.unsqueeze(-1), place, inputs)
        of_total = -(of_output * _rows_of(output, place, inputs)).sum(-1, keepdim=True)
        of_query, of_key, of_value = _of_chunk(chunk, (values, keys), (grad_values, grad_keys), of_output, of_total)
        if inputs.log_weight is not None or inputs.projection is not None:
            through = of_key * chunk.key  # the gradient of the log of each feature
            if inputs.log_weight is not None:
                grad_log[:, :, place] = through.sum(-1).view(*output.shape[:2], through.shape[1])
            if inputs.projection is not None:
                of_query, of_key = inputs.of_tokens(of_query.mul_(chunk.query)), inputs.of_tokens(through)
        for grad, found in zip(grads, (of_query, of_key, of_value), strict=True):
            grad[:, :, place] = found.view(*grad.shape[:2], *found.shape[1:])
    return [*grads, grad_log, grad_values.view(inputs.values.shape), grad_keys.view(inputs.keys.shape)]


def _rows_of(tensor: Tensor, place: slice, inputs: _Inputs) -> Tensor:
    return tensor[:, :, place].to(inputs.values.dtype).flatten(0, 1)


def _states(inputs: _Inputs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The state before each chunk."""
    values, keys, scale = inputs.state()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for place in inputs.places():
        found.append((values.clone(), keys.clone(), scale))
        if place.stop < inputs.query.shape[2]:
            scale = _advance(inputs.at(place, scale, with_query=False), values, keys)
    return found


def _of_chunk(
    chunk: _Chunk,
    before: tuple[Tensor, Tensor],
    grad_state: tuple[Tensor, Tensor],
    of_output: Tensor,
    of_total: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features and values of a chunk; `grad_state` becomes that of the state before it.

    With g = of_output and t = of_total, the gradient of the product q_i . k_j is pairs_ij (g_i . v_j + t_i).
    """
    grad_values, grad_keys = grad_state
    values, keys = before
    of_products = (of_output @ chunk.value.mT).add_(of_total)
    of_products = of_products.tril_() if chunk.pairs is None else of_products.mul_(chunk.pairs)
    past_output, past_total = _times(of_output, chunk.past), _times(of_total, chunk.past)
    of_query = (of_products @ chunk.key).baddbmm_(past_output, values.mT).baddbmm_(past_total, keys.mT)
    last = torch.ones_like(of_total) if chunk.last is None else chunk.last
    of_key = torch.bmm(of_products.mT, chunk.query).baddbmm_(_times(chunk.value, chunk.last), grad_values.mT)
    of_key.baddbmm_(last, grad_keys.mT)
    of_value = _times_(torch.bmm(chunk.key, grad_values), chunk.last).baddbmm_(_products(chunk).mT, of_output)
    _times_(grad_values, chunk.decay).baddbmm_(chunk.query.mT, past_output)
    _times_(grad_keys, chunk.decay).baddbmm_(chunk.query.mT, past_total)
    return of_query, of_key, of_value


def _backward_fake(*given: Any) -> list[Tensor]:
    inputs = _Inputs(*given[5:])
    log = inputs.values.new_empty((0,) if inputs.log_weight is None else inputs.log_weight.shape)
    of_state = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (inputs.values, inputs.keys))
    return [*(torch.empty_like(tensor) for tensor in inputs[:3]), log, *of_state]


# ------------------------------------------------------------------------------------ operators of torch

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? log_weight, Tensor? projection, "
    "Tensor values, Tensor keys, Tensor scale, bool opposites, int chunk"
)
_library: Any = operator_library  # whose functions have types for some of their arguments only
_library.define(
    "regard::causal_scan",
    f"({_ARGUMENTS}) -> (Tensor output, Tensor normaliser, Tensor values_after, Tensor keys_after, Tensor scale_after)",
)
_library.define(
    "regard::causal_scan_backward",
    "(Tensor output, Tensor normaliser, Tensor grad_output, Tensor grad_values, Tensor grad_keys, "
    f"{_ARGUMENTS}) -> Tensor[]",
)
_library.impl("regard::causal_scan", "CompositeExplicitAutograd", _forward)
_library.impl("regard::causal_scan_backward", "CompositeExplicitAutograd", _backward)
_library.register_fake("regard::causal_scan", _forward_fake)
_library.register_fake("regard::causal_scan_backward", _backward_fake)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1], output[4])
    ctx.others = inputs[-2:]
    ctx.save_for_backward(output[0], output[1], *inputs[:-2])


def _differentiate(
    ctx: Any, grad_output: Tensor, _normaliser: Any, grad_values: Tensor, grad_keys: Tensor, _scale: Any
) -> tuple[Tensor | None, ...]:
    output, normaliser, *inputs = ctx.saved_tensors
    query, key, value, log, values, keys = torch.ops.regard.causal_scan_backward(
        output, normaliser, grad_output, grad_values, grad_keys, *inputs, *ctx.others
    )
    return query, key, value, None if inputs[3] is None else log, None, values, keys, None, None, None


def _refuse_twice(*_: Any) -> None:
    raise UnsupportedError(
        {"causal_scan": "it has no second derivative"}, do="Write the sum out where gradients are differentiated again."
    )


_library.register_autograd("regard::causal_scan", _differentiate, setup_context=_save)
_library.register_autograd("regard::causal_scan_backward", _refuse_twice)
