"""Every recipe from its real data to its report, on the command line, with a model too small to learn anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard import DataError
from regard.recipes import RECIPES
from regard.recipes.dialogue.data import read_chitchat
from regard.recipes.translation.json_texts import hsk_pairs
from regard.training.sources import fetch
from tests.cli.test_app import run
from tests.recipes.sources import PACKAGES

PROPOSALS = Path(__file__).parents[3] / "shared" / "data" / "peps_abstracts.jsonl.gz"
SMALL = {
    "translation": "pieces=2500 embed_dim=16 num_heads=2 encoder_layers=1 decoder_layers=1 beams=1 batch_tokens=512",
    "word_alignment": "guidance=gold pieces=2000 embed_dim=16 num_heads=2 encoder_layers=1 decoder_layers=2",
    "image_classification": "pictures=256 embed_dim=16 num_heads=2 num_layers=1 batch_size=32",
    "image_text": "concepts=48 embed_dim=32 num_heads=2 picture_layers=1 caption_layers=1 width=16 batch_size=8",
    "summarization": "pieces=1000 embed_dim=24 num_heads=2 decoder_layers=1 style=extractive corpus=peps",
    "dialogue": "vocabulary=400 memory=none embed_dim=16 num_heads=2 num_layers=1 validation_conversations=2",
    "language_model": "embed_dim=16 num_heads=2 num_layers=1 length=32 batch_size=4 test_lengths=[32,64]",
}


def test_every_recipe_is_here():
    assert set(SMALL) == {recipe.name for recipe in RECIPES}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(SMALL))
def test_smoke(name, tmp_path, capsys):
    settings = [*SMALL[name].split(), "steps=2", "warmup_steps=1", "health_every=2", *data_of(name, tmp_path)]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert run("train", name, *arguments, "--out", str(tmp_path / "run"), "--json") == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["step"] == 2
    assert report["finished"]
    assert report["test"]
    assert "expected" in told.err
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"start", "training", "evaluation", "health"} <= set(kinds)


def data_of(name: str, folder: Path) -> list[str]:
    """Settings that name the data; skips where they are not in the cache."""
    if name == "summarization":
        if not PROPOSALS.is_file():
            pytest.skip("the file of the PEPs is not here")
        return [f"file={PROPOSALS}"]
    try:
        folders = [fetch(package, download=False, recipe=name) for package in PACKAGES[name]]
    except DataError as absent:
        pytest.skip(str(absent)[:200])
    if name == "translation":
        lines = [f"{source}\t{target}" for source, target in hsk_pairs(folders[0]) if "\t" not in source + target]
        return [f"pairs={_written(folder / 'pairs.tsv', lines[:1500])}"]
    if name == "dialogue":
        conversations = read_chitchat(folders[0] / "chitchat_dataset" / "dataset.json")[:60]
        lines = [json.dumps({"turns": each.turns[:12]}) for each in conversations]
        return [f"path={_written(folder / 'dialogues.jsonl', lines)}"]
    return []


def _written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
