"""Whatever computes attention, called in one way: each option by the parameter that serves it, or refused."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field

import regard
from regard import ArgumentError, UnsupportedError
from regard.backends import Eager
from regard.masks import Causal, Dense, Documents, Padding, SlidingWindow
from regard.positions import ALiBi
from regard.trust import Question, Target, as_target
from regard.trust.target import why_refused

SQUARE, FEWER = (6, 6), (4, 6)


def question(lengths=SQUARE, **options):
    q_len, kv_len = lengths
    return Question(*(torch.randn(2, 4, length, 8) for length in (q_len, kv_len, kv_len)), options)


class Recorder:
    """A callable that keeps what it was given."""

    def __init__(self, signature):
        scope = {"self": self}
        exec(f"def call(query, key, value, {signature}):\n    return self.take(query, dict(locals()))", scope)  # noqa: S102
        self.function = scope["call"]

    def take(self, query, given):
        self.given = {name: value for name, value in given.items() if name not in {"query", "key", "value", "self"}}
        return query


def given(signature, asked, adapter=None, **how):
    recorder = Recorder(signature)
    as_target(recorder.function, adapter, **how).call(asked)
    return recorder.given


# ------------------------------------------------------------------------------------------ what it accepts


@pytest.mark.parametrize("name", ["native", "sdpa", "flex", "eager", "auto"])
def test_backends_by_name(name):
    target = as_target(name)
    asked = question(mask=Causal())
    assert target.name == name
    assert target.offers >= {"mask", "softcap", "sink", "seed"}
    torch.testing.assert_close(target.call(asked).double(), asked.truth().output, atol=1e-5, rtol=0)


def test_a_backend_refuses_by_its_own_reason():
    with pytest.raises(UnsupportedError, match="it has no softcap"):
        as_target("sdpa").call(question(softcap=2.0))


def test_a_backend_that_is_being_written():
    class Mine(Eager):
        def run(self, problem):
            output, lse = super().run(problem)
            return output * 2, lse

    asked = question(mask=Causal("bottom_right"))
    target = as_target(Mine())
    torch.testing.assert_close(target.call(asked).double(), 2 * asked.truth().output, atol=1e-5, rtol=0)
    output, lse = target.call_with_lse(asked)
    torch.testing.assert_close(lse.double(), asked.truth().lse, atol=1e-5, rtol=0)
    assert output.shape == asked.query.shape


@pytest.mark.parametrize("target", ["torch", F.scaled_dot_product_attention])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": Causal()},
        {"mask": Padding([2, 6])},
        {"mask": Documents([2, 4])},
        {"bias": torch.randn(1, 4, 6, 6)},
        {"mask": Causal(), "bias": torch.randn(1, 4, 6, 6)},
        {"mask": torch.ones(6, 6, dtype=torch.bool).triu(), "scale": 0.2},
    ],
)
def test_torch(target, options):
    asked = question(**options)
    found = as_target(target)
    assert found.offers == {"mask", "bias", "scale", "dropout_p", "enable_gqa"}
    torch.testing.assert_close(found.call(asked).double(), asked.truth().output, atol=1e-5, rtol=0)


def test_a_target_stays_what_it_is():
    target = Target("mine", frozenset(), lambda asked: asked.query)
    assert as_target(target) is target


def test_by_the_name_of_its_module():
    target = as_target("torch.nn.functional:scaled_dot_product_attention")
    assert "scale" in target.offers
    assert as_target("regard.backends.eager:Eager").name == "eager"


def test_options_without_a_name_are_ours():
    def function(query, key, value, **options):
        return regard.attention(query, key, value, backend="eager", **options)

    asked = question(FEWER, mask=Causal("bottom_right"), position=ALiBi(4, align="bottom_right"), softcap=2.0)
    torch.testing.assert_close(as_target(function).call(asked).double(), asked.truth().output, atol=1e-5, rtol=0)
    partial = functools.partial(regard.attention, backend="eager")
    torch.testing.assert_close(as_target(partial).call(asked).double(), asked.truth().output, atol=1e-5, rtol=0)


def test_modules_are_read_by_their_forward():
    class Layer(torch.nn.Module):
        def forward(self, query, key, value, softmax_scale=None):
            return F.scaled_dot_product_attention(query, key, value, scale=softmax_scale)

    assert as_target(Layer()).offers == {"scale"}


WRONG = {
    "nonsense": r"target: expected one of native, .*torch, or module:function, got 'nonsense'\. It cannot be .+",
    "torch:nothing": r".*got 'torch:nothing'\. It cannot be imported: module 'torch' has no attribute 'nothing'\.",
    3: r"target: expected a backend's name, .* got 3\. Pass the function itself, or adapter= .*\.",
}


def test_a_module_that_breaks_is_told_as_that(tmp_path, monkeypatch):
    (tmp_path / "breaks_in_reading.py").write_text("def (:\n")
    (tmp_path / "breaks_in_running.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=r"It cannot be imported: SyntaxError: invalid syntax \(.*line 1\)\."):
        as_target("breaks_in_reading:f")
    with pytest.raises(ArgumentError, match=r"It cannot be imported: ZeroDivisionError: division by zero\."):
        as_target("breaks_in_running:f")


@pytest.mark.parametrize("target", WRONG)
def test_what_is_no_target(target):
    with pytest.raises(ArgumentError) as caught:
        as_target(target)
    assert re.fullmatch(WRONG[target], str(caught.value))


# --------------------------------------------------------------------------------------- masks by parameters

FLASH = "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0"
ABSENT = object()
FLAGS = [
    ("attn_mask=None, is_causal=False", Causal(), SQUARE, {}, {"is_causal": True}),
    ("attn_mask=None, is_causal=False", Causal("top_left"), FEWER, {}, {"is_causal": True}),
    (FLASH, Causal(), SQUARE, {}, {"causal": True}),
    (FLASH, Causal("bottom_right"), FEWER, {"corner": "bottom_right"}, {"causal": True}),
    (FLASH, Causal("top_left"), FEWER, {"corner": "top_left"}, {"causal": True}),
    (FLASH, SlidingWindow(3, 1), SQUARE, {}, {"window_size": (3, 1), "causal": False}),
    (FLASH, SlidingWindow(3, 1, align="bottom_right"), FEWER, {"corner": "bottom_right"}, {"window_size": (3, 1)}),
    ("sliding_window=None, is_causal=False", SlidingWindow(3, 0), SQUARE, {}, {"sliding_window": 4, "is_causal": True}),
    ("window=None", SlidingWindow(2, 0) & Causal(), SQUARE, {}, {"window": (2, 0)}),
]


@pytest.mark.parametrize(("signature", "mask", "lengths", "how", "expected"), FLAGS)
def test_bands_are_said_by_flags(signature, mask, lengths, how, expected):
    found = given(signature, question(lengths, mask=mask), **how)
    assert {name: found[name] for name in expected} == expected
    assert found.get("attn_mask") is None


DENSE = [
    ("attn_mask=None, is_causal=False", Causal("bottom_right"), FEWER),
    ("mask=None", Causal(), SQUARE),
    ("attention_mask=None", Padding([2, 6]), SQUARE),
    ("attn_mask=None, is_causal=False", Dense(torch.ones(6, 6, dtype=torch.bool).tril()), SQUARE),
    ("mask=None", torch.rand(2, 1, 1, 6) < 0.5, FEWER),
]


@pytest.mark.parametrize(("signature", "mask", "lengths"), DENSE)
def test_other_masks_are_bool_tensors(signature, mask, lengths):
    found = given(signature, question(lengths, mask=mask))
    (tensor,) = (value for value in found.values() if isinstance(value, torch.Tensor))
    expected = mask if isinstance(mask, torch.Tensor) else mask.dense(*lengths)
    assert tensor.dtype == torch.bool
    assert tensor.dim() == 4
    assert torch.equal(tensor.expand(2, 4, *lengths), expected.expand(2, 4, *lengths))
    assert not found.get("is_causal")


def test_a_bias_that_shares_the_parameter_of_the_mask_is_joined_with_it():
    bias = torch.randn(1, 4, 6, 6, requires_grad=True)
    joined = given("attn_mask=None, is_causal=False", question(mask=Causal(), bias=bias))["attn_mask"]
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert torch.equal(joined, bias.masked_fill(later, -math.inf))
    assert joined.requires_grad


REFUSED = [
    ("attn_mask=None", {"softcap": 2.0}, "it has no parameter for softcap"),
    ("scale=None", {"mask": Causal()}, r"it has no parameter that can say Causal\(\)"),
    ("mask=None", {"bias": torch.randn(6, 6)}, "it has no parameter for bias"),
    (FLASH, {"mask": Padding([2, 6])}, r"can say Padding"),
    ("sliding_window=None", {"mask": SlidingWindow(3, 1)}, "can say SlidingWindow"),
    ("dropout_p=0.0", {"dropout_p": 0.1, "seed": 1}, "it has no parameter for seed"),
    ("scale=None", {"enable_gqa": True}, "it has no parameter for enable_gqa"),
]


@pytest.mark.parametrize(("signature", "options", "reason"), REFUSED)
def test_what_no_parameter_says_is_refused(signature, options, reason):
    with pytest.raises(UnsupportedError, match=reason):
        given(signature, question(**options))


@pytest.mark.parametrize("mask", [Causal("bottom_right"), Causal("top_left"), SlidingWindow(2, 1)])
def test_a_corner_that_is_not_known_is_not_asked(mask):
    with pytest.raises(UnsupportedError, match="no parameter that can say"):
        given(FLASH, question(FEWER, mask=mask))


# ------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_names_parameters():
    found = given("allowed=None, factor=1", question(mask=Causal(), scale=0.3), {"mask": "allowed", "scale": "factor"})
    assert found["allowed"].dtype == torch.bool
    assert found["factor"] == 0.3


def test_an_adapter_says_that_no_parameter_is_needed():
    asked = Question(torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), {"enable_gqa": True})
    given("scale=None", asked, {"enable_gqa": None})


def test_an_adapter_answers_by_itself():
    target = as_target(lambda *_: None, lambda asked: asked.query * 2)
    asked = question()
    assert torch.equal(target.call(asked), asked.query * 2)
    assert "softcap" in target.offers


def test_an_adapter_with_an_unknown_key():
    with pytest.raises(ArgumentError, match=r"adapter: expected keys out of mask, .*, got colour\. For anything else"):
        as_target(lambda query, *_: query, {"colour": "x"})


def test_layout():
    seen = []

    def function(query, key, value):
        seen.append(query.shape)
        return query

    asked = question(FEWER)
    assert torch.equal(as_target(function, layout="bnhd").call(asked), asked.query)
    assert seen == [(2, 4, 4, 8)]
    assert as_target(function, layout="bnhd").call(question((3, 6))).shape == (2, 4, 3, 8)
    assert seen[-1] == (2, 3, 4, 8)


def test_a_tuple_that_begins_with_the_output():
    asked = question()
    assert torch.equal(as_target(lambda query, *_: (query, None)).call(asked), asked.query)
    with pytest.raises(ArgumentError, match="expected a tensor, or a tuple that begins with one, got NoneType"):
        as_target(lambda *_: None).call(asked)


# ------------------------------------------------------------------------------------- how it is written again


def softmax_of(query, key, value, by=1.0):
    return (query @ key.mT * by).softmax(-1) @ value


@pytest.mark.parametrize(
    ("target", "how", "code"),
    [
        ("sdpa", {}, 'as_target("sdpa")'),
        ("torch", {}, 'as_target("torch")'),
        (F.scaled_dot_product_attention, {}, 'as_target("torch")'),
        (Eager(), {}, 'as_target("regard.backends.eager:Eager")'),
        (regard.attention, {}, 'as_target("regard._attention:attention")'),
        (regard.attention, {"layout": "bnhd"}, "as_target(\"regard._attention:attention\", layout='bnhd')"),
        (
            regard.attention,
            {"adapter": {"mask": "mask"}},
            "as_target(\"regard._attention:attention\", {'mask': 'mask'})",
        ),
        (lambda query, *_: query, {}, ""),
    ],
)
def test_code_makes_the_target_again(target, how, code):
    found = as_target(target, **how)
    assert found.code == code
    if code:
        asked = question()
        again = eval(code, {"as_target": as_target})  # noqa: S307 - our own text
        torch.testing.assert_close(again.call(asked), found.call(asked))


# ------------------------------------------------------------------------------------------------- refusals

ERRORS = [
    (UnsupportedError({"x": "it has no mask"}), {"mask": Causal()}, "it has no mask"),
    (NotImplementedError("later"), {}, "NotImplementedError: later"),
    (TypeError("unexpected keyword argument 'softcap'"), {"softcap": 1.0}, "softcap"),
    (ValueError("window_size is not supported"), {"mask": Causal()}, "window_size"),
    (AssertionError("no dropout"), {"dropout_p": 0.1, "seed": 1}, "no dropout"),
    (RuntimeError('"softmax" not implemented for Half'), {}, None),
    (RuntimeError("expected scalar type Float but found BFloat16: dtype"), {}, "dtype"),
    (TypeError("unexpected keyword argument 'softcap'"), {}, None),
    (RuntimeError("The size of tensor a must match: attn_mask"), {"mask": Causal()}, None),
    (IndexError("mask"), {"mask": Causal()}, None),
    (ValueError("value is as wide as the key"), {}, None),
]


@pytest.mark.parametrize(("error", "options", "reason"), ERRORS, ids=repr)
def test_which_errors_refuse(error, options, reason):
    found = why_refused(error, question(**options))
    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_words_that_a_case_adds():
    assert why_refused(ValueError("value is as wide as the key"), question(), also=("wide",))
