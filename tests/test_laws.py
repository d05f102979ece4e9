"""Laws that any attention obeys, for random problems: what changes nothing, and what changes how."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard import reference
from regard.masks import Causal, Dense
from tests import judging, oracles
from tests.oracles import Case
from tests.strategies import any_case, numbers

TOLERANCE = 1e-10
each_backend = pytest.mark.parametrize("backend", ["native", "eager", "sdpa", "auto"])
exactly = functools.partial(oracles.assert_within, limit=TOLERANCE)


def dense(case):
    """The mask of a case over (batch, heads, q_len, kv_len)."""
    sizes = (*case.query.shape[:3], case.key.shape[2])
    mask = case.options.get("mask")
    if mask is None:
        return torch.ones(sizes, dtype=torch.bool)
    return mask.dense(*sizes[2:]).expand(sizes).clone()


def with_options(case, **options):
    return Case(case.query, case.key, case.value, {**case.options, **options})


def run(case, **options):
    return case.run(reference.attention, **options)


@each_backend
@given(case=any_case(dtype=torch.float32))
def test_any_problem_is_as_the_oracle_says(backend, case):
    judging.judge(case, backend)


@given(case=any_case(), seed=st.integers(0, 99))
def test_order_of_the_keys_does_not_matter(case, seed):
    order = torch.randperm(case.key.shape[2], generator=torch.Generator().manual_seed(seed))
    options = {**case.options, "mask": Dense(dense(case)[..., order])}
    if "bias" in options and options["bias"].shape[-1] > 1:
        options["bias"] = options["bias"][..., order]
    permuted = Case(case.query, case.key[:, :, order], case.value[:, :, order], options)
    exactly(run(permuted).output, run(case).output)
    exactly(run(permuted).weights, run(case).weights[..., order])


@given(case=any_case(), constant=st.sampled_from([-30.0, 0.5, 100.0]))
def test_a_constant_added_to_all_scores_changes_only_the_lse(case, constant):
    case = with_options(case, sink=None)
    bias = case.options.get("bias", torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    raised = run(with_options(case, bias=bias + constant))
    exactly(raised.output, run(case).output)
    exactly(raised.lse, run(case).lse + constant)


@given(case=any_case(), number=st.sampled_from([0.0, 1e6, math.nan, math.inf]))
def test_a_key_that_nobody_may_see_changes_nothing(case, number):
    options = {**case.options, "mask": Dense(torch.nn.functional.pad(dense(case), (0, 1), value=False))}
    if "bias" in options and options["bias"].shape[-1] > 1:
        options["bias"] = torch.nn.functional.pad(options["bias"], (0, 1), value=number)
    key, value = (torch.nn.functional.pad(t, (0, 0, 0, 1), value=number) for t in (case.key, case.value))
    longer = Case(case.query, key, value, options)
    expected, actual = oracles.oracle(case), oracles.oracle(longer)
    exactly(actual.output, expected.output)
    for name in ("query", "sink"):
        if name in expected.gradients:
            exactly(actual.gradients[name], expected.gradients[name])
    exactly(actual.gradients["key"][:, :, :-1], expected.gradients["key"])
    assert (actual.gradients["key"][:, :, -1] == 0).all()
    assert (actual.gradients["value"][:, :, -1] == 0).all()


@given(case=any_case(), data=st.data())
def test_parts_of_the_keys_are_merged_by_their_lse(case, data):
    case = with_options(case, sink=None)
    cut = data.draw(st.integers(0, case.key.shape[2]))
    whole, parts = run(case), []
    for span in (slice(0, cut), slice(cut, None)):
        options = {**case.options, "mask": Dense(dense(case)[..., span])}
        if "bias" in options and options["bias"].shape[-1] > 1:
            options["bias"] = options["bias"][..., span]
        parts.append(run(Case(case.query, case.key[:, :, span], case.value[:, :, span], options)))
    lse = torch.stack([part.lse for part in parts]).logsumexp(0)
    shares = [torch.exp(part.lse - lse).nan_to_num(0.0).unsqueeze(-1) for part in parts]
    merged = sum(share * part.output for share, part in zip(shares, parts, strict=True))
    exactly(merged, whole.output)
    exactly(lse, whole.lse)


@given(case=any_case(options=False))
def test_a_head_given_twice_answers_twice(case):
    twice = Case(*(t.repeat(1, 2, 1, 1) for t in (case.query, case.key, case.value)), dict(case.options))
    twice.options["mask"] = Dense(dense(case).repeat(1, 2, 1, 1))
    once = run(with_options(case, mask=Dense(dense(case)))).output
    exactly(run(twice).output, once.repeat(1, 2, 1, 1))


@given(case=any_case(), seed=st.integers(0, 9))
def test_batches_are_independent(case, seed):
    other = Case(numbers(seed, *case.query.shape), numbers(seed, *case.key.shape), numbers(seed, *case.value.shape))
    options = {**case.options, "mask": Dense(dense(case).repeat(2, 1, 1, 1))}
    if "bias" in options and options["bias"].shape[0] > 1:
        options["bias"] = options["bias"].repeat(2, 1, 1, 1)
    pairs = zip((case.query, case.key, case.value), (other.query, other.key, other.value), strict=True)
    together = run(Case(*(torch.cat(pair) for pair in pairs), options)).output
    exactly(together[: case.query.shape[0]], run(case).output)


@each_backend
@given(length=st.integers(2, 9), seed=st.integers(0, 99), data=st.data())
def test_causal_prefix_does_not_see_what_follows(backend, length, seed, data):
    cut = data.draw(st.integers(1, length - 1))
    tensors = [numbers(seed + place, 2, 2, length, 3) for place in range(3)]
    changed = [tensor.clone() for tensor in tensors]
    for tensor in changed:
        tensor[:, :, cut:] = numbers(seed + 9, 2, 2, length - cut, 3)
    attend = functools.partial(regard.attention, mask=Causal(), backend=backend)
    exactly(attend(*changed)[:, :, :cut], attend(*tensors)[:, :, :cut])
    exactly(attend(*(tensor[:, :, :cut] for tensor in tensors)), attend(*tensors)[:, :, :cut])


@given(case=any_case())
def test_weights_are_shares(case):
    result = run(with_options(case, sink=None))
    assert (result.weights >= 0).all()
    total = result.weights.sum(-1)
    exactly(total, dense(case).any(-1).to(torch.float64))
    assert (result.weights[~dense(case)] == 0).all()
    exactly(torch.where(dense(case), torch.exp(result.scores - result.lse.unsqueeze(-1)), 0.0), result.weights)


@given(case=any_case(options=False), factor=st.sampled_from([-2.0, 0.0, 0.25, 3.0]))
def test_scale_is_a_factor_of_the_query(case, factor):
    scaled = Case(case.query * factor, case.key, case.value, case.options)
    exactly(run(scaled, scale=0.5).output, run(case, scale=0.5 * factor).output)


@each_backend
@given(case=any_case())
def test_grouped_heads_are_repeated_heads(backend, case):
    group = case.query.shape[1] // case.key.shape[1]
    repeated = [tensor.repeat_interleave(group, dim=1) for tensor in (case.key, case.value)]
    options = {name: option for name, option in case.options.items() if name != "enable_gqa"}
    attend = functools.partial(regard.attention, backend=backend)
    try:
        grouped = case.run(attend)
    except regard.UnsupportedError as refusal:
        judging.refused(refusal, backend)
    else:
        exactly(grouped, Case(case.query, *repeated, options).run(attend))


@given(case=any_case())
def test_sink_is_one_more_key_whose_value_is_zero(case):
    sink = numbers(1, case.query.shape[1])
    batch, heads, q_len, kv_len = dense(case).shape
    bias = case.options.get("bias", torch.zeros(1, 1, 1, 1, dtype=torch.float64)).expand(batch, heads, q_len, kv_len)
    longer = torch.cat([bias, sink.view(1, -1, 1, 1).expand(batch, -1, q_len, 1)], -1)
    seen = dense(case).any(-1, keepdim=True)  # a row that may attend to nothing stays empty
    key, value = (torch.nn.functional.pad(t, (0, 0, 0, 1)) for t in (case.key, case.value))
    options = {**case.options, "bias": longer, "mask": Dense(torch.cat([dense(case), seen], -1)), "sink": None}
    expected = run(Case(case.query, key, value, options))
    actual = run(with_options(case, sink=sink))
    exactly(actual.output, expected.output)
    exactly(actual.lse, expected.lse)
