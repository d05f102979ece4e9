"""The checks themselves: each is fed answers that are wrong in one known way and must say so."""

from __future__ import annotations

import math

import pytest
import torch

from regard.masks import Causal
from regard.trust import Question, Target, budget
from regard.trust.plain import plain_attention
from regard.trust.verify import checks
from regard.trust.verify.answers import DetachedError
from regard.trust.verify.checks import Finding, drops, pooled, refuses, right, same_bits

NAN = math.nan


def question(dtype=torch.float32, length=6, **options):
    return Question(*(torch.randn(2, 3, length, 4, dtype=torch.float64).to(dtype) for _ in range(3)), options)


def target(change=lambda output: output, **replaced):
    def call(asked):
        return change(plain_attention(asked.query, asked.key, asked.value, **{**asked.options, **replaced}))

    def call_with_lse(asked):
        return plain_attention(asked.query, asked.key, asked.value, return_lse=True, **asked.options)

    return Target("planted", frozenset(), call, call_with_lse)


def failed(findings):
    return {finding.what: finding.kind for finding in findings if finding.failed}


def test_plain_torch_is_right_by_its_own_measure():
    found = right(target(), question(mask=Causal()), lse=True)
    assert failed(found) == {}
    assert [finding.what for finding in found] == [
        "output", "lse", "gradient of query", "gradient of key", "gradient of value",
    ]  # fmt: skip
    assert all(finding.ratio <= 1.0 for finding in found)


def put_nan(output):
    return torch.where(torch.arange(output.shape[-1]) == 0, NAN, output)


WRONG = {
    "error": (lambda output: output * 1.001, {"output": "error"}),
    "nan": (put_nan, {"output": "nan"}),
    "infinity": (lambda output: torch.where(output > 0.5, math.inf, output), {"output": "infinity"}),
    "shape": (lambda output: output[:, :, :-1], {"output": "shape"}),
    "dtype": (lambda output: output.double(), {"output": "dtype"}),
}


@pytest.mark.parametrize(("change", "expected"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_an_output(change, expected):
    assert failed(right(target(change), question(), gradient=None)) == expected


def test_nan_that_should_be_there():
    asked = question()
    asked.query[0, 0, 0] = NAN
    assert failed(right(target(), asked, gradient=None)) == {}
    assert failed(right(target(lambda output: output.nan_to_num()), asked, gradient=None)) == {"output": "nan"}
    moved = target(lambda output: output.roll(1, 2))
    (finding,) = right(moved, asked, gradient=None)
    assert str(finding) == "output: NaN in 4 of 144 places, expected in 4, and elsewhere"


def test_a_gradient_that_does_not_flow():
    asked = question(bias=torch.randn(1, 3, 6, 6))

    def call(given):
        return plain_attention(given.query, given.key, given.value, bias=given.options["bias"].detach())

    found = right(Target("planted", frozenset(), call), asked)
    assert failed(found) == {"gradient of bias": "no gradient"}
    assert str(found[-1]) == "gradient of bias: none flows to it"


def test_an_output_that_is_detached():
    with pytest.raises(DetachedError, match="its output is detached from what goes in"):
        right(target(torch.Tensor.detach), question())


@pytest.mark.parametrize("incoming", ["random", "ones", "heads last"])
def test_every_kind_of_incoming_gradient_sees_a_wrong_one(incoming):
    assert failed(right(target(), question(), gradient=incoming)) == {}
    wrong = target(lambda output: output.detach() + 0.9 * (output - output.detach()))
    assert "gradient of value" in failed(right(wrong, question(), gradient=incoming))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_right_and_can_be_wrong(dtype):
    assert failed(right(target(), question(dtype))) == {}
    assert "output" in failed(right(target(scale=0.6), question(dtype)))


def test_ratios_are_the_budgets():
    asked = question()
    (finding,) = right(target(lambda output: output + 1e-4), asked, gradient=None)
    known = checks.expected(asked, gradient=None)
    limit = budget.forward(known.plain.output, known.truth.output)
    assert finding.limit == limit
    assert finding.ratio == pytest.approx(2 * 1e-4 / limit, rel=0.05)
    assert str(finding) == f"output: error {finding.error:.3g}, {finding.ratio:.3g} x plain torch's, 2 x allowed"


# --------------------------------------------------------------------------------------------------- pooled


def measured(error, limit):
    return checks._sized(Finding("output", "within", ""), error, limit)


def test_pooling_forgives_luck_and_nothing_else():
    lucky = [[measured(2.2, 2.0)], *([measured(1.5, 2.4)] for _ in range(7))]
    assert not pooled(lucky)[0].failed
    wrong = [[measured(2.2, 2.0)], *([measured(2.6, 2.2)] for _ in range(7))]
    assert pooled(wrong)[0].ratio == pytest.approx(2 * 2.6 / 2.2)
    assert pooled(wrong)[0].failed


def test_pooling_keeps_a_failure_of_another_kind():
    draws = [[measured(2.2, 2.0)], [Finding("output", "nan", "NaN")]]
    assert pooled(draws)[0].kind == "nan"


# ------------------------------------------------------------------------------------------- the other checks


def test_the_same_bits():
    assert failed(same_bits(target(), question())) == {}
    noisy = target(lambda output: output * (1 + 1e-6 * torch.rand(())))
    found = same_bits(noisy, question())
    assert failed(found)["output"] == "bits"
    assert "other bits in a second run" in str(found[0])


def test_bits_that_differ_in_a_gradient_alone():
    noisy = target(lambda output: output + (output - output.detach()) * 1e-6 * torch.rand(()))
    assert "output" not in failed(same_bits(noisy, question()))
    assert failed(same_bits(noisy, question()))


def test_nan_is_the_same_as_nan():
    asked = question()
    asked.query[0, 0, 0] = NAN
    assert failed(same_bits(target(), asked, gradient=None)) == {}


def dropping(probability, scaled=True, fixed=False):
    def call(asked):
        weights = (asked.query @ asked.key.mT / 2).softmax(-1)
        generator = torch.Generator().manual_seed(1) if fixed else None
        kept = torch.rand(weights.shape, generator=generator) >= probability
        return weights * kept / ((1 - 0.3) if scaled else 1.0) @ asked.value

    return Target("planted", frozenset(), call)


def test_dropout_without_a_seed():
    asked = question(length=32, dropout_p=0.3)
    assert failed(drops(dropping(0.3), asked)) == {}
    for wrong, told in (
        (dropping(0.3, scaled=False), "neither dropped nor scaled"),
        (dropping(0.2), "of the weights are dropped, expected 30%"),
        (dropping(0.0), "0.0% of the weights are dropped"),
        (dropping(0.3, fixed=True), "two calls drop the same weights"),
    ):
        (finding,) = drops(wrong, asked)
        assert finding.failed
        assert told in str(finding)


def test_dropout_leaves_torchs_generator_where_it_was():
    asked, before = question(length=32, dropout_p=0.3), torch.get_rng_state()
    drops(dropping(0.3), asked)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_question_that_means_nothing():
    asked = Question(torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 2, 4))
    assert failed(refuses(target(), asked)) == {}
    lenient = Target("lenient", frozenset(), lambda given: given.query)
    (finding,) = refuses(lenient, asked)
    assert str(finding) == "refusal: numbers of shape (1, 1, 2, 4), expected an error"
    assert failed(refuses(Target("nan", frozenset(), lambda given: given.query * NAN), asked)) == {}
