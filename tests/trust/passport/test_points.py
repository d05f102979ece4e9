"""Where a model is looked at, and how it is computed by definition."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import regard
from regard.masks import Causal
from regard.trust.passport.definition import ByDefinition, by_definition, copied, sdpa_by_definition
from regard.trust.passport.runs import Inputs, run, signs
from regard.trust.passport.units import gap, size_of
from regard.trust.passport.visits import Comparing, Keeping
from regard.trust.points import first_tensor, meeting, passing
from tests.trust.passport.small import decoder, ids, states


class Pair(NamedTuple):
    count: int
    tensor: Tensor


@dataclass
class Answer:
    which: Tensor
    tensor: Tensor


WHOLE, PART = torch.tensor([1, 2]), torch.tensor([1.0, 2.0])
OUTPUTS: list[Any] = [PART, (WHOLE, PART, 3), [PART], Pair(3, PART), {"a": WHOLE, "b": PART}, OrderedDict(x=PART),
                      Answer(WHOLE, PART)]  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_first_float_tensor_of_an_output_and_another_in_its_place(output: Any) -> None:
    found = first_tensor(output if isinstance(output, Tensor) else copy.copy(output))
    assert found is not None
    assert found.tensor is PART
    other = torch.zeros(2)
    put = found.put(other)
    assert type(put) is type(output)
    again = first_tensor(put)
    assert again is not None
    assert again.tensor is other


@pytest.mark.parametrize("output", [None, WHOLE, (WHOLE, "x"), {}, 3, "text", [[PART]]])
def test_outputs_without_a_float_tensor(output: Any) -> None:
    assert first_tensor(output) is None


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.drop, self.same = nn.Linear(3, 3), nn.Dropout(0.5), nn.Identity()

    def forward(self, given: Tensor) -> Tensor:
        return self.same(self.drop(self.line(self.line(given))))


def test_points_are_met_in_order_and_what_hands_on_is_none() -> None:
    met: list[str] = []

    def meet(name: str, tensor: Tensor) -> Tensor:
        met.append(name)
        return tensor * 0 if name == "line" else tensor

    model = Chain().eval()
    with meeting(model, meet):
        output = model(torch.ones(1, 3))
    assert met == ["line", "line (call 2)"]
    torch.testing.assert_close(output, model.line.bias[None])  # the second was fed zeros
    with pytest.raises(ZeroDivisionError), meeting(model, meet):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gradient_goes_through_who_listens() -> None:
    given = torch.ones(3, requires_grad=True)
    seen: list[Tensor] = []

    def listen(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return gradient * 10

    passed = passing(given * 2, torch.tensor([5.0, 6.0, 7.0]), listen)
    assert passed.tolist() == [5.0, 6.0, 7.0]
    passed += 1  # in place, as a model may
    (passed * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert [entry.tolist() for entry in seen] == [[1.0, 2.0, 3.0]]
    assert given.grad is not None
    assert given.grad.tolist() == [20.0, 40.0, 60.0]
    plain = torch.ones(3)
    assert passing(plain, None, listen) is not plain


def test_errors_do_not_pass_from_one_layer_to_the_next() -> None:
    model, inputs = decoder(), Inputs((ids(),))
    exact = Keeping({name for name, _ in model.named_modules()})
    run(copy.deepcopy(model).double(), inputs, exact.meet, seed=0, gradients=True)
    model.blocks[0].wide.bias.data[0] += 1.0
    visit = Comparing(exact.values, exact.gradients)
    run(model, inputs, visit.meet, seed=0, gradients=True)
    far = {name for name, error in visit.errors["forward"].items() if error > 1e-4}
    assert far == {"blocks.0.wide"}
    assert all(error < 1e-6 for error in visit.errors["gradient"].values())


SDPA: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal, more keys": {"is_causal": True, "lengths": (3, 6)},
    "bool": {"attn_mask": states(2, 1, 5, 5) > 0},
    "float": {"attn_mask": states(5, 5)},
    "rows of nothing": {"attn_mask": torch.arange(5)[:, None] > torch.arange(5)[None] + 1},
    "rows of -inf": {"attn_mask": torch.where(torch.arange(5)[:, None] > 2, 0.0, -math.inf).expand(5, 5)},
    "scale": {"scale": 0.7},
    "grouped": {"enable_gqa": True, "kv_heads": 2},
    "three dimensions": {"three": True},
}


@pytest.mark.parametrize("name", SDPA)
def test_the_definition_is_torchs(name: str) -> None:
    given = dict(SDPA[name])
    lengths, kv_heads, three = given.pop("lengths", (5, 5)), given.pop("kv_heads", 4), given.pop("three", False)
    query = states(2, 4, lengths[0], 8, dtype=torch.float64)
    key, value = (states(2, kv_heads, lengths[1], 8, seed=n, dtype=torch.float64) for n in (1, 2))
    if three:
        query, key, value = (tensor[:, 0] for tensor in (query, key, value))
    mask = given.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        given["attn_mask"] = mask.double()
    expected = F.scaled_dot_product_attention(query, key, value, **given)
    torch.testing.assert_close(sdpa_by_definition(query, key, value, **given), expected, rtol=0, atol=1e-13)


def narrow(given: Tensor) -> Tensor:
    """Casts to float32 in every way that models have."""
    found = given.float() / 3
    found = found + given.to(torch.float32) / 7 + given.to(dtype=torch.bfloat16) / 11
    return (found + F.softmax(given, dim=-1, dtype=torch.float32)).type(torch.float32)


def test_in_float64_nothing_is_rounded_to_a_narrower_dtype() -> None:
    given = states(3, 4, dtype=torch.float64)
    with ByDefinition(exact=True):
        found = narrow(given)
    assert found.dtype == torch.float64
    expected = given / 3 + given / 7 + given / 11 + F.softmax(given, dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    with ByDefinition(exact=False):
        assert narrow(given).dtype == torch.float32


def test_attention_is_computed_by_its_definition() -> None:
    query = states(1, 2, 5, 8)
    with ByDefinition(exact=False):
        found, lse = regard.attention(query, query, query, mask=Causal(), backend="native", return_lse=True)
        plain = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    expected = regard.reference.attention(query, query, query, mask=Causal())
    torch.testing.assert_close(found, expected.output)
    torch.testing.assert_close(lse, expected.lse)
    torch.testing.assert_close(plain, expected.output)
    with ByDefinition(exact=True):
        exact = regard.attention(*(query.double(),) * 3, mask=Causal())
    assert torch.equal(exact, regard.reference.attention(*(query.double(),) * 3, mask=Causal()).output)


@pytest.mark.parametrize("wanted", [True, False])
def test_torchs_multihead_attention_is_written_out(wanted: bool) -> None:
    model, given = nn.MultiheadAttention(8, 2, batch_first=True).eval(), states(2, 5, 8)
    with ByDefinition(exact=False):
        output, weights = model(given, given, given, need_weights=wanted)
    expected, _ = model(given, given, given, need_weights=True)
    torch.testing.assert_close(output, expected)
    assert (weights is None) is not wanted


def test_a_copy_keeps_what_is_not_saved_in_its_dtype() -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("saved", torch.ones(2))
    model.register_buffer("derived", torch.ones(2), persistent=False)
    for dtype, derived in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        other = copied(model, dtype)
        assert {tensor.dtype for tensor in (other.weight, other.saved)} == {dtype}
        assert other.derived.dtype == derived
    assert by_definition(model, torch.float16).weight.dtype == torch.float16
    assert model.weight.dtype == torch.float32


def test_signs_depend_on_the_place_alone_and_are_even() -> None:
    found = signs(torch.zeros(50, 40))
    assert set(found.unique().tolist()) == {-(2.0**-6), 2.0**-6}
    assert abs(float((found > 0).double().mean()) - 0.5) < 0.05
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(signs(torch.zeros(50, 40, dtype=dtype)).float(), found)
    assert torch.equal(signs(torch.zeros(7)), (found.reshape(-1)[:7] * 2**6 * 2**-2))


def test_gaps() -> None:
    expected = torch.tensor([1.0, math.inf, math.nan, -math.inf], dtype=torch.float64)
    assert gap(expected.float(), expected) == 0.0
    assert gap(torch.tensor([1.5, math.inf, math.nan, -math.inf]), expected) == 0.5
    assert gap(torch.tensor([1.0, -math.inf, math.nan, -math.inf]), expected) == math.inf
    assert gap(torch.tensor([math.nan, math.inf, math.nan, -math.inf]), expected) == math.inf
    assert gap(torch.ones(3), expected) == math.inf
    assert gap(torch.zeros(0), torch.zeros(0)) == 0.0
    assert [size_of(torch.tensor(given)) for given in ([0.0], [3.0, -5.0], [1.0], [math.inf, 0.2])] == [
        1.0,
        8.0,
        2.0,
        0.25,
    ]
