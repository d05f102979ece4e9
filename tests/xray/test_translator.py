"""The translator that comes with regard, as a model to look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regard import ArgumentError, DataError
from regard.recipes.translation import packaged
from regard.recipes.translation.model import sentences_of
from regard.recipes.translation.translate import MOST_PIECES, TrainedTranslator
from regard.xray.translator import NAME, read_by
from tests.cli.test_app import run
from tests.recipes.translation_cases import tiny_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("translator") / "run")


@pytest.fixture(scope="module")
def translator(run_folder: Path) -> TrainedTranslator:
    return TrainedTranslator.from_run(run_folder)


def test_it_reads_what_the_translator_reads(translator: TrainedTranslator) -> None:
    loaded, encoded = read_by(translator, "The big cat sat.", "大猫坐。", 64)
    vocabulary = translator.vocabulary
    source, target = vocabulary.encode("The big cat sat."), vocabulary.encode("大猫坐。")
    with torch.no_grad():
        mine = loaded.model(**encoded.inputs)
        states = translator.model.states(sentences_of([source], [target]))
    assert torch.allclose(mine, states @ translator.model.vocabulary_weight().T, atol=1e-5)
    assert encoded.streams["encoder"].text == "The big cat sat."
    assert [encoded.streams["encoder"].shown(place) for place in (0, -1)] == ["T", "."]
    assert encoded.streams["decoder"].tokens[0] == "<s>"
    assert "".join(encoded.streams["decoder"].shown(place) for place in range(1, len(target) + 1)) == "大猫坐。"
    assert encoded.notes == ()


def test_without_a_target_it_reads_its_own_answer(translator: TrainedTranslator) -> None:
    _, encoded = read_by(translator, "the red dog runs and the cat sat on the mat.", None, 64)
    assert encoded.streams["decoder"].text == translator.one("the red dog runs and the cat sat on the mat.").translation
    assert "own answer" in encoded.notes[0]


def test_padding_changes_nothing(translator: TrainedTranslator) -> None:
    loaded, encoded = read_by(translator, "the red dog.", "红狗。", 64)
    source, target = encoded.inputs["input_ids"], encoded.inputs["decoder_input_ids"]
    real = [torch.ones_like(text) for text in (source, target)]
    hidden = torch.zeros(1, 3, dtype=torch.int64)

    def on_the_left(pad: int, mask: torch.Tensor) -> torch.Tensor:
        pads = torch.full_like(hidden, pad)
        masks = torch.cat([real[0], mask], 1), torch.cat([mask, real[1]], 1)
        return loaded.model(torch.cat([source, pads], 1), torch.cat([pads, target], 1), *masks)[:, 3:]

    with torch.no_grad():
        plain = loaded.model(source, target)
        padded = loaded.model(torch.cat([source, hidden], 1), target, torch.cat([real[0], hidden], 1))
        assert torch.allclose(padded, plain, atol=1e-5)
        # On the left of the target its places move, whatever stands there.
        assert torch.allclose(on_the_left(0, hidden), on_the_left(9, hidden), atol=1e-5)
        assert not torch.allclose(on_the_left(0, hidden + 1), on_the_left(9, hidden + 1), atol=1e-3)
        assert not torch.allclose(loaded.model(torch.cat([source, hidden], 1), target), plain, atol=1e-3)


def test_what_is_too_long_is_cut_and_told(translator: TrainedTranslator) -> None:
    loaded, encoded = read_by(translator, "the cat sat. " * 100, "猫" * 50, 8)
    assert encoded.inputs["input_ids"].shape == (1, 8)
    assert encoded.inputs["decoder_input_ids"].shape == (1, 8)
    assert encoded.notes == ("the text was cut to its first 8 tokens", "the target was cut to its first 7 tokens")
    assert loaded.name == NAME
    _, encoded = read_by(translator, "the cat sat. " * 100, "猫", 512)
    assert encoded.inputs["input_ids"].shape == (1, MOST_PIECES)


@pytest.mark.parametrize("text", ["", " \u200b ", "猫坐在垫子上", "x" * 3000])
def test_what_it_cannot_read_is_told(translator: TrainedTranslator, text: str) -> None:
    with pytest.raises(DataError):
        read_by(translator, text, None, 64)


def test_a_bare_xray_looks_at_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packaged, "WEIGHTS", tmp_path / "weights")
    packaged.pack(run_folder, tmp_path / "weights", {"scores": {}})
    assert run("xray", "--out", str(tmp_path / "out"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["name"] == NAME
    kinds = [
        (layer["stack"], layer["kind"], layer["mask"]["found"], layer["mask"]["padding"]) for layer in report["layers"]
    ]
    cross, own = ("decoder", "cross", "bidirectional", "honoured"), ("decoder", "self", "causal", "honoured")
    assert kinds == [("encoder", "self", "bidirectional", "honoured"), own, cross, own, cross]
    assert {warning["code"] for warning in report["warnings"]} == {"note"}


def test_one_model_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("xray", "somewhere", "--demo", "minilm") == 2
    assert "expected a model or --demo, got both" in capsys.readouterr().err


def test_the_limit_leaves_room() -> None:
    from regard.xray.translator import translator_and_text

    with pytest.raises(ArgumentError, match="at least 2 tokens"):
        translator_and_text("the cat", None, 1)
