"""What `regard.observe` refuses or leaves be, and in which words; which layers it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import Tensor, nn

import regard
from tests.observation.modules import EMBED, HEADS, LENGTH, build, four_d


class Overwriting(nn.Module):
    """Writes to one of its tensors after it attended."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which

    def forward(self, states: Tensor) -> Tensor:
        given = dict(
            zip(("query", "key", "value"), (part.clone() for part in four_d(states.repeat(1, 1, 3))), strict=True)
        )
        given["attn_mask"] = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
        output = F.scaled_dot_product_attention(**given)
        given["output"] = output
        given[self.which].zero_()
        return output


@pytest.mark.parametrize(
    ("which", "name"), [("query", "query"), ("key", "key"), ("value", "value"), ("attn_mask", "mask")]
)
def test_tensors_written_to_afterwards_are_noticed(which: str, name: str) -> None:
    model = Overwriting(which)
    with torch.no_grad(), regard.observe(model) as seen:
        model(torch.randn(2, LENGTH, EMBED))
    for ask in (seen.layers[0].weights, seen.layers[0].statistics, seen.layers[0].lse):
        with pytest.raises(
            regard.RegardError, match=f"^{name} was changed in place after the layer ran.* Ask for them inside"
        ):
            ask()


def test_an_output_written_to_afterwards_is_merely_not_compared() -> None:
    model = Overwriting("output")
    with torch.no_grad(), regard.observe(model) as seen:
        model(torch.randn(2, LENGTH, EMBED))
    assert seen.layers[0].check() == 0.0
    assert seen.layers[0].weights().sum(-1).sub(1).abs().max() < 1e-6


def test_inference_tensors_are_copied_because_nobody_counts_their_writes() -> None:
    model = Overwriting("query")
    states = torch.randn(2, LENGTH, EMBED)
    with torch.inference_mode(), regard.observe(model) as seen:
        model(states)
    query, key, _ = four_d(states.repeat(1, 1, 3))
    torch.testing.assert_close(seen.layers[0].weights(), regard.weights(query, key), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize("where", ["whole", "in place", "part"])
def test_compiled_models_are_refused(where: str) -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if where == "whole":
        model = torch.compile(model)
    elif where == "in place":
        model.compile()
    else:
        model[1] = torch.compile(model[1])
    named = "its module '1'" if where == "part" else "the model"
    with pytest.raises(regard.UnsupportedError, match=f"observe: {named} is compiled, so .*before compiling"):
        regard.observe(model)


def test_only_modules_can_be_observed() -> None:
    with pytest.raises(regard.ArgumentError, match=r"model: expected a torch\.nn\.Module, got function"):
        regard.observe(build)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
        ([1], ["encoder.layers.1.self_attn"]),
        (["encoder.layers.0"], ["encoder.layers.0.self_attn"]),
        (["encoder.layers.1.self_attn", 0], ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
        ([], []),
        ([7], []),
    ],
)
def test_layers_are_chosen_by_name_and_by_position(layers: Any, names: list[str]) -> None:
    model, states = build("encoder")
    with regard.observe(model, layers=layers) as seen:
        model(states)
        model(states)
    assert [layer.name for layer in seen.layers] == names


def test_positions_count_over_all_that_runs_in_generation() -> None:
    pytest.importorskip("transformers")
    from tests.observation import hf_models

    model, inputs = hf_models.build("t5")
    inputs.pop("decoder_input_ids")
    with torch.no_grad(), regard.observe(model, layers=[0, 2]) as seen:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert [layer.name.split(".")[0] for layer in seen.layers] == ["encoder", "decoder"]


def test_a_name_that_is_no_module_is_refused() -> None:
    model, _ = build("encoder")
    with pytest.raises(
        regard.ArgumentError, match=r"layers: expected names of modules.*got 'encoder\.layers\.9'.*named_modules"
    ):
        regard.observe(model, layers=["encoder.layers.9"])


def test_layers_print_as_what_they_are() -> None:
    model, states = build("sdpa, grouped")
    with regard.observe(model) as seen:
        model(states)
    assert repr(seen) == "Observation(1 layers)"
    expected = (
        f"ObservedLayer('Sdpa', heads={HEADS}, kv_heads=2, q_len={LENGTH}, kv_len={LENGTH}, implementation='sdpa')"
    )
    assert repr(seen.layers[0]) == expected


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.125), (torch.float16, 0.016)])
def test_half_precision_is_compared_with_its_own_rounding(dtype: torch.dtype, allowed: float) -> None:
    model, states = build("sdpa, causal")
    model, states = model.to(dtype), states.to(dtype)
    with torch.no_grad(), regard.observe(model) as seen:
        model(states)
    assert 0 < seen.layers[0].check() < allowed
    output = seen.layers[0].call.output
    assert output is not None
    seen.layers[0].call.versions.clear()
    output.mul_(1.3)
    with pytest.raises(regard.RegardError, match="do not give the layer's own output"):
        seen.layers[0].check()


def test_numbers_that_are_not_finite_are_shown_and_not_taken_for_a_fault() -> None:
    model, states = build("sdpa, causal")
    states[0, 2, 0] = torch.nan
    with torch.no_grad(), regard.observe(model) as seen:
        model(states)
    weights = seen.layers[0].weights()
    assert weights[0, :, 2:].isnan().any()
    assert not weights[1].isnan().any()
    statistics = seen.layers[0].statistics(want=("entropy",)).entropy
    assert statistics is not None
    assert statistics[0].isnan().any()


def test_an_output_that_is_not_finite_for_no_reason_is_refused() -> None:
    model, states = build("sdpa")
    with torch.no_grad(), regard.observe(model) as seen:
        model(states)
    layer = seen.layers[0]
    assert layer.call.output is not None
    layer.call.versions.clear()
    layer.call.output[0, 0, 0, 0] = torch.nan
    with pytest.raises(regard.RegardError, match="relative error inf"):
        layer.weights()
