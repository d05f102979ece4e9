"""The whole x-ray of each model family: what it says of sound models, and what it warns of in broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard.measure import Cost
from regard.xray import costs
from regard.xray.encode import encode
from regard.xray.examine import examine
from regard.xray.loading import LoadedModel, load
from regard.xray.page import write_report

transformers = pytest.importorskip("transformers")

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from tests.observation.hf_models import registered  # noqa: E402
from tests.observation.test_observe_models import without_scale  # noqa: E402
from tests.xray.test_probe import causal_only, without_mask  # noqa: E402

TEXT, TARGET = "The bank by the river was closed.", "河水山中行,银行"


@pytest.fixture(autouse=True)
def without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs have tests of their own, and FlexAttention compiles for seconds."""
    monkeypatch.setattr(costs, "cost_of", lambda *_, **__: Cost(1.0, 1000))


def xray(folder: Path, implementation: str = "sdpa", **named: Any) -> dict[str, Any]:
    loaded = load(str(folder))
    loaded.model.set_attn_implementation(implementation)  # type: ignore[operator]
    encoded = encode(loaded, TEXT, TARGET if loaded.kind == "encoder_decoder" else None)
    return examine(loaded, encoded, **named)


def codes(payload: dict[str, Any]) -> dict[str, list[int]]:
    return {entry["code"]: entry["layers"] for entry in payload["warnings"] if entry["code"] != "note"}


FOUND = {
    "tiny_bert": ["bidirectional"] * 2,
    "tiny_gpt2": ["causal"] * 2,
    "tiny_llama": ["causal"] * 2,
    "tiny_mistral": ["causal, window 4"] * 2,
    "tiny_t5": ["bidirectional", "bidirectional", "causal", "bidirectional", "causal", "bidirectional"],
}


