"""A model replayed: the same one passes in every dtype, a changed one fails at the layer that was changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regard
from regard._errors import ArgumentError, UnsupportedError
from regard.trust.passport import Report, record, replay
from tests.trust.passport.small import WIDTH, Decoder, decoder, ids, states


@pytest.mark.parametrize("dtype", [None, "float64", "float32", torch.bfloat16, "float16"])
def test_the_same_model_passes(recorded: Path, dtype: torch.dtype | str | None) -> None:
    model = decoder()
    found = replay(recorded, model, dtype=dtype)
    assert found.passed, str(found)
    assert found.first_difference is None
    assert {row.state for row in found.rows} == {"passed"}
    same = [row.same_bits for row in found.rows]
    assert same == [True] * len(same) if dtype in (None, "float32") else same == [None] * len(same)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("backend", ["native", "sdpa"])
def test_another_backend_computes_the_model_and_its_attention(recorded: Path, backend: str) -> None:
    found = replay(recorded, decoder(), backend=backend)
    assert found.passed, str(found)
    assert sum(row.what == "attention" for row in found.rows) == 8
    assert found.here.active is (backend == "native")
    assert not regard.integrations.torch_sdpa.is_active()


def changed(change: Callable[[Decoder], object]) -> Decoder:
    model = copy.deepcopy(decoder())
    change(model)
    return model


def weight(model: Decoder) -> None:
    model.blocks[1].narrow.weight.data[3, 5] += 1e-3


def bias(model: Decoder) -> None:
    model.blocks[0].attention.out.bias.data[2] += 1e-4


def scale(model: Decoder) -> None:
    model.blocks[1].attention.scale *= 1.01


def mask(model: Decoder) -> None:
    model.blocks[0].attention.causal = False


def order(model: Decoder) -> None:
    model.blocks[1].before, model.norm = model.norm, model.blocks[1].before
    model.norm.weight.data[0] += 0.01


CHANGES: dict[str, tuple[Callable[[Decoder], object], str, str]] = {
    "one weight": (weight, "blocks.1.narrow", "its weights are not those that were recorded: blocks.1.narrow.weight"),
    "one bias": (bias, "blocks.0.attention.out", "not those that were recorded: blocks.0.attention.out.bias"),
    "the scale": (scale, "blocks.1.attention", "scale 0.353553 was recorded, now it is 0.357089"),
    "the mask": (
        mask,
        "blocks.0.attention",
        "84 of 196 pairs have another mask than was recorded",
    ),
    "a norm that is last": (order, "norm", "its weights are not those that were recorded: norm.weight"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_fails_at_the_layer_that_was_changed(recorded: Path, name: str) -> None:
    change, layer, why = CHANGES[name]
    found = replay(recorded, changed(change))
    assert not found.passed
    assert found.first_difference == layer
    assert why in "\n".join(found.why)
    assert f"first difference: {layer}" in str(found)
    # What comes after is fed the truth, so that other blocks are as they were.
    wrong = {row.name for row in found.rows if row.state == "differs" and row.side == "forward"}
    assert all(entry.startswith(layer) or layer.startswith(entry) or entry == f"{layer}.out" for entry in wrong), wrong


def test_gradients_alone_can_differ(recorded: Path) -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(_: object, given: Tensor) -> Tensor:
            return given.clone()

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:
            return gradient * 0.999

    class Wrong(nn.Linear):
        def forward(self, given: Tensor) -> Tensor:
            return super().forward(Halved.apply(given))

    model = decoder()
    model.blocks[1].wide.__class__ = Wrong
    found = replay(recorded, model)
    wrong = [row for row in found.rows if row.state == "differs"]
    assert {row.side for row in wrong} == {"gradient"}
    assert found.first_difference is not None
    assert found.first_difference.startswith("blocks.1.attention")  # whose output wide reads


def test_a_model_without_a_layer_fails(recorded: Path) -> None:
    model = decoder()
    model.norm = nn.Identity()  # type: ignore[assignment]
    found = replay(recorded, model)
    assert found.first_difference == "norm"
    assert next(row for row in found.rows if row.name == "norm").note == "it did not run"
    assert "it has no norm.weight" in "\n".join(found.why)


def test_a_layer_of_another_shape_and_a_model_that_stops(recorded: Path) -> None:
    model = decoder()
    model.head = nn.Linear(WIDTH, 12, bias=False)
    found = replay(recorded, model)
    assert found.first_difference == "head"
    assert next(row for row in found.rows if row.name == "head").note == "expected shape [2, 7, 11], got [2, 7, 12]"
    model = decoder()
    model.blocks[1].wide = nn.Linear(3, 3)
    found = replay(recorded, model)
    assert (found.passed, found.first_difference) == (False, "blocks.1.wide")
    assert "the model stopped: RuntimeError: mat1 and mat2 shapes cannot be multiplied" in str(found)


def test_weights_that_hide_below_the_rounding_of_a_dtype_pass_in_it(recorded: Path) -> None:
    model = changed(lambda model: model.blocks[0].wide.weight.data.mul_(1 + 1e-5))
    assert replay(recorded, model).first_difference == "blocks.0.wide"
    assert replay(recorded, model, dtype="bfloat16").passed


def test_a_half_precision_model_is_judged_in_its_own_units(tmp_path: Path) -> None:
    model = decoder().to(torch.bfloat16)
    record(model, ids(), tmp_path / "a")
    found = replay(tmp_path / "a", model)
    assert found.passed, str(found)
    assert found.here.dtype == "bfloat16"
    found = replay(tmp_path / "a", model.float())  # the same numbers, computed in float32
    assert found.passed, str(found)


def test_what_overflows_in_a_dtype_is_not_judged_in_it(tmp_path: Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)

        def forward(self, given: Tensor) -> Tensor:
            return self.line(given) * 1e6

    model = Large()
    record(model, states(3, 4), tmp_path / "a")
    found = replay(tmp_path / "a", model, dtype="float16")
    row = next(row for row in found.rows if row.what == "output")
    assert (row.state, row.note) == ("not judged", "plain torch does not get there in float16")
    assert found.passed  # the layer was compared
    assert replay(tmp_path / "a", model, dtype="bfloat16").passed


def test_a_shared_layer_is_told_apart_by_its_calls(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.line, self.times = nn.Linear(4, 4), times

        def forward(self, given: Tensor) -> Tensor:
            for _ in range(self.times):
                given = self.line(given)
            return given

    record(Twice(2), states(3, 4), tmp_path / "a")
    assert {row.name for row in replay(tmp_path / "a", Twice(2)).rows} >= {"line", "line (call 2)"}
    assert replay(tmp_path / "a", Twice(1)).first_difference == "line (call 2)"


def test_a_callable_is_replayed(tmp_path: Path) -> None:
    record(torch.tanh, states(3, 4), tmp_path / "a")
    assert replay(tmp_path / "a", torch.tanh).passed
    assert replay(tmp_path / "a", lambda given: torch.tanh(given * 1.001)).first_difference == "output"
    with pytest.raises(ArgumentError, match="This passport has no attention calls to replay without it"):
        replay(tmp_path / "a")


def test_rows_are_json(recorded: Path) -> None:
    found = replay(recorded, changed(mask)).to_json()
    assert (found["passed"], found["first_difference"]) == (False, "blocks.0.attention")
    assert found["rows"][0]["name"] == "embedding"
    assert None in [row["error"] for row in found["rows"]]  # no NaN in JSON


def test_backends_that_a_model_cannot_have(recorded: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"the model has no choice of implementations, so 'eager' cannot be"):
        replay(recorded, decoder(), backend="eager")
    with pytest.raises(UnsupportedError, match=r"attention inside of a model cannot be given to 'torch'"):
        replay(recorded, decoder(), backend="torch")
    with regard.activate(), pytest.raises(UnsupportedError, match=r"regard is active, so sdpa is not torch's"):
        replay(recorded, decoder(), backend="sdpa")
    with pytest.raises(ArgumentError, match=r"dtype: expected one of float64, .*, got 'int8'"):
        replay(recorded, decoder(), dtype=torch.int8)


def test_the_report_is_for_people(recorded: Path) -> None:
    found: Report = replay(recorded, decoder())
    text = str(found)
    assert text.startswith(f"passed: {recorded}, Decoder")
    assert "errors of plain torch in float32" in text
    assert "output logits from end to end: error " in text


class Turned(nn.Module):
    """Rotations as complex numbers, as Llama's own code has them."""

    def __init__(self, *, saved: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        turns = torch.polar(torch.ones(6, 4), torch.arange(24.0).reshape(6, 4) * 0.1)
        self.register_buffer("turns", turns, persistent=saved)

    def forward(self, states: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.linear(states).unflatten(-1, (4, 2)))
        return torch.view_as_real(pairs * self.turns).flatten(-2)


@pytest.mark.parametrize("saved", [False, True])
def test_complex_numbers_stay_complex(tmp_path: Path, saved: bool) -> None:
    model = Turned(saved=saved)
    path = tmp_path / "turned.passport"
    record(model, torch.randn(2, 6, 8), path)
    assert replay(path, model).passed
    model.turns = torch.ones_like(model.turns)
    assert not replay(path, model).passed


def test_implementations_within_a_model_are_put_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {"text_config": {"vocab_size": 100, **sizes}, "vision_config": {"image_size": 16, "patch_size": 8, **sizes}}
    model = transformers.CLIPModel(transformers.CLIPConfig(**parts, projection_dim=8)).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    inputs = {"input_ids": torch.randint(3, 99, (2, 6)), "pixel_values": torch.randn(2, 3, 16, 16)}
    record(model, inputs, tmp_path / "passport", backend="eager", gradients=False)
    config = model.config
    found = [part._attn_implementation for part in (config, config.text_config, config.vision_config)]
    assert found == ["sdpa", "eager", "sdpa"]
