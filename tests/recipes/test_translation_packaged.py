"""Weights in 8 bits: small, close, and verified."""

from __future__ import annotations

import pytest
import torch

from regard import CheckpointError
from regard.recipes.trained import open_run
from regard.recipes.translation import packaged
from regard.recipes.translation.packaged import pack, packaged_translator, packed, unpacked
from regard.recipes.translation.recipe import Config
from regard.recipes.translation.translate import TrainedTranslator
from regard.training import train
from tests.recipes.translation_cases import make_older, tiny_run, tiny_task


def test_a_matrix_is_within_half_a_step_of_its_row():
    weight = torch.randn(50, 30) * torch.logspace(-6, 3, 50)[:, None]
    weight[7] = 0.0
    found = unpacked(packed({"w": weight, "b": weight[0]}))
    assert torch.equal(found["b"], weight[0])
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((found["w"] - weight).abs() <= 0.5001 * step).all()


def test_a_packed_run_translates_and_a_changed_byte_is_seen(tmp_path, monkeypatch):
    run, folder = tiny_run(tmp_path / "run", steps=4), tmp_path / "weights"
    pack(run, folder, {"scores": {"all": 1.0}})
    mine, theirs = packaged_translator(folder), TrainedTranslator.from_run(run)
    text = "The cat sat."
    assert mine.translate(text, beams=1).source_words == theirs.translate(text, beams=1).source_words
    weights, expected = (each.model.vocabulary_weight() for each in (mine, theirs))
    assert 0 < (weights - expected).abs().max() < 0.02
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert size < 0.5 * sum(parameter.nbytes for parameter in theirs.model.parameters()) + 60_000
    victim = next(folder.rglob("matrices.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="sha256"):
        packaged_translator(folder)
    monkeypatch.setattr(packaged, "MOST_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1000 may come with the package"):
        pack(run, tmp_path / "large", {})


def test_without_weights_the_command_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="regard train translation --download"):
        packaged_translator(tmp_path / "none")


def test_weights_older_than_absolute_places_have_none(tmp_path):
    run, folder = tiny_run(tmp_path / "run", steps=4, absolute=None), tmp_path / "weights"
    pack(run, folder, {})
    expected = packaged_translator(folder).model.transformer.source_embedding
    assert expected.absolute is None
    for each in (run, folder):
        make_older(each, "absolute")
    assert packaged_translator(folder).model.transformer.source_embedding.absolute is None
    assert TrainedTranslator.from_run(run).model.transformer.source_embedding.absolute is None
    assert open_run(run, Config, "translation")[0].absolute is None


def test_a_run_older_than_absolute_places_goes_on_without_them_or_not_at_all(tmp_path):
    run = tiny_run(tmp_path / "run", steps=4, absolute=None)
    make_older(run, "absolute")
    task, config = tiny_task(steps=4, absolute=None)
    assert train(task, config, run).step == 4
    task, config = tiny_task(steps=4)
    with pytest.raises(CheckpointError, match="another configuration \\(absolute: None -> 'sinusoid'\\)"):
        train(task, config, run)


def test_a_recurrent_run_has_no_places_to_be_older_than(tmp_path):
    run = tiny_run(tmp_path / "run", steps=4, model="gru")
    make_older(run, "absolute")
    task, config = tiny_task(steps=4, model="gru")
    assert train(task, config, run).step == 4


@pytest.mark.parametrize("absolute", ["sinusoid", None])
def test_places_are_in_both_texts(absolute):
    task, _ = tiny_task(absolute=absolute)
    whole = task.model.transformer.eval()
    assert whole.source_embedding is whole.target_embedding
    embedded = whole.source_embedding(torch.tensor([[9, 9]]))
    assert torch.equal(embedded[0, 0], embedded[0, 1]) is (absolute is None)


def test_the_weights_in_the_package_have_relative_positions_alone():
    assert packaged_translator().model.transformer.source_embedding.absolute is None