def check(payload: dict[str, Any], tmp_path: Path, masks: list[str], stack: str) -> None:
    layers = payload["layers"]
    assert [layer["mask"]["found"] for layer in layers] == masks
    assert {layer["mask"]["padding"] for layer in layers} == {"honoured"}
    assert codes(payload) == {}
    assert [layer["index"] for layer in layers] == list(range(len(layers)))
    for layer in layers:
        assert layer["heads"] % layer["kv_heads"] == 0
        assert 0 < layer["entropy"]["mean"] < 10
        assert 0 <= layer["sink_share"]["mean"] <= 1
        assert len(layer["entropy"]["per_head"]) == layer["heads"]
        assert layer["max_logit"]["max"] == max(layer["max_logit"]["per_head"])
        assert all(row["supported"] or row["reason"] for row in layer["costs"])
        for axis, length in (("query_stream", "q_len"), ("key_stream", "kv_len")):
            tokens = [token for cell in payload["streams"][layer[axis]]["cells"] for token in cell["tokens"]]
            assert sorted(set(tokens)) == list(range(layer[length]))
    if stack:
        assert {layer["stack"] for layer in layers} == {stack}
        assert {layer["kind"] for layer in layers} == {"self"}
    assert [entry["layer"] for entry in payload["maps"]] == list(range(len(layers)))
    facts, page = write_report(payload, tmp_path)
    assert page.stat().st_size > 10_000
    read = json.loads(facts.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert read["layers"] == layers


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mistral"])
def test_models_of_one_stack(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    payload = xray(request.getfixturevalue(name))
    check(payload, tmp_path, FOUND[name], "encoder" if name == "tiny_bert" else "decoder")
    grouped = name in ("tiny_llama", "tiny_mistral")
    assert {layer["kv_heads"] for layer in payload["layers"]} == {2 if grouped else 4}
    assert {layer["backend"]["now"] for layer in payload["layers"]} == {"sdpa"}
    assert payload["model"]["implementation"] == "sdpa"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_encoder_decoder(tiny_t5: Path, tmp_path: Path, implementation: str) -> None:
    payload = xray(tiny_t5, implementation)
    check(payload, tmp_path, FOUND["tiny_t5"], "")
    kinds = [(layer["stack"], layer["kind"], layer["query_stream"], layer["key_stream"]) for layer in payload["layers"]]
    encoder, decoder = ("encoder", "self", "encoder", "encoder"), ("decoder", "self", "decoder", "decoder")
    cross = ("decoder", "cross", "decoder", "encoder")
    assert kinds == [encoder, encoder, decoder, cross, decoder, cross]
    lengths = {kind: (layer["q_len"], layer["kv_len"]) for kind, layer in zip(kinds, payload["layers"], strict=True)}
    assert lengths[cross] == (lengths[decoder][0], lengths[encoder][0])
    assert lengths[cross][0] != lengths[cross][1]
    assert {layer["scale"] for layer in payload["layers"]} == {1.0}


@pytest.mark.weights
def test_minilm(minilm: Path, tmp_path: Path) -> None:
    payload = xray(minilm)
    check(payload, tmp_path, ["bidirectional"] * 6, "encoder")
    assert {(layer["heads"], layer["head_dim"]) for layer in payload["layers"]} == {(12, 32)}


@pytest.mark.weights
def test_distilbert(distilbert: Path, tmp_path: Path) -> None:
    payload = xray(distilbert)
    check(payload, tmp_path, ["bidirectional"] * 6, "encoder")
    assert {(layer["heads"], layer["head_dim"]) for layer in payload["layers"]} == {(12, 64)}


@pytest.mark.weights
def test_flan_t5(flan_t5: Path, tmp_path: Path) -> None:
    payload = xray(flan_t5)
    check(payload, tmp_path, ["bidirectional"] * 8 + ["causal", "bidirectional"] * 8, "")
    assert [layer["kind"] for layer in payload["layers"]] == ["self"] * 8 + ["self", "cross"] * 8


# ----------------------------------------------------------------------------------------- warnings


def test_a_causal_leak_is_warned_of(tiny_llama: Path) -> None:
    with registered("leaky", without_mask, sdpa_mask):
        payload = xray(tiny_llama, "leaky")
    found = codes(payload)
    assert found["causal_leak"] == [0, 1]
    assert found["future_reaches_past"] == []
    assert found["padding_attended"] == [0, 1]
    # and its arguments said otherwise, so that no weights are shown
    assert "weights_unexplained" in found
    assert all(layer["entropy"] == {"mean": None, "per_head": [None] * 4} for layer in payload["layers"])
    assert payload["maps"] == []


def test_an_ignored_window_is_warned_of(tiny_mistral: Path) -> None:
    with registered("no_window", causal_only, sdpa_mask):
        found = codes(xray(tiny_mistral, "no_window"))
    assert found["window_ignored"] == [0, 1]
    assert "causal_leak" not in found


def test_attended_padding_is_warned_of(tiny_bert: Path) -> None:
    with registered("unmasked", sdpa_attention_forward):
        payload = xray(tiny_bert, "unmasked")
    assert codes(payload) == {"padding_attended": [0, 1]}
    assert [layer["mask"]["padding"] for layer in payload["layers"]] == ["attended"] * 2


def test_a_mask_other_than_the_one_asked_for_is_warned_of(tiny_bert: Path) -> None:
    def near(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
        length = query.shape[2]
        own = torch.ones(length, length, dtype=torch.bool).tril(1).triu(-1)
        return sdpa_attention_forward(module, query, key, value, own, **named)

    with registered("near", near, sdpa_mask):
        payload = xray(tiny_bert, "near")
    assert codes(payload)["mask_differs"] == [0, 1]
    message = next(entry["message"] for entry in payload["warnings"] if entry["code"] == "mask_differs")
    assert "asked for 'bidirectional', what the layer does is 'window -1..+1'" in message


def test_a_function_that_lies_about_its_scale_gets_no_map(tiny_llama: Path) -> None:
    with registered("unscaled", without_scale, sdpa_mask):
        payload = xray(tiny_llama, "unscaled")
    assert set(codes(payload)) == {"weights_unexplained"}
    assert payload["maps"] == []


def test_a_window_longer_than_the_text_is_said_to_be_unchecked(tiny_mistral: Path) -> None:
    loaded = load(str(tiny_mistral))
    payload = examine(loaded, encode(loaded, TEXT, limit=4))
    assert codes(payload) == {"window_not_seen": [0, 1]}
    assert {layer["mask"]["found"] for layer in payload["layers"]} == {"causal"}


def test_quadratic_memory_is_warned_of_for_the_backend_that_runs(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost_at(layer: Any, pattern: Any, length: int, backend: str) -> Cost:
        return Cost(1.0, length**2 if backend == "eager" else length)

    monkeypatch.setattr(costs, "_cost_at", cost_at)
    assert codes(xray(tiny_gpt2, "sdpa", length=8192)) == {}
    payload = xray(tiny_gpt2, "eager", length=8192)
    assert codes(payload) == {"quadratic_memory": [0, 1]}
    assert (
        "at 8192 tokens, one such layer's attention takes about 64.0 MiB under eager"
        in payload["warnings"][0]["message"]
    )
    assert payload["layers"][0]["at_length"]["length"] == 8192


def test_like_layers_are_measured_once(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(costs, "cost_of", lambda *_, **__: counted.append(1) or Cost(1.0, 1))
    payload = xray(tiny_gpt2)
    supported = [row for row in payload["layers"][0]["costs"] if row["supported"]]
    assert len(counted) == len(supported)


def test_numbers_that_are_not_finite_are_warned_of_and_stay_out_of_the_json(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny_gpt2))
    with torch.no_grad():
        loaded.model.transformer.h[1].attn.c_attn.weight[0, 0] = torch.nan  # type: ignore[union-attr]
    payload = examine(loaded, encode(loaded, TEXT))
    assert codes(payload)["not_finite"] == [1]
    assert payload["layers"][1]["entropy"]["mean"] is None
    facts, _ = write_report(payload, tmp_path)
    json.loads(facts.read_text(encoding="utf-8"), parse_constant=pytest.fail)


# ----------------------------------------------------------------------------------- custom models


def test_a_model_of_ones_own_with_inputs_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 4, 1, 1, 24, batch_first=True).eval()
    inputs = {"src": torch.randn(1, 5, 16), "tgt": torch.randn(1, 3, 16)}
    payload = examine(
        LoadedModel("mine", model, None, "custom", inputs=inputs),
        encode(LoadedModel("mine", model, None, "custom", inputs=inputs), None),
    )
    shapes = [(layer["kind"], layer["q_len"], layer["kv_len"]) for layer in payload["layers"]]
    assert shapes == [("self", 5, 5), ("self", 3, 3), ("cross", 3, 5)]
    assert {layer["mask"]["padding"] for layer in payload["layers"]} == {"not probed"}
    write_report(payload, tmp_path)


def test_a_model_without_attention_says_so(tmp_path: Path) -> None:
    loaded = LoadedModel("mine", nn.Linear(2, 2), None, "custom", inputs={"input": torch.randn(1, 2)})
    payload = examine(loaded, encode(loaded, None))
    assert payload["layers"] == []
    assert list(codes(payload)) == ["no_attention"]
    write_report(payload, tmp_path)


def test_progress_is_told_from_start_to_end(tiny_gpt2: Path) -> None:
    told: list[tuple[str, int, int]] = []
    xray(tiny_gpt2, progress=lambda *stage: told.append(stage))
    assert told == [("run", 0, 1), ("padding", 0, 1), ("layers", 0, 2), ("layers", 1, 2), ("layers", 2, 2)]


def test_the_machine_is_named(tiny_gpt2: Path) -> None:
    machine = xray(tiny_gpt2)["machine"]
    assert machine["torch"] == torch.__version__
    assert machine["cpu"]
    assert machine["transformers"] == transformers.__version__


def field_names(entry: object) -> set[str]:
    """Every key of a JSON value, at any depth, but not the names of streams."""
    if isinstance(entry, list):
        return set().union(*map(field_names, entry))
    if not isinstance(entry, dict):
        return set()
    return set(entry) | set().union(*(field_names(value) for key, value in entry.items() if key != "streams"))


def test_every_field_of_the_report_is_documented(
    tiny_mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "FIRST_LENGTH", 16)
    facts, _ = write_report(xray(tiny_mistral, length=32), tmp_path)
    report = json.loads(facts.read_text(encoding="utf-8"))
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    fields = field_names(report) | field_names(list(report["streams"].values()))
    assert {"why_zh", "growth", "truncated", "per_head"} <= fields
    assert [name for name in sorted(fields) if f"`{name}`" not in page] == []
