"""`regard.audit` as people call it: what is recovered, what is reported, what is refused."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard import masks, positions
from regard.masks import Causal, Padding, SlidingWindow
from regard.trust import Target
from regard.trust.audit import CODES, Finding

QUICK = {"lengths": [(12, 12)], "dtypes": [torch.float32]}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | Tensor = 0.25,
    softcap: float | None = None,
    sink: Tensor | None = None,
    bias: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """The definition, with numbers of its own."""
    scores = query @ key.mT * scale
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    scores = scores if bias is None else scores + bias.to(scores)
    scores = scores if allowed is None else scores.masked_fill(~allowed, -math.inf)
    if sink is not None:
        column = sink.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value
    return scores.softmax(-1) @ value


def audited(target=attention, *, declared=None, **own):
    return regard.audit(functools.partial(target, **own), asked=(), **QUICK, **(declared or {}))


# ------------------------------------------------------------------------------------------ what is recovered


@pytest.mark.parametrize("scale", [1.0, 0.125, 3.0, -0.5, 1e-3])
def test_the_scale_is_recovered(scale):
    found = audited(scale=scale, declared={"scale": scale})
    assert found.passed, found
    assert found.scale == pytest.approx(scale, rel=1e-4)
    code = "scale_missing" if scale == 1.0 else "scale_differs"
    assert audited(scale=scale, declared={"scale": 1.02 * scale}).codes == (code,)


def test_a_scale_of_each_head_is_recovered():
    scales = torch.tensor([0.25, 0.5, 0.25, 2.0])
    found = audited(scale=scales.view(1, 4, 1, 1))
    assert found.scale == pytest.approx(tuple(scales.tolist()), rel=1e-4)
    (finding,) = found.findings
    assert finding.code == "scale_differs"
    assert finding.sentence == "scale 0.5 to 2 in 2 of 4 heads, declared 0.25"


@pytest.mark.parametrize("softcap", [0.5, 2.0, 30.0, 50.0, 500.0])
def test_the_softcap_is_recovered(softcap):
    found = audited(softcap=softcap, declared={"softcap": softcap})
    assert found.passed, found
    assert found.softcap == pytest.approx(softcap, rel=5e-3)
    assert audited(softcap=softcap).codes == ("softcap_imposed",)
    assert audited(softcap=1.1 * softcap, declared={"softcap": softcap}).codes == ("softcap_differs",)


def test_a_softcap_that_is_missing_is_named_where_it_would_show():
    assert audited(declared={"softcap": 50.0}).codes == ("softcap_missing",)
    assert audited(declared={"softcap": 1e5}).passed  # scores of 30 are bent by 1e-6 of themselves


def test_scores_that_are_cut_off_are_not_taken_for_a_softcap():
    def clamped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT * 0.25).clamp(-5.0, 5.0).softmax(-1) @ value

    assert regard.audit(clamped, **QUICK).codes == ("scores_bent",)


@pytest.mark.parametrize("mask", [None, Causal()])
def test_sinks_are_recovered(mask):
    sink = torch.tensor([-3.0, 0.0, 1.0, 4.0])
    allowed = None if mask is None else mask.dense(12, 12)
    found = audited(sink=sink, allowed=allowed, declared={"mask": mask, "sink": sink})
    assert found.passed, found
    torch.testing.assert_close(found.sinks.float(), sink, atol=1e-3, rtol=0.0)
    assert audited(sink=sink, allowed=allowed, declared={"mask": mask}).codes == ("sink_imposed",)
    assert audited(sink=sink + 0.2, allowed=allowed, declared={"mask": mask, "sink": sink}).codes == ("sink_differs",)


def test_what_is_added_is_recovered():
    bias = torch.arange(4.0 * 144).cos().view(1, 4, 12, 12)
    found = audited(bias=bias, declared={"bias": bias})
    assert found.passed, found
    expected = (bias - bias.mean(-1, keepdim=True)).double().expand(2, 4, 12, 12)
    torch.testing.assert_close(found.bias, expected, atol=1e-5, rtol=0.0)
    assert audited(bias=bias).codes == ("bias_imposed",)
    assert audited(declared={"bias": bias}).codes == ("bias_missing",)
    assert audited(bias=1.1 * bias, declared={"bias": bias}).codes == ("bias_differs",)


def test_slopes_by_distance_are_named():
    place = torch.arange(12)
    bias = torch.tensor([0.5, 0.25, 0.1, 0.01]).view(4, 1, 1) * (place[None] - place[:, None])
    (finding,) = audited(bias=bias).findings
    assert finding.sentence.startswith("a slope of 0.5, 0.25, 0.1, 0.01 per token of distance (as ALiBi)")


def test_a_rotation_that_differs_is_not_taken_for_the_declared_one():
    def turned(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rope = positions.RoPE(16, style="interleaved")
        query, key = (rope.rotate(tensor, torch.arange(12)) for tensor in (query, key))
        return attention(query, key, value)

    assert regard.audit(turned, position=positions.RoPE(16, style="interleaved"), **QUICK).passed
    assert regard.audit(turned, position=positions.RoPE(16), **QUICK).codes == ("weights_differ",)


def test_the_mask_comes_as_a_tensor_and_as_a_value():
    mask = Causal() & SlidingWindow(4, 0)
    found = regard.audit("eager", mask=mask, **QUICK)
    assert found.mask.shape == (2, 4, 12, 12)
    assert torch.equal(found.mask[1, 2], mask.dense(12, 12))
    assert found.named_mask == SlidingWindow(4, 0)
    assert found.description.words == "causal, window 4 before"
    assert found.groups == (0, 1, 2, 3)
    assert found.sinks is None
    assert found.softcap is None


def test_a_window_longer_than_most_texts_is_seen():
    found = regard.audit("torch", mask=Causal(), asked=["mask"], dtypes=[torch.float32])
    assert found.passed
    found = regard.audit(
        functools.partial(scaled_dot_product_attention, is_causal=True),
        mask=Causal() & SlidingWindow(100, 0),
        asked=(),
        dtypes=[torch.float32],
        heads=1,
        batch=1,
    )
    assert found.codes == ("window_left_ignored",)
    assert found.views[0].setting.q_len == 192


def test_the_corner_of_what_is_baked_in_is_told_though_nobody_asked():
    found = regard.audit(functools.partial(scaled_dot_product_attention, is_causal=True), mask=Causal(), asked=())
    assert found.passed
    assert found.corner == "top-left"


# --------------------------------------------------------------------------------------------- how it is called


def test_other_layouts_and_names_of_arguments():
    def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    assert regard.audit(flash, mask=Causal(), layout="bnhd", **QUICK).passed
    assert regard.audit(flash, mask=Causal(), layout="bnhd", asked=(), **QUICK).codes == ("causal_missing",)
    adapter = {"mask": "which"}

    def other(q: Tensor, k: Tensor, v: Tensor, which: Tensor | None = None) -> Tensor:
        return attention(q, k, v, allowed=which)

    assert regard.audit(other, mask=Causal(), adapter=adapter, **QUICK).passed


def test_a_target_of_ones_own():
    target = Target(
        "mine", frozenset({"scale"}), lambda question: attention(question.query, question.key, question.value)
    )
    assert regard.audit(target, **QUICK).name == "mine"
    assert regard.audit(target, scale=0.5, **QUICK).codes == ("scale_differs",)


def test_the_callers_random_numbers_go_on():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    regard.audit(lambda q, k, v: torch.nn.functional.dropout(attention(q, k, v), 0.5), lengths=[(4, 4)])
    assert torch.equal(torch.rand(4), expected)


def test_a_module_is_left_in_its_mode():
    class Layer(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention(query, key, value)

    layer = Layer().eval()
    found = regard.audit(layer, **QUICK)
    assert not layer.training
    assert {view.setting.training for view in found.views} == {None, True}


def test_dropout_in_training_is_no_finding_and_without_it_is():
    class Layer(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            weights = (query @ key.mT * 0.25).softmax(-1)
            return torch.nn.functional.dropout(weights, 0.3, self.training) @ value

    assert regard.audit(Layer().eval(), **QUICK).passed
    found = regard.audit(Layer().train(), **QUICK)
    assert found.codes == ("dropout_active",)
    assert found.dropped == pytest.approx(0.3, abs=0.05)
    assert found.scale is None


def test_what_a_setting_refuses_is_a_limit_and_no_finding():
    def only_square_floats(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.dtype != torch.float32:
            raise NotImplementedError("float32 only")
        if query.shape[2] != key.shape[2]:
            raise ValueError("as many queries as keys")
        return attention(query, key, value)

    found = regard.audit(only_square_floats)
    assert found.passed
    assert "not examined at 12 x 12, bfloat16: float32 only" in found.limits
    assert "not examined at 5 x 12, float32: as many queries as keys" in found.limits


def test_an_answer_that_changes_after_other_calls():
    class Forgetful:
        longest = 0

        def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.longest = max(self.longest, key.shape[2])
            return attention(query, key, value, scale=0.25 if self.longest <= 12 else 0.2)

    assert "answer_changes" in regard.audit(Forgetful()).codes


# ------------------------------------------------------------------------------------------ several ways


def test_ways_that_agree_and_ways_that_do_not():
    same = regard.audit({"one": attention, "other": functools.partial(attention, scale=0.25)}, **QUICK)
    assert same.passed
    found = regard.audit({"one": attention, "other": lambda q, k, v: attention(q, k, v, scale=0.5)}, **QUICK)
    assert found.codes == ("scale_differs",)
    assert found.findings[0].sentence.endswith("(way: other)")
    blind = functools.partial(attention, allowed=Causal().dense(12, 12))
    found = regard.audit({"open": attention, "causal": blind}, mask=Causal(), asked=(), **QUICK)
    assert found.codes == ("ways_differ", "causal_missing")
    assert found.findings[0].sentence == "open: every pair; causal: causal"
    assert set(found.ways) == {"open", "causal"}


# ------------------------------------------------------------------------------------------------- reports


@pytest.fixture(scope="module")
def wrong():
    return regard.audit(
        functools.partial(attention, scale=1.0), mask=Causal() & SlidingWindow(2, 0), asked=(), lengths=[(6, 6)]
    )


def test_the_text_shows_both_masks(wrong):
    told = str(wrong)
    assert told.startswith("attention: 3 findings\n") or "3 findings" in told.splitlines()[0]
    assert "window_left_ignored: window_left ignored, declared 2" in told
    assert "scale_missing: scale missing: 1, declared 0.25" in told
    assert "■ · · · · ·   ■ + + + + +" in told
    assert "· ■ ■ ■ · ·   + ■ ■ ■ + +" in told
    assert "■ attends, · does not, + attends, declared not to" in told


def test_a_long_mask_is_shown_where_it_differs():
    target = functools.partial(scaled_dot_product_attention, is_causal=True)
    found = regard.audit(target, mask=Causal() & SlidingWindow(50, 0), asked=(), lengths=[(96, 96)], heads=1, batch=1)
    told = str(found).splitlines()
    assert any("from 43 and 0 on" in line for line in told)
    assert sum("+" in line for line in told) == 96 - 51 - 20  # the first query that sees too much is the 51st
    assert len([line for line in told if "■" in line]) == 33  # and the legend


def test_of_samples_that_differ_the_one_with_padding_is_shown():
    found = regard.audit("eager", mask=Padding([6, 4, 0]), lengths=[(6, 6)], dtypes=[torch.float32])
    assert "sample 1, head 0" in str(found)
    assert "■ ■ ■ ■ · ·   ■ ■ ■ ■ · ·" in str(found)


def test_the_json_is_strict_and_whole(wrong):
    facts = json.loads(wrong.json(), parse_constant=pytest.fail)
    assert facts["passed"] is False
    assert [finding["code"] for finding in facts["findings"]] == list(wrong.codes)
    assert facts["found"]["mask"] == {"words": "every pair", "named": None, "rows": ["111111"] * 6}
    assert facts["found"]["scale"] == pytest.approx(1.0, rel=1e-4)
    assert facts["declared"] == {"mask": "(Causal() & SlidingWindow(before=2, after=0))"}
    assert facts["views"][0]["setting"] == "6 x 6, float32"
    assert set(facts) == {
        "target", "passed", "strict", "declared", "findings", "warnings", "limits", "found", "views", "ways",
    }  # fmt: skip


def test_the_markdown_has_a_row_for_each_finding(wrong):
    told = wrong.markdown()
    for code in wrong.codes:
        assert told.count(f"| `{code}` |") == 1
    assert "| scale | 1 |" in told
    assert told.count("```") == 2


def test_the_picture_is_drawn(wrong, tmp_path):
    pytest.importorskip("matplotlib")
    figure = wrong.draw(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in figure.axes] == ["declared", "found"]
    drawn = figure.axes[1].images[0].get_array()
    assert drawn[0].tolist() == [1, 2, 2, 2, 2, 2]
    assert drawn[3].tolist() == [2, 1, 1, 1, 2, 2]


def test_a_picture_goes_nowhere_unknown(wrong, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(regard.DataError, match="expected a name ending in one of"):
        wrong.draw(tmp_path / "audit.txt")


def test_warnings_fail_when_strict_is_asked_for():
    found, strict = (regard.audit("torch", mask=Causal(), strict=strict, **QUICK) for strict in (False, True))
    assert [warning.code for warning in found.warnings] == ["nan_leaks"]
    assert found.passed
    assert not strict.passed
    assert str(strict).startswith("torch: 1 warning")


def test_every_code_says_what_it_means():
    assert all(meaning and not meaning.endswith(".") for meaning in CODES.values())
    with pytest.raises(KeyError):
        Finding("no_such_code", "")


# ------------------------------------------------------------------------------------------------ refusals


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(
        regard.ArgumentError, match=r"what <lambda> returns: expected \(batch, heads, q_len, value_dim\)"
    ):
        regard.audit(lambda q, k, v: attention(q, k, v).transpose(1, 2))


def test_a_target_that_fails_at_once_is_refused_with_its_own_words():
    def broken(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        raise RuntimeError("the kernel wants heads of 64")

    with pytest.raises(regard.UnsupportedError, match="RuntimeError: the kernel wants heads of 64"):
        regard.audit(broken)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lengths": [(5, 12)], "mask": Causal()}, "lengths: expected a first pair at which"),
        ({"lengths": []}, "lengths and dtypes: expected at least one of each"),
        ({"dtypes": []}, "lengths and dtypes: expected at least one of each"),
        ({"asked": ["masks"]}, "asked: expected options out of mask, position"),
        ({"mask": masks.Documents([400, 500])}, "lengths: expected lengths at which"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(regard.ArgumentError, match=words):
        regard.audit(attention, **options)


def test_nothing_that_can_be_called():
    with pytest.raises(regard.ArgumentError, match="target: expected"):
        regard.audit(3)


def test_a_mask_that_the_target_cannot_be_asked_for_is_refused():
    def only_causal(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=causal)

    with pytest.raises(regard.UnsupportedError, match="it has no parameter that can say Padding"):
        regard.audit(only_causal, mask=Padding([12, 7]))
