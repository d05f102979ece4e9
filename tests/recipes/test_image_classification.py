"""Fashion-MNIST: data, models, training, the overlay, and a user's own picture."""

import gzip
import json

import pytest
import torch
from PIL import Image
from torch import nn

from regard._errors import ArgumentError, CheckpointError, DataError, UnsupportedError
from regard.recipes import comparison
from regard.recipes.image_classification import compare, data, recipe
from regard.recipes.image_classification.data import Pictures, preprocessed, read_idx, split
from regard.recipes.image_classification.model import (
    ATTENTION,
    CNN,
    ClassAttention,
    ViT,
    class_attention,
    without_batch_norm,
)
from regard.recipes.image_classification.overlay import draw_class_attention
from regard.recipes.image_classification.recipe import Classification, Config
from regard.recipes.pictures import read_picture, tensor_of
from regard.training.loop import train
from tests.recipes.small_images import clothes

TINY = {"steps": 60, "batch_size": 20, "embed_dim": 16, "num_layers": 2, "width": 8, "augment": False}
TINY |= {"warmup_steps": 5, "learning_rate": 1e-2, "threads": 1, "precision": "float32"}


def real_or_small():
    """The real data if they are in the cache, or made-up ones of the same kind."""
    try:
        return data.load(download=False)
    except DataError:
        return clothes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ViT after a short training."""
    folder = tmp_path_factory.mktemp("vit")
    config = Config(**TINY)
    task = Classification(config, clothes())
    return folder, config, task, train(task, config, folder)


# ---------------------------------------------------------------------------------------------------------- data


def test_no_picture_is_in_two_splits():
    splits = real_or_small()
    seen: set[bytes] = set()
    for part in (splits.train, splits.validation, splits.test):
        own = {image.numpy().tobytes() for image in part.images}
        assert seen.isdisjoint(own)
        seen |= own


def test_the_last_pictures_validate():
    pictures = Pictures(torch.arange(10).view(10, 1, 1), torch.arange(10))
    parts = split(pictures, Pictures(torch.zeros(2, 1, 1), torch.zeros(2)), validation=3)
    assert parts.train.labels.tolist() == list(range(7))
    assert parts.validation.labels.tolist() == [7, 8, 9]
    assert len(parts.test) == 2


def test_idx_is_read_and_damage_is_named(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + bytes([0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:-9],
        b"hello",
        gzip.compress(b"\0\0\x08\x02"),
        gzip.compress(b"\0\0\x0d\x01\0\0\0\1aaaa"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.gz"):
            read_idx(path)


def test_a_photograph_becomes_as_the_data_are():
    white = Image.new("RGBA", (100, 50), (255, 255, 255, 255))
    white.paste((0, 0, 0, 255), (40, 20, 60, 30))
    image = preprocessed(white)
    assert image.shape == (28, 28)
    assert int(image[14, 14]) > 200  # dark on white becomes bright on black
    assert int(image[0].max()) == 0  # a wide picture is centred
    assert torch.equal(image, preprocessed(white.convert("L").convert("RGBA")))


def test_a_picture_on_black_is_not_inverted():
    black = Image.new("RGBA", (28, 28), (0, 0, 0, 255))
    black.paste((250, 250, 250, 255), (10, 10, 18, 18))
    assert int(preprocessed(black)[14, 14]) == 250


# --------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", ATTENTION)
def test_a_picture_is_judged_alike_in_any_batch(kind):
    torch.manual_seed(1)
    model, images = CNN(8, kind).train(), torch.randn(5, 1, 28, 28)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), atol=1e-5, rtol=1e-4)


def test_kinds_of_attention_differ_in_their_parameters_and_all_learn():
    sizes = {}
    for kind in ATTENTION:
        torch.manual_seed(1)
        model = CNN(8, kind)
        sizes[kind] = sum(parameter.numel() for parameter in model.parameters())
        model(torch.randn(2, 1, 28, 28)).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert sizes["none"] == min(sizes.values())
    assert len(set(sizes.values())) == len(sizes)


def test_a_batch_norm_becomes_a_group_norm_with_its_weights():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3)))
    nn.init.uniform_(model[1][0].weight)
    weight = model[1][0].weight.detach().clone()
    made = without_batch_norm(model)[1][0]
    assert isinstance(made, nn.GroupNorm)
    assert (made.num_groups, made.eps) == (1, 1e-3)
    assert torch.equal(made.weight, weight)


def test_class_attention_is_the_last_layers():
    torch.manual_seed(1)
    model, image = ViT(16, 2, 2).eval(), torch.randn(1, 28, 28)
    seen = class_attention(model, image)
    assert seen.patches.shape == (2, 7, 7)
    torch.testing.assert_close(seen.patches.sum((1, 2)) + seen.to_itself, torch.ones(2))
    torch.testing.assert_close(seen.logits, model(image[None])[0])

    tokens = model.patches(image[None]).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token, tokens], 1) + model.places
    last = model.encoder.layers[1]
    states = last.around_attention.norm(model.encoder.layers[0](tokens)).double()
    weight, bias = (part.double() for part in (last.self_attention.in_proj_weight, last.self_attention.in_proj_bias))
    query, key = ((states @ weight[rows].T + bias[rows]).view(50, 2, 8) for rows in (slice(16), slice(16, 32)))
    expected = (torch.einsum("hd,khd->hk", query[0], key) / 8**0.5).softmax(1)
    torch.testing.assert_close(seen.to_itself.double(), expected[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.patches.double(), expected[:, 1:].view(2, 7, 7), atol=1e-6, rtol=1e-5)


def test_the_overlay_lies_on_the_right_place(tmp_path):
    patches = torch.zeros(1, 7, 7)
    patches[0, 0, 6] = 0.5
    seen = ClassAttention(patches, torch.tensor([0.5]), torch.zeros(10))
    draw_class_attention(torch.zeros(28, 28, dtype=torch.uint8), seen, "bag", tmp_path / "a.png")
    drawn = tensor_of(read_picture(tmp_path / "a.png")).float()
    yellow = ((drawn[0] + drawn[1]) / 2 - drawn[2] > 40) & (drawn[0] > 120)  # inferno's bright end, over black
    panels = yellow[:, : int(yellow.shape[1] * 0.89)]  # without the bar of colours
    rows, columns = panels.nonzero().T
    assert len(rows) > 100
    for patch in columns.float().sort().values.chunk(2):  # one patch in each of the two panels with a map
        assert float(patch.max() - patch.min()) < 0.08 * yellow.shape[1]
    assert float(rows.float().max()) < 0.35 * yellow.shape[0]


# ------------------------------------------------------------------------------------------------------- training


def test_parts_of_a_batch_make_the_batch():
    task = Classification(Config(**{**TINY, "augment": True}), clothes())
    indices = task.order(3)[0]
    whole, parts = task.batch(indices), [task.batch(indices[part::2]) for part in range(2)]
    for part, (images, labels) in enumerate(parts):
        assert torch.equal(images, whole[0][part::2])
        assert torch.equal(labels, whole[1][part::2])
    total = sum(float(task.loss(task.model, part).detach()) for part in parts)
    assert total == pytest.approx(float(task.loss(task.model, whole).detach()), rel=1e-5)


def test_a_moved_picture_keeps_its_pixels_and_differs_by_epoch():
    splits = clothes()
    splits.train.images[0] = 0
    splits.train.images[0, 10:14, 6:9] = torch.arange(1, 13, dtype=torch.uint8).view(4, 3)
    task = Classification(Config(**{**TINY, "augment": True}), splits)
    count = len(splits.train)
    drawn = ((task.batch([epoch * count for epoch in range(40)])[0] * data.DEVIATION + data.MEAN) * 255).round()
    assert all(sorted(each[each > 0].tolist()) == list(range(1, 13)) for each in drawn)
    places = {(int(each[0].nonzero()[0, 0]), int(each[0].nonzero()[0, 1])) for each in drawn}
    assert {row for row, _ in places} == {8, 9, 10, 11, 12}
    assert len(places) > 10


def test_training_learns_and_reports(trained):
    _, config, task, result = trained
    assert result.finished
    report = recipe.report(task, result.model, config)
    assert report["accuracy"] > 0.3
    assert report["accuracy_low"] <= report["accuracy"] <= report["accuracy_high"]
    assert set(report["baselines"]) == {"nearest class mean", "nearest picture"}
    assert json.loads(json.dumps(report)) == report


def test_a_short_training_on_a_sample_of_the_real_data(tmp_path):
    config = Config(**{**TINY, "model": "cnn", "attention": "cbam", "steps": 5, "pictures": 100})
    task = Classification(config, real_or_small())
    assert train(task, config, tmp_path).finished
    assert 0.0 <= recipe.report(task, task.model.eval(), config)["accuracy"] <= 1.0


def test_the_nearest_picture_is_found():
    splits = clothes()
    test = Pictures(splits.train.images[:50], splits.train.labels[:50])
    found = recipe.baselines(data.Splits(splits.train, splits.validation, test))
    assert found["nearest picture"]["mean"] == 1.0


def test_a_comparison_trains_each_variant_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda **_: clothes(60, 20))
    monkeypatch.setattr(compare, "SEEDS", (1, 2))
    config, said = Config(**{**TINY, "steps": 2}), []
    page = compare.compare(config, tmp_path, download=False, say=said.append)
    assert page == tmp_path / "comparison.md"
    assert page.read_text(encoding="utf-8").count("\n|cnn, ") == 6
    facts = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert set(facts["models"]) == {"vit", *(f"cnn, {kind}" for kind in ATTENTION)}
    assert said[0].endswith("0 of them finished.")

    monkeypatch.setattr(comparison, "train", None)  # whoever trains again fails
    assert compare.compare(config, tmp_path, download=False, say=said.append) == page
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8")) == facts
    with pytest.raises(TypeError):
        compare.compare(Config(**{**TINY, "steps": 3}), tmp_path, download=False, say=said.append)


# ----------------------------------------------------------------------------------------------- a user's own picture


def coat(path):
    picture = Image.new("RGB", (300, 400), "white")
    picture.paste((20, 20, 60), (80, 50, 220, 350))
    picture.save(path)
    return path


def test_run_tells_probabilities_and_draws(trained, tmp_path):
    folder, *_ = trained
    found = recipe.run(coat(tmp_path / "a.jpg"), folder=folder, heatmap=tmp_path / "where.png")
    assert sum(each["probability"] for each in found["probabilities"]) == pytest.approx(1.0, abs=1e-5)
    assert [each["class"] for each in found["probabilities"]] != []
    weights = torch.tensor(found["class_attention"]["patches"])
    assert float(weights.sum()) + found["class_attention"]["class_token_on_itself"] == pytest.approx(1.0, abs=1e-5)
    with Image.open(tmp_path / "where.png") as drawn:
        assert drawn.width > 300
    assert len(recipe.lines(found)) == 11
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2000)])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_run_takes_pictures_of_any_size_and_kind(trained, tmp_path, size, mode):
    Image.new("RGB", size, (200, 10, 10)).convert(mode).save(tmp_path / "a.png")
    found = recipe.run(tmp_path / "a.png", folder=trained[0])
    assert len(found["probabilities"]) == 10


def test_run_refuses_what_it_cannot_use(trained, tmp_path):
    folder, picture = trained[0], coat(tmp_path / "a.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:200])
    for path, told in ((tmp_path / "b.png", "no such file"), (tmp_path, "got a folder"), (cut, "cut short")):
        with pytest.raises(DataError, match=told):
            recipe.run(path, folder=folder)
    with pytest.raises(CheckpointError, match="Train first: regard train image_classification"):
        recipe.run(picture, folder=tmp_path / "nothing")
    with pytest.raises(ArgumentError, match="heatmap"):
        recipe.run(picture, folder=folder, heatmap=tmp_path / "a.txt")
    with pytest.raises(DataError, match="Make it first"):
        recipe.run(picture, folder=folder, heatmap=tmp_path / "none" / "a.png")
    assert not (tmp_path / "none").exists()


def test_a_cnn_has_no_class_token_to_draw(tmp_path):
    config = Config(**{**TINY, "model": "cnn", "steps": 1})
    train(Classification(config, clothes()), config, tmp_path / "run")
    picture = coat(tmp_path / "a.png")
    assert len(recipe.run(picture, folder=tmp_path / "run")["probabilities"]) == 10
    with pytest.raises(UnsupportedError, match="no class token"):
        recipe.run(picture, folder=tmp_path / "run", heatmap=tmp_path / "where.png")
