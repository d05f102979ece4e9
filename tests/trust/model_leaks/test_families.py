"""Models of every kind that transformers has raise no alarm, under each implementation, with and without regard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regard
from regard.backends import _library
from regard.trust.model_leaks import ModelAudit, audit_model

pytest.importorskip("transformers")

from tests.trust.model_leaks.families import FAMILIES, build

ISLANDS = {
    "longformer",
    "bigbird",
    "deberta",
    "deberta-v2",
    "xlnet",
    "gpt-neo",
    "gptj",
    "bloom",
    "mpt",
    "falcon",
    "led",
}
"""Their attention is in no registry."""
EAGER_ALONE = {"gemma2", "gpt-oss"}
CAUSAL_LMS = {"gpt2", "gpt-neo", "gpt-neox", "gptj", "bloom", "mpt", "falcon", "opt", "llama", "mistral", "qwen2",
              "gemma2", "gemma3", "phi3", "gpt-oss"}  # fmt: skip
TWO_STACKED = {"t5", "bart", "marian", "led", "whisper"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sound_model_raises_no_alarm(name: str) -> None:
    found = audit_model(build(name), length=FAMILIES[name].length)
    assert found.passed, str(found)
    assert found.findings == ()
    assert tuple(warning.code for warning in found.warnings) == FAMILIES[name].warns
    untested = [check for check in found.checks if check.state == "not tested"]
    assert not untested, untested  # a check that never runs holds nothing
    regards = [] if _library.why_absent() else ["eager, regard active"]
    assert set(regards) < set(found.ways) or name in ISLANDS or found.kind == "vision"
    if name not in ISLANDS | EAGER_ALONE:
        assert {"eager", "sdpa"} <= set(found.ways)
    asked = {check.code for check in found.checks}
    if name in CAUSAL_LMS:
        assert found.kind == "decoder"
        assert {"future_reaches_past", "padding_reaches_tokens", "chunks_differ", "batch_mixed"} <= asked
    if name in TWO_STACKED:
        assert found.kind == "encoder_decoder"
        assert {"future_reaches_past", "padding_reaches_tokens", "chunks_differ"} <= asked
    if name == "clip":
        assert "future_reaches_past" in asked  # its text is read from left to right


def test_documents_that_a_model_was_promised_to_keep_apart_are_a_finding() -> None:
    found = audit_model(build("gpt-oss"), documents=True, activated=[False])
    assert found.codes == ("documents_cross",)
    assert "the attention of model.layers.0.self_attn" in found.findings[0].sentence
    assert audit_model(build("llama"), documents=True, activated=[False]).passed


def test_regard_audit_takes_a_whole_model() -> None:
    model = build("distilbert")
    found = regard.audit(model)
    assert isinstance(found, ModelAudit)
    assert found.passed
    ids = torch.randint(3, 50, (3, 10), generator=torch.Generator().manual_seed(2))
    again = regard.audit(model, inputs={"input_ids": ids})
    assert isinstance(again, ModelAudit)
    assert again.passed


def test_half_precision_has_its_own_limit() -> None:
    for name in ("llama", "bert"):
        found = audit_model(build(name).to(torch.bfloat16), activated=[False], implementations=["sdpa"])
        assert found.passed, str(found)


@pytest.mark.weights
def test_a_pretrained_model_raises_no_alarm(minilm: Path) -> None:
    from transformers import AutoModel

    found = audit_model(AutoModel.from_pretrained(minilm).eval())
    assert found.passed, str(found)
    assert not [check for check in found.checks if check.state == "not tested"]
