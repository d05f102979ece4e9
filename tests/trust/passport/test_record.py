"""What is recorded: the truth, what was made, and what plain torch makes; what fits; and that nothing is disturbed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import regard
from regard._errors import ArgumentError, CheckpointError, UnsupportedError
from regard.masks import Causal, Padding
from regard.trust.passport import record, show
from regard.trust.passport.contents import Item
from regard.trust.passport.folder import Passport, read
from regard.trust.passport.plan import budget_bytes
from tests.trust.passport.small import BATCH, HEADS, LENGTH, WIDTH, Decoder, decoder, ids, states


def items_of(passport: Passport) -> dict[tuple[str, str, str], Item]:
    return {(item.kind, item.name, item.side): item for item in passport.contents.items}


def true_of(passport: Passport, *key: str) -> Tensor:
    return passport.tensors[items_of(passport)[key].truth]


def made_of(passport: Passport, *key: str) -> Tensor:
    return passport.tensors[items_of(passport)[key].made]


def in_float64(model: Decoder) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """By hooks of one's own and torch's float64 kernels: values of modules, their gradients, those of parameters."""
    exact = copy.deepcopy(model).double()
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            values[name] = value if isinstance(value, dict) else value.clone()
            if not isinstance(value, dict):
                value.retain_grad()
                values[name + "!"] = value

        return hook

    for name, module in exact.named_modules():
        module.register_forward_hook(keep(name))
    output = exact(ids())
    # The signs of the documentation, once more: a hash of the place, and a power of two.
    total = torch.zeros((), dtype=torch.float64)
    for value in output.values():
        bits = [(place * 2654435761) >> 15 & 1 for place in range(value.numel())]
        size = 2.0 ** -math.ceil(math.log2(value.numel()) / 2)
        total = total + (value.reshape(-1) * torch.tensor([2.0 * bit - 1.0 for bit in bits]) * size).sum()
    total.backward()
    gradients = {name[:-1]: value.grad for name, value in values.items() if name.endswith("!")}
    return values, gradients, {name: p.grad for name, p in exact.named_parameters()}


def test_the_truth_is_that_of_float64(recorded: Path) -> None:
    passport = read(recorded)
    values, gradients, parameters = in_float64(decoder())
    layers = [item for item in passport.contents.items if item.kind == "layer" and item.side == "forward"]
    assert {item.name for item in layers} >= {"embedding", "blocks.1.attention.into", "blocks.0", "norm", "head"}
    for item in layers:
        torch.testing.assert_close(passport.tensors[item.truth], values[item.name], rtol=0, atol=1e-13)
    for name in ("logits", "states"):
        found = true_of(passport, "output", name, "forward")
        torch.testing.assert_close(found, values[""][name].detach().reshape(-1), rtol=0, atol=1e-13)
    for name in ("head", "blocks.1.narrow", "blocks.0.attention", "embedding"):
        found = true_of(passport, "layer", name, "gradient")
        torch.testing.assert_close(found, gradients[name], rtol=0, atol=1e-13)
    for name, gradient in parameters.items():
        found = true_of(passport, "parameter", name, "gradient")
        torch.testing.assert_close(found, gradient.reshape(-1), rtol=0, atol=1e-13)


def test_what_was_made_is_what_the_model_makes_to_the_last_bit(recorded: Path) -> None:
    passport, model = read(recorded), decoder()
    with torch.no_grad():
        output = model(ids())
    for name, tensor in output.items():
        assert torch.equal(made_of(passport, "output", name, "forward"), tensor.reshape(-1))


def test_plain_torch_is_measured_in_each_dtype(recorded: Path) -> None:
    for item in read(recorded).contents.items:
        assert item.plain.keys() == {"float64", "float32", "bfloat16", "float16"}
        assert 0.0 <= item.recorder < (2.0 if item.side == "forward" else 3.0)
    wide = items_of(read(recorded))["layer", "blocks.1.wide", "forward"].plain
    assert wide["float64"].error < 1e-14
    assert 1e-8 < wide["float32"].error < 1e-6
    assert 1e-4 < wide["float16"].error < wide["bfloat16"].error < 0.1


def test_attention_is_recorded_with_what_it_is_asked(recorded: Path) -> None:
    passport = read(recorded)
    calls = passport.contents.calls
    assert [call.name for call in calls] == ["blocks.0.attention", "blocks.1.attention"]
    for call in calls:
        assert call.options == {"mask": {"kind": "Causal", "arguments": {"align": "top_left"}}, "scale": 8**-0.5}
        query, key, value = (passport.tensors[name].double() for name in (call.query, call.key, call.value))
        assert query.shape == (BATCH, HEADS, LENGTH, WIDTH // HEADS)
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.testing.assert_close(passport.tensors[call.truth["output"]], output, rtol=0, atol=1e-13)
        made = passport.tensors[call.made["output"]]
        assert 0 < float((made - output).abs().max()) < 1e-6
        assert made.dtype == torch.float32
        assert call.truth.keys() == call.made.keys() == {"output", "query", "key", "value"}


def test_a_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = decoder().train()
    model.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(4)
    state = torch.get_rng_state()
    record(model, [ids()], tmp_path / "a", budget="1 MB")
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_place_is_told(recorded: Path) -> None:
    made = show(recorded).contents.made
    assert (made.torch, made.regard, made.dtype, made.device) == (
        torch.__version__,
        regard.__version__,
        "float32",
        "cpu",
    )
    assert (made.threads, made.seed, made.model, made.active) == (torch.get_num_threads(), 0, "Decoder", False)
    text = str(show(recorded))
    assert "Decoder" in text
    assert "attention blocks.0.attention (sdpa, float32)" in text


def test_without_gradients_there_are_none(tmp_path: Path) -> None:
    contents = record(decoder(), ids(), tmp_path / "a", gradients=False).contents
    assert {item.side for item in contents.items} == {"forward"}
    assert {name for call in contents.calls for name in call.truth} == {"output"}


def test_chosen_layers_are_recorded_and_no_others(tmp_path: Path) -> None:
    contents = record(decoder(), ids(), tmp_path / "a", layers=["blocks.1.attention", "norm"]).contents
    assert [item.name for item in contents.items if (item.kind, item.side) == ("layer", "forward")] == [
        "blocks.1.attention", "norm"
    ]  # fmt: skip
    assert [call.name for call in contents.calls] == ["blocks.1.attention"]
    with pytest.raises(ArgumentError, match=r"layers: expected names of modules of the model, got 'block'"):
        record(decoder(), ids(), tmp_path / "b", layers=["block"])


def size(folder: Path) -> int:
    return (folder / "tensors.safetensors").stat().st_size


def test_a_budget_is_kept_and_what_does_not_fit_is_told(tmp_path: Path, recorded: Path) -> None:
    full = size(recorded)
    names: dict[int, set[str]] = {}
    for part in (2, 4, 8):
        folder = tmp_path / str(part)
        contents = record(decoder(), ids(), folder, budget=full // part).contents
        header = int.from_bytes((folder / "tensors.safetensors").read_bytes()[:8], "little") + 8
        assert size(folder) - header <= full // part
        assert contents.left_out
        names[part] = {item.name for item in contents.items if item.kind == "layer"}
    assert names[8] < names[4] < names[2]
    assert {"blocks.0", "blocks.1", "embedding"} & names[4]
    assert not any(name.count(".") > 1 for name in names[8])  # what is finest goes first
    left_out = " ".join(contents.left_out)
    assert "layers do not fit into the budget: " in left_out
    assert "blocks." in left_out
    with pytest.raises(
        ArgumentError, match=r"budget: expected more than 112 bytes, which the inputs alone take, got 50"
    ):
        record(decoder(), ids(), tmp_path / "none", budget=50)


def test_sizes_of_budgets() -> None:
    assert [budget_bytes(given) for given in ("64 MB", "1.5kB", "2 GiB", "7", 12)] == [64_000_000, 1500, 2**31, 7, 12]
    for wrong in ("many", "-3 MB", "3 apples", True):
        with pytest.raises(ArgumentError, match='budget: expected bytes, or a text like "64 MB", got'):
            budget_bytes(wrong)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = Causal(align="top_left") & Padding((5, 3))
    return regard.attention(query, key, value, mask=mask, softcap=4.0, bias=BIAS, sink=SINK, enable_gqa=True)


BIAS, SINK = states(1, 4, 5, 5, seed=1), states(4, seed=2)


def test_a_callable_is_recorded_with_every_option(tmp_path: Path) -> None:
    given = states(2, 4, 5, 8), states(2, 2, 5, 8, seed=8), states(2, 2, 5, 6, seed=9)
    record(attend, given, tmp_path / "a")
    passport = read(tmp_path / "a")
    (call,) = passport.contents.calls
    assert call.options["mask"] == {
        "all": [
            {"kind": "Causal", "arguments": {"align": "top_left"}},
            {"kind": "Padding", "arguments": {"lengths": [5, 3], "side": "right"}},
        ]
    }
    assert (call.options["softcap"], call.options["enable_gqa"]) == (4.0, True)
    assert call.truth.keys() == {"output", "query", "key", "value", "bias", "sink"}
    assert {item.name for item in passport.contents.items} == {"output", "input 0", "input 1", "input 2"}
    exact = regard.reference.attention(
        *(tensor.double() for tensor in given),
        mask=Causal(align="top_left") & Padding((5, 3)),
        softcap=4.0, bias=BIAS.double(), sink=SINK.double(), enable_gqa=True,
    )  # fmt: skip
    assert torch.equal(passport.tensors[call.truth["output"]], exact.output)
    assert torch.equal(true_of(passport, "output", "output", "forward"), exact.output.reshape(-1))


def test_inputs_of_every_kind_come_back(tmp_path: Path) -> None:
    class Picky(nn.Module):
        def forward(self, first: Tensor, *, pair: Any, words: Any, mask: Tensor, flag: bool, none: None) -> Tensor:
            assert (flag, none, words) == (True, None, {"a": [1, 2.5, "x"]})
            assert isinstance(pair, tuple)
            assert mask.dtype == torch.bool
            return first * pair[0] + mask

    mask = torch.tensor([True, False, True])
    given = {"first": states(3), "pair": (states(3), 2), "words": {"a": [1, 2.5, "x"]}, "mask": mask,
             "flag": True, "none": None}  # fmt: skip
    assert record(Picky(), given, tmp_path / "a").contents.items
    with pytest.raises(ArgumentError, match=r"inputs first: expected tensors, numbers, words, .*, got object"):
        record(Picky(), {**given, "first": object()}, tmp_path / "b")
    with pytest.raises(ArgumentError, match=r"inputs: expected a mapping of arguments by name, .*, got str"):
        record(Picky(), "text", tmp_path / "b")


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ArgumentError, match=r"path: expected a folder that does not exist yet, got '.*there'"):
        record(decoder(), ids(), tmp_path / "there")
    with pytest.raises(ArgumentError, match=r"model: expected a torch.nn.Module or a callable, got int"):
        record(3, ids(), tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"model: expected a float tensor among what it gives, got none"):
        record(lambda given: given + 1, ids(), tmp_path / "a")

    def only_float32(given: Tensor) -> Tensor:
        if given.dtype != torch.float32:
            raise TypeError("float32 only")
        return given * 2

    with pytest.raises(UnsupportedError, match=r"the model does not run in float64 \(TypeError: float32 only\)"):
        record(only_float32, states(3), tmp_path / "a")
    with pytest.raises(UnsupportedError, match=r"the model does not run on these inputs \(TypeError: .*positional arg"):
        record(decoder(), (ids(), ids()), tmp_path / "a")
    assert not list(tmp_path.glob("a*"))


def test_a_name_that_no_disk_takes_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 300)
    with pytest.raises(CheckpointError, match=r"the passport is not written to .*too long\. Nothing is left of it"):
        record(decoder(), ids(), long)
    with pytest.raises(CheckpointError, match="expected a passport, found no such folder"):
        show(long)
    assert not list(tmp_path.iterdir())
