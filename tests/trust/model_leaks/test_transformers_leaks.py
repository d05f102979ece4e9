"""Leaks planted into models of transformers: masks that are gone, padding that is seen, caches that are forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.cli import main
from regard.trust.model_leaks import ModelAudit, audit_model

pytest.importorskip("transformers")

from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.observation.hf_models import registered
from tests.trust.model_leaks.families import build


def without_mask(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    named.pop("is_causal", None)
    return sdpa_attention_forward(module, query, key, value, None, is_causal=False, **named)


def forgetful(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    """Sees the keys of its own chunk alone."""
    own = query.shape[2]
    mask = None if mask is None else mask[..., -own:]
    return sdpa_attention_forward(module, query, key[:, :, -own:], value[:, :, -own:], mask, **named)


def of_another_sample(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    """Reads the keys of the sample before it."""
    return sdpa_attention_forward(module, query, key.roll(1, 0), value.roll(1, 0), mask, **named)


@contextmanager
def audited(name: str, function: Any, mask: Any = None, **options: Any) -> Iterator[ModelAudit]:
    with registered("planted", function, mask):
        yield audit_model(build(name), implementations=["planted"], activated=[False], **options)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_causal_mask_that_is_gone(name: str) -> None:
    with audited(name, without_mask, sdpa_mask) as found:
        assert "future_reaches_past" in found.codes
        sentence = next(entry.sentence for entry in found.findings if entry.code == "future_reaches_past")
        assert "first seen in the attention of " in sentence
        assert ".0." in sentence  # the first layer


def test_an_attention_that_was_registered_without_its_mask_function() -> None:
    with audited("bert", sdpa_attention_forward) as found:
        assert found.codes == ("padding_reaches_tokens",)
        assert "first seen in the attention of encoder.layer.0.attention.self" in found.findings[0].sentence


def test_a_window_and_documents_that_are_gone_are_not_the_future() -> None:
    """Without its mask function the function is causal by itself: only padding and documents show it."""
    with audited("mistral", sdpa_attention_forward, documents=True) as found:
        assert found.codes == ("padding_reaches_tokens", "documents_cross") or set(found.codes) == {
            "padding_reaches_tokens", "documents_cross", "chunks_differ"
        }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_a_border_of_a_chunk_that_forgets_the_cache(name: str) -> None:
    with audited(name, forgetful if name != "bart" else _forgetful_decoder, sdpa_mask) as found:
        assert found.codes == ("chunks_differ",), str(found)
        assert (
            "read after 6 others" in found.findings[0].sentence or "read after 4 others" in found.findings[0].sentence
        )


def _forgetful_decoder(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    is_self = getattr(module, "is_decoder", False) and getattr(module, "is_causal", False)
    chosen = forgetful if is_self else sdpa_attention_forward
    return chosen(module, query, key, value, mask, **named)


def test_samples_that_read_each_other() -> None:
    with audited("bert", of_another_sample, sdpa_mask) as found:
        assert "batch_mixed" in found.codes
        sentence = next(entry.sentence for entry in found.findings if entry.code == "batch_mixed")
        assert "the attention of encoder.layer.0.attention.self" in sentence


def test_one_way_of_several_is_named() -> None:
    model = build("bert")
    with registered("planted", sdpa_attention_forward):
        found = audit_model(model, implementations=["sdpa", "planted"], activated=[False])
    assert found.codes == ("padding_reaches_tokens",)
    assert found.findings[0].where == ("planted",)
    assert "(seen: planted)" in found.findings[0].sentence
    assert model.config._attn_implementation == "sdpa"


def test_implementations_that_a_model_does_not_take() -> None:
    with pytest.raises(ArgumentError, match=r"implementations: expected those that the model takes, got 'sdpa'"):
        audit_model(build("gpt-oss"), implementations=["sdpa"])
    with pytest.raises(ArgumentError, match=r"got 'sdpa'\. This model has 'eager' alone, which no registry knows of"):
        audit_model(build("bloom"), implementations=["sdpa"])


def made() -> nn.Module:
    """What the command line is given."""
    return build("distilbert")


def leaking() -> tuple[nn.Module, dict[str, Tensor]]:
    """With a leak, and inputs of its own."""
    from tests.trust.model_leaks.test_planted import IDS, Along, Tokens

    return Tokens(Along(nn.BatchNorm1d(8, track_running_stats=False))), IDS


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, arguments)])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_the_command_takes_models(tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = ran(capsys, tiny_bert)
    assert code == 0
    assert out.startswith("passed: BertForMaskedLM (encoder), by ")
    code, out = ran(capsys, f"{__name__}:made", "--json")
    assert (code, '"passed": true' in out) == (0, True)
    code, out = ran(capsys, f"{__name__}:leaking")
    assert code == 1
    assert "batch_mixed: samples of a batch reach each other" in out
    assert "later tokens reach earlier ones? not tested" in out
    code, out = ran(capsys, f"{__name__}:leaking", "--causal")
    assert (code, "future_reaches_past" in out) == (1, True)
    torch.manual_seed(0)
