"""Image classification on somebody's own folder of pictures, from the files to the answer."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from regard._errors import CheckpointError, DataError
from regard.recipes.image_classification import compare
from regard.recipes.image_classification.own_pictures import load_own
from regard.recipes.image_classification.recipe import Config, accuracy_of, make_task, run
from regard.training.loop import train


def drawn(folder, counts):
    """Bands across at one height for each class, with noise; `labels.tsv` names them."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    lines = ["file\tlabel"]
    for row, (label, count) in enumerate(counts.items()):
        for place in range(count):
            pixels = torch.randint(0, 60, (40, 40), generator=generator)
            pixels[5 + 12 * row : 10 + 12 * row] += 180
            name = f"{row}-{place}.png"
            Image.frombytes("L", (40, 40), bytes(pixels.flatten().tolist())).save(folder / name)
            lines.append(f"{name}\t{label}")
    (folder / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_every_tenth_of_each_class_is_held_out_and_stays_so(tmp_path):
    splits = load_own(drawn(tmp_path / "a", {"up": 30, "天": 12}))
    assert splits.classes == ("up", "天")
    assert [len(each) for each in (splits.train, splits.validation, splits.test)] == [24 + 8, 3 + 2, 3 + 2]
    assert torch.bincount(splits.test.labels).tolist() == [3, 2]
    more = load_own(drawn(tmp_path / "b", {"up": 30, "天": 12, "down": 20}))
    held_out = [{image.numpy().tobytes() for image in each.test.images} for each in (splits, more)]
    assert held_out[0] < held_out[1]


def test_the_same_picture_is_on_one_side(tmp_path):
    folder = drawn(tmp_path / "a", {"up": 12, "down": 12})
    names = [line.split("\t") for line in (folder / "labels.tsv").read_text().splitlines()[1:]]
    with (folder / "labels.tsv").open("a") as file:
        for name, label in names:
            (folder / f"again-{name}").write_bytes((folder / name).read_bytes())
            file.write(f"again-{name}\t{label}\n")
    splits = load_own(folder)
    sides = [
        {image.numpy().tobytes() for image in each.images} for each in (splits.train, splits.validation, splits.test)
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 24


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({"up": 12}, "expected pictures of two classes or more, got 'up' alone"),
        ({"up": 12, "down": 2}, "expected 3 different pictures of 'down' or more, got 2"),
    ],
)
def test_too_few_are_told(tmp_path, counts, why):
    with pytest.raises(DataError, match=why):
        load_own(drawn(tmp_path / "a", counts))


def test_a_picture_with_two_classes_is_told(tmp_path):
    folder = drawn(tmp_path / "a", {"up": 5, "down": 5})
    (folder / "1-0.png").write_bytes((folder / "0-0.png").read_bytes())
    with pytest.raises(
        DataError, match=r"'0-0.png' and '1-0.png' are the same picture .* two classes for it, 'up' and"
    ):
        load_own(folder)


def test_what_was_trained_on_them_names_their_classes(tmp_path):
    folder = drawn(tmp_path / "pictures", {"up": 30, "middle": 30, "天": 30})
    settings = {"steps": 80, "batch_size": 20, "width": 8, "model": "cnn", "augment": False, "threads": 1}
    config = Config(**settings, images=str(folder), learning_rate=1e-2, warmup_steps=5, precision="float32")
    task = make_task(config, download=False)
    trained = train(task, config, tmp_path / "run")
    assert accuracy_of(task, trained.model)["accuracy"] > 0.8
    found = run(folder / "2-0.png", folder=tmp_path / "run")
    assert found["probabilities"][0]["class"] == "天"
    assert len(found["probabilities"]) == 3
    (tmp_path / "run" / "classes.json").unlink()
    with pytest.raises(CheckpointError, match=r"classes\.json': expected the names of the classes"):
        run(folder / "2-0.png", folder=tmp_path / "run")


def test_a_training_does_not_go_on_with_other_pictures(tmp_path):
    folder = drawn(tmp_path / "pictures", {"up": 12, "down": 12})
    config = Config(steps=2, batch_size=8, width=8, model="cnn", images=str(folder), threads=1, precision="float32")
    train(make_task(config, download=False), config, tmp_path / "run")
    for place in range(12):
        Image.effect_noise((40, 40), 50 + place).save(folder / f"0-{place}.png")
    with pytest.raises(CheckpointError, match="data"):
        train(make_task(config, download=False), config, tmp_path / "run")


def test_a_comparison_says_whose_pictures_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "SEEDS", (1, 2))
    folder = drawn(tmp_path / "pictures", {"up": 12, "down": 12})
    config = Config(steps=1, batch_size=8, width=8, embed_dim=8, num_layers=1, images=str(folder), threads=1)
    page = compare.compare(config, tmp_path / "out", download=False, say=lambda _: None)
    assert page is not None
    assert "# Image attention on pictures of one's own" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["test"] == 4
