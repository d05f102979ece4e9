"""Emoji and captions: data and splits, views, retrieval, the loss over processes, training, searching."""

import json
import shutil

import pytest
import torch
from PIL import Image

from regard._errors import ArgumentError, CheckpointError, DataError
from regard.nn import clip_loss
from regard.recipes.image_text import compare, data, recipe, search
from regard.recipes.image_text.captions import BEGIN, PAD, Captions
from regard.recipes.image_text.data import LANGUAGES, TRAINED_STYLES, Emoji, decoded, family_of
from regard.recipes.image_text.recipe import Config, ImageText
from regard.recipes.image_text.retrieval import both_ways, chance, likeness, pixel_scores, ranks, recalls
from regard.recipes.image_text.views import drawn_captions, drawn_pictures, plain_pictures
from regard.training.loop import train
from tests.recipes.small_images import emoji, emoji_packages

TINY = {"steps": 40, "batch_size": 16, "embed_dim": 32, "num_heads": 2, "picture_layers": 1, "caption_layers": 1}
TINY |= {"width": 16, "vocabulary": 400, "warmup_steps": 5, "learning_rate": 3e-3, "average_decay": 0.0}
TINY |= {"threads": 1, "precision": "float32"}


def real_or_small() -> Emoji:
    """The real data if they are in the cache, or made-up ones of the same kind."""
    try:
        return data.load(download=False)
    except DataError:
        return emoji()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Towers after a short training, with their vocabulary."""
    folder = tmp_path_factory.mktemp("towers")
    config = Config(**TINY)
    task = ImageText(config, emoji())
    task.keep(folder)
    return folder, config, task, train(task, config, folder)


# ---------------------------------------------------------------------------------------------------------- data


def test_variants_of_one_concept_are_one_family():
    rowing = ("1F6A3", "1F6A3-200D-2642", "1F6A3-200D-2640")
    assert {family_of(code) for code in rowing} == {"1F6A3"}
    firefighters = ("1F468-200D-1F692", "1F469-200D-1F692", "1F9D1-200D-1F692")
    assert {family_of(code) for code in firefighters} == {"1F692"}
    assert family_of("1F468-200D-1F9BC-200D-27A1") == "1F9BC"
    assert family_of("1F468") == "1F468"
    assert family_of("1F1E6-1F1FC") != family_of("1F1E6-1F1FA")  # two flags


def test_no_concept_label_or_picture_of_the_test_is_trained_on():
    found = real_or_small()
    families, labels, pictures = ({split: set() for split in ("train", "validation", "test")} for _ in range(3))
    for concept, styles in zip(found.concepts, found.pictures, strict=True):
        families[concept.split].add(family_of(concept.code))
        labels[concept.split] |= {label.casefold() for label in concept.label.values()}
        pictures[concept.split] |= {(style, each.numpy().tobytes()) for style, each in enumerate(styles)}
    for kind in (families, labels, pictures):
        assert kind["train"].isdisjoint(kind["test"])
        assert kind["train"].isdisjoint(kind["validation"])
        assert kind["validation"].isdisjoint(kind["test"])
    assert families["train"]


def test_training_sees_neither_the_new_style_nor_the_captions_of_held_out_concepts(monkeypatch):
    found, learned = emoji(), []
    monkeypatch.setattr(
        Captions,
        "learned",
        staticmethod(lambda texts, *a, _made=Captions.learned: _made(learned.extend(texts) or learned, *a)),
    )
    found.pictures[:, data.NEW_STYLE] = 7
    task = ImageText(Config(**{**TINY, "batch_size": 2}), found)
    held_out = [concept for concept in found.concepts if concept.split != "train"]
    assert held_out
    assert learned
    assert not {concept.caption(language) for concept in held_out for language in LANGUAGES} & set(learned)
    seen = {int(place) for epoch in range(3) for batch in task.order(epoch) for place in task.batch(batch)["groups"]}
    assert seen == set(found.of("train"))
    assert TRAINED_STYLES == (0, 1)


def test_packages_are_read_once_and_doubles_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    texts, styles = emoji_packages(tmp_path / "packages")
    shutil.copy(styles[0] / "1f601.png", styles[0] / "1f60a.png")  # one more emoji that looks the same in a style
    found = decoded(texts, styles)
    assert len(found.concepts) == 19
    assert "1F60A" not in {concept.code for concept in found.concepts}
    assert found.pictures.shape == (19, 3, 4, 48, 48)
    assert found.concepts[0].caption("en") == "red circle: red, circle"
    assert found.concepts[0].caption("zh") == "红圆：红、圆"
    for style in styles:
        shutil.rmtree(style)
    assert torch.equal(decoded(texts, styles).pictures, found.pictures)


def test_damaged_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    texts, styles = emoji_packages(tmp_path / "packages")
    (texts / "en" / "data.json").write_text("[{}", encoding="utf-8")
    with pytest.raises(DataError, match="list of emoji"):
        decoded(texts, styles)
    shutil.rmtree(styles[1])
    with pytest.raises(DataError, match="expected"):
        decoded(texts, styles)


# ---------------------------------------------------------------------------------------------------------- views


def test_plain_pictures_lie_on_white():
    rgba = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).view(1, 4, 1, 1)
    assert plain_pictures(rgba).flatten().tolist() == [1.0, 1.0, 1.0]
    rgba[:, 3] = 255
    torch.testing.assert_close(plain_pictures(rgba).flatten(), torch.tensor([10.0, 20.0, 30.0]) / 127.5 - 1.0)


def test_drawn_pictures_are_the_examples_own():
    rgba, numbers = emoji().pictures[:8, 0], torch.arange(8) + 100
    whole = drawn_pictures(rgba, numbers, seed=1)
    torch.testing.assert_close(drawn_pictures(rgba[3:5], numbers[3:5], seed=1), whole[3:5])
    assert float(whole.min()) >= -1.0
    assert float(whole.max()) <= 1.0
    assert not torch.allclose(drawn_pictures(rgba, numbers + 8, seed=1), whole)


def test_drawn_captions_say_nothing_that_is_not_so():
    concepts = emoji().concepts[:2] * 300
    drawn = drawn_captions(concepts, torch.arange(600), seed=1)
    assert drawn[3:9] == drawn_captions(concepts[3:9], torch.arange(3, 9), seed=1)
    assert {concepts[0].caption("en"), concepts[0].caption("zh"), "red circle", "红"} <= set(drawn)
    words = {"red", "green", "circle", "circle:", "red,", "red:", "green:", "green,", "circle,"}
    assert {word for text in drawn if text.isascii() for word in text.split()} <= words


def test_captions_become_tokens_with_their_padding():
    captions = Captions.learned(["red circle", "红圆"] * 3, 300, 6)
    tokens, real = captions(["red circle", "", "😀🏽 unknown and far too long"])
    assert tokens.shape == real.shape == (3, 6)
    assert tokens[:, 0].tolist() == [BEGIN] * 3
    assert real[1].tolist() == [True, *[False] * 5]
    assert tokens[1, 1:].eq(PAD).all()
    assert real[2].all()
    assert torch.equal(captions(["RED Circle"])[0], captions(["red circle"])[0])


# ------------------------------------------------------------------------------------------------------ retrieval


def test_ranks_count_what_is_better_and_what_is_equal():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.5, 0.1], [0.3, 0.2, 0.9]])
    assert ranks(scores, torch.tensor([2, 0, 2])).tolist() == [2, 2, 1]


def test_a_model_that_gives_no_numbers_finds_nothing():
    scores = torch.full((20, 20), torch.nan)
    assert ranks(scores, torch.arange(20)).tolist() == [20] * 20
    scores = torch.eye(20)
    scores[:, 7] = torch.nan
    assert ranks(scores, torch.arange(20)).tolist() == [20 if place == 7 else 2 for place in range(20)]


def test_recalls_of_known_ranks():
    found = recalls(torch.tensor([1, 1, 3, 7, 20]))
    assert [found[f"recall@{k}"]["mean"] for k in (1, 5, 10)] == pytest.approx([0.4, 0.6, 0.8])
    assert all(each["low"] <= each["mean"] <= each["high"] for each in found.values())
    assert chance(20) == {"recall@1": 0.05, "recall@5": 0.25, "recall@10": 0.5}


def test_both_ways_with_captions_that_only_distract():
    scores = torch.tensor([[0.0, 0.9, 0.1], [0.8, 0.7, 0.9]])  # right: captions 1 and 2
    found = both_ways(scores, torch.tensor([1, 2]))
    assert found["picture to caption"]["recall@1"]["mean"] == 1.0
    assert found["caption to picture"]["recall@1"]["mean"] == 1.0
    found = both_ways(scores, torch.tensor([1, 0]))
    assert found["picture to caption"]["recall@1"]["mean"] == 0.5


def test_the_baseline_finds_what_looks_and_is_called_the_same():
    found = emoji()
    pictures = plain_pictures(found.pictures[:, 2])
    known = torch.stack([plain_pictures(found.pictures[:, style]) for style in (0, 1)], 1)
    texts = [concept.caption("en") for concept in found.concepts]
    scores = pixel_scores(pictures, known, texts, texts)
    assert float((ranks(scores, torch.arange(20)) == 1).float().mean()) > 0.8
    alike = likeness(["red circle"], ["red circle", "red square", "yellow bar"])[0]
    assert alike[0] == pytest.approx(1.0, abs=1e-5)
    assert alike[0] > alike[1] > alike[2]


# ------------------------------------------------------------------------------------------------- the loss, training


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_the_loss_counts_pairs_of_one_concept_together(loss):
    task = ImageText(Config(**{**TINY, "loss": loss}), emoji())
    batch = task.batch(task.order(0)[0])
    total = task.loss(task.model, batch)
    pictures, captions = task.model(batch["pictures"], batch["tokens"], batch["real"])
    targets = batch["groups"][:, None] == batch["groups"]
    if loss == "clip":
        expected = clip_loss(pictures, captions, 1 / 0.07, targets=targets) * 16
    else:
        unit = [torch.nn.functional.normalize(each, dim=1) for each in (pictures, captions)]
        scores = 10 * unit[0] @ unit[1].T - 10
        expected = -torch.nn.functional.logsigmoid(torch.where(targets, scores, -scores)).sum()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.dim() for parameter in task.model.parameters())  # FSDP2 wants no scalars


def test_pairs_of_a_batch_stay_together():
    with pytest.raises(ValueError, match="accumulate"):
        Config(accumulate=2)


def test_more_processes_than_pairs_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "17")
    with pytest.raises(ArgumentError, match="batch_size"):
        recipe.make_task(Config(**TINY), download=False)


def test_training_learns_and_reports(trained):
    _, config, task, result = trained
    assert result.finished
    report = recipe.report(task, result.model, config)
    known = report["recalls"]["known concepts, new style | fluent | en"]["picture to caption"]["recall@5"]["mean"]
    assert known > 2 * chance(len(task.emoji.of("train")))["recall@5"]
    assert set(report["baselines"]) == {"random", "nearest pixels"}
    assert all(set(each) == set(report["recalls"]) for each in report["baselines"].values())
    assert json.loads(json.dumps(report)) == report


def test_a_short_training_on_a_sample_of_the_real_data(tmp_path):
    config = Config(**{**TINY, "loss": "siglip", "steps": 3, "concepts": 100})
    task = ImageText(config, real_or_small())
    result = train(task, config, tmp_path)
    assert result.finished
    assert 0.0 <= result.metrics["recall@5"] <= 1.0


def test_a_comparison_writes_a_table_for_each_test_set(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda **_: emoji())
    page = compare.compare(Config(**{**TINY, "steps": 2}), tmp_path, download=False, say=lambda _: None)
    assert page is not None
    text, facts = page.read_text(encoding="utf-8"), json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert text.count("\n## ") == len(facts["test_sets"]) == 4
    assert list(facts["recalls"]) == ["random", "nearest pixels", "clip", "siglip"]
    assert all(cells.count("|") == 6 for cells in text.splitlines() if cells.startswith("|"))


# ------------------------------------------------------------------------------------------- a user's own input


@pytest.fixture
def searched(trained, monkeypatch):
    """The folder of a training whose gallery is made of the small data."""
    monkeypatch.setattr(data, "load", lambda **_: emoji())
    return trained[0]


def test_run_finds_captions_and_emoji(searched, tmp_path, monkeypatch):
    Image.new("RGBA", (80, 60), (255, 0, 0, 255)).save(tmp_path / "a.png")
    found = search.run(str(tmp_path / "a.png"), folder=searched, best=3)
    assert (found["kind"], len(found["found"])) == ("picture", 3)
    scores = [each["score"] for each in found["found"]]
    assert scores == sorted(scores, reverse=True)
    monkeypatch.setattr(data, "load", None)  # the gallery is kept: data are not needed again
    told = search.run("红圆", folder=searched, language="zh", best=100)
    assert (told["kind"], len(told["found"])) == ("text", 20)
    assert "红圆：红、圆" in {each["caption"] for each in told["found"]}
    assert len(search.lines(told)) == 20
    assert json.loads(json.dumps(told, ensure_ascii=False)) == told


def test_the_gallery_is_that_of_the_weights(searched):
    made = search.Search(searched)
    task = ImageText(made.config, emoji())
    expected = task.caption_embeddings(made.towers, range(20))["en"]
    torch.testing.assert_close(search.Search(searched).gallery.of_captions["en"], expected)
    (searched / search.GALLERY).write_bytes(b"broken")
    torch.testing.assert_close(search.Search(searched).gallery.of_captions["en"], expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (2000, 1500)])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_run_takes_pictures_of_any_size_and_kind(searched, tmp_path, size, mode):
    Image.new("RGB", size, (200, 10, 10)).convert(mode).save(tmp_path / "a.png")
    assert len(search.run(str(tmp_path / "a.png"), folder=searched)["found"]) == 5


@pytest.mark.parametrize("text", ["😀", "a" * 5000, "null\0character", "\u200d", "tab\tand\nline", "غطاء"])
def test_run_takes_any_text(searched, text):
    assert len(search.run(text, folder=searched)["found"]) == 5


def test_run_refuses_what_it_cannot_use(searched, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("hello")
    for given, told in (
        ("missing.png", "no such file"),
        (str(tmp_path), "got a folder"),
        (str(cut), "cut short"),
        (str(tmp_path / "text.jpg"), "Pillow reads"),
        ("", "empty"),
        (" \n", "empty"),
        ("lone \ud800", "surrogate"),
    ):
        with pytest.raises(DataError, match=told):
            search.run(given, folder=searched)
    with pytest.raises(ArgumentError, match="language"):
        search.run("cat", folder=searched, language="fr")
    with pytest.raises(ArgumentError, match="best"):
        search.run("cat", folder=searched, best=0)
    with pytest.raises(CheckpointError, match="Train first: regard train image_text"):
        search.run("cat", folder=tmp_path / "nothing")


def test_a_run_without_its_vocabulary_is_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / recipe.VOCABULARY).unlink()
    with pytest.raises(CheckpointError, match="vocabulary of the run"):
        search.run("cat", folder=tmp_path / "run")
