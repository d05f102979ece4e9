"""`regard run translation` and `regard train translation` on friendly and hostile input."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest

from regard import ArgumentError, DataError
from regard.recipes.translation import drawing
from regard.recipes.translation.drawing import draw_heatmap
from regard.recipes.translation.translate import MOST_PIECES, TrainedTranslator, Translation, readable, source_words
from tests.cli.test_app import run
from tests.recipes.translation_cases import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"), steps=6)


@pytest.fixture(scope="module")
def translator(trained) -> TrainedTranslator:
    return TrainedTranslator.from_run(trained)


def told(capsys, *arguments: str, code: int = 0) -> str:
    assert run("run", "translation", *arguments) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_json_has_a_row_for_each_target_word(capsys, trained):
    facts = json.loads(told(capsys, "The cat sat, on the mat!", "--from", str(trained), "--json", "--beams", "2"))
    assert facts["source"] == "The cat sat, on the mat!"
    assert facts["source_words"] == ["The", "cat", "sat", ",", "on", "the", "mat", "!"]
    assert len(facts["alignment"]) == len(facts["target_words"])
    assert all(len(row) == 8 for row in facts["alignment"])
    assert all(sum(row) == pytest.approx(1.0, abs=5e-3) for row in facts["alignment"])
    assert "".join(facts["target_words"]).replace(" ", "") == facts["translation"].replace(" ", "")


def test_sentences_are_translated_by_themselves(translator):
    both = translator.translate("The cat sat. The dog eats fish.")
    first, second = translator.translate("The cat sat."), translator.translate("The dog eats fish.")
    assert both.translation == first.translation + second.translation
    assert both.source_words == first.source_words + second.source_words
    rows = len(first.target_words)
    assert all(not any(row[len(first.source_words) :]) for row in both.alignment[:rows])
    assert [row[len(first.source_words) :] for row in both.alignment[rows:]] == second.alignment


def test_sentences_of_a_language_with_spaces_stand_apart(tmp_path):
    translator = TrainedTranslator.from_run(tiny_run(tmp_path, steps=1, language="de"))
    both = translator.translate("The cat sat. The dog eats fish.", beams=1).translation
    alone = [translator.translate(text, beams=1).translation for text in ("The cat sat.", "The dog eats fish.")]
    assert both == " ".join(alone)


def test_long_runs_of_spaces_are_read_in_no_time():
    """These took the square of their length: minutes."""
    assert readable("a" + " " * 100_000 + "b --  -- c" + "\t" * 100_000 + "— d") == readable("a b --  -- c — d")
    assert readable("a --  -- b") == "a - - b"


@pytest.mark.parametrize(
    "text", ["see 𠮷 🦀 👩‍👩‍👧", "a", "...", "x" * 500, "word " * 390, "</s> <pad> $a$ <script>", "tab\there\x07"]
)
def test_strange_texts_are_translated(translator, text):
    found = translator.translate(text, beams=1)
    assert len(found.alignment) == len(found.target_words)
    assert all(len(row) == len(found.source_words) for row in found.alignment)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("\u200b\x00\x07", "nothing to translate but invisible characters"),
        ("我喜欢吃苹果。", "the text is Chinese; the translator reads English"),
        ("word " * 401, "has 2004 characters, at most 2000 are translated at once"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_texts_that_cannot_be_translated_are_told(text, why):
    with pytest.raises(DataError, match=why):
        readable(text)


def test_a_little_chinese_in_english_is_read(translator):
    assert translator.translate("The word 银行 means bank.", beams=1).source_words[2] == "银行"


def test_the_command_line_tells_in_one_line(capsys, trained, tmp_path):
    (tmp_path / "lines.txt").write_text("The cat.\n我喜欢吃苹果。\n", encoding="utf-8")
    for arguments, why in [
        ((""), "empty"),
        (("--file", str(tmp_path / "none.txt")), "no such file"),
        (("--file", str(tmp_path / "lines.txt")), "line 2: the text is Chinese"),
        (("hi", "--file", str(tmp_path / "lines.txt")), "expected a text or --file"),
        (("hi", "--beams", "0"), "--beams: expected from 1 to 64, got '?0"),
        (("hi", "--heatmap", str(tmp_path / "map.gif")), "--heatmap: expected a name that ends in .png"),
        (("hi", "--heatmap", str(tmp_path / "none" / "map.png")), "no such folder"),
    ]:
        given = (arguments,) if isinstance(arguments, str) else arguments
        message = told(capsys, *given, "--from", str(trained), code=2)
        assert message.startswith("regard run translation: ")
        assert re.search(why, message), message
        assert message.count("\n") == 1
    assert "nothing was trained there" in told(capsys, "hi", "--from", str(tmp_path / "nowhere"), code=2)


def test_it_is_said_when_a_training_here_takes_the_place_of_what_comes_with_regard(
    capsys, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "out" / "train" / "translation")
    assert run("run", "translation", "The cat sat.", "--beams", "1") == 0
    assert capsys.readouterr().err == (
        "regard run translation: with what was trained in 'out/train/translation', not with what comes with regard\n"
    )


def test_each_line_of_a_file_is_translated(capsys, trained, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\ufeffThe cat sat.\r\nThe dog runs.\r\n", encoding="utf-8")
    lines = told(capsys, "--file", str(path), "--from", str(trained), "--json").splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["The cat sat.", "The dog runs."]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_one_line_of_a_file_gives_one_line(capsys, trained, tmp_path, mark):
    """`wc -l` counts neither of these marks, nor does what reads two files side by side."""
    path = tmp_path / "lines.txt"
    path.write_bytes(f"The cat{mark}sat.\nThe dog runs.\rThe fish".encode())
    lines = told(capsys, "--file", str(path), "--from", str(trained), "--json", "--beams", "1").split("\n")
    assert [json.loads(line)["source"] for line in lines[:-1]] == ["The cat sat.", "The dog runs.", "The fish"]


def test_a_recurrent_run_is_refused(capsys, tmp_path):
    folder = tiny_run(tmp_path / "gru", steps=1, model="gru")
    assert "a run of the gru model" in told(capsys, "hi", "--from", str(folder), code=2)


def test_a_run_without_its_vocabulary_is_told(capsys, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in told(capsys, "hi", "--from", str(folder), code=2)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "html"])
def test_pictures_are_drawn(translator, tmp_path, ending):
    pytest.importorskip("matplotlib")
    if ending in ("png", "pdf") and not drawing._fonts():
        pytest.skip("no font with Chinese characters is installed")
    found = translator.translate("The <b>cat</b> & $x$ sat.", beams=1)
    first, second = tmp_path / f"one.{ending}", tmp_path / f"two.{ending}"
    draw_heatmap(found, first)
    draw_heatmap(found, second)
    content = first.read_bytes()
    if ending in ("svg", "html", "png"):
        assert content == second.read_bytes()
    if ending in ("svg", "html"):
        text = content.decode()
        assert "<b>" not in text
        assert "cat" in text
    if ending == "html":
        assert "<script" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_a_picture_that_cannot_be_written_is_told(translator, tmp_path, ending):
    pytest.importorskip("matplotlib")
    found = translator.translate("The cat.", beams=1)
    with pytest.raises(DataError, match=r"^--heatmap: '.*' cannot be written: File name too long\.$"):
        draw_heatmap(found, tmp_path / f"{'x' * 300}.{ending}")
    if not Path("/proc/self").is_dir():
        pytest.skip("a folder that nobody can write to is taken from Linux")
    with pytest.raises(DataError, match=r"^--heatmap: '/proc/self/map.*' cannot be written: No such file"):
        draw_heatmap(found, Path(f"/proc/self/map.{ending}"))


def test_a_picture_of_many_words_takes_bounded_memory(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    if not drawing._fonts():
        pytest.skip("no font with Chinese characters is installed")
    monkeypatch.setattr(drawing, "_MOST_PIXELS", 250_000)
    many = Translation("", "", ["word"] * 60, ["词"] * 90, [[1 / 60] * 60] * 90, 0.0)
    few = Translation("", "", ["word"], ["词"], [[1.0]], 0.0)
    for number, found in enumerate((many, few)):
        draw_heatmap(found, tmp_path / f"{number}.png")
    sizes: list[tuple[int, int]] = []
    for number in range(2):
        with image.open(tmp_path / f"{number}.png") as opened:
            sizes.append(opened.size)
    assert sizes[0][0] * sizes[0][1] <= 260_000
    assert sizes[1][0] == int(2.38 * 150)


def test_without_a_font_a_png_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "_fonts", list)
    with pytest.raises(DataError, match=r"no font with Chinese characters is installed .*Install one, or take .svg"):
        drawing.check_heatmap(tmp_path / "map.png")
    drawing.check_heatmap(tmp_path / "map.svg")
    with pytest.raises(ArgumentError, match=r"got '.*map'"):
        drawing.check_heatmap(tmp_path / "map")


def test_a_font_that_was_installed_after_matplotlib_listed_them_is_found(monkeypatch, tmp_path):
    manager = pytest.importorskip("matplotlib.font_manager")
    later, broken = manager.findfont("DejaVu Sans"), tmp_path / "broken.ttf"
    broken.write_text("no font")
    older = copy.copy(manager.fontManager)
    older.ttflist = [font for font in older.ttflist if font.name != "DejaVu Sans"]
    monkeypatch.setattr(manager, "fontManager", older)
    monkeypatch.setattr(drawing, "_CHINESE_FONTS", ("DejaVu Sans",))
    monkeypatch.setattr(manager, "findSystemFonts", lambda: [str(broken)])
    assert drawing._fonts() == []
    read = older.addfont

    def of_a_broken_name(path):
        if path == str(broken):
            b"\xff".decode()
        read(path)

    older.addfont = of_a_broken_name
    monkeypatch.setattr(manager, "findSystemFonts", lambda: [str(broken), later])
    assert drawing._fonts() == ["DejaVu Sans"]


def test_words_of_a_sentence(translator):
    sentence = "Don't stop - well-known 3.5 tests."
    pieces = translator.vocabulary.pieces(sentence)
    words, of_pieces = source_words(sentence, pieces)
    assert words == ["Don't", "stop", "-", "well-known", "3", ".", "5", "tests", "."]
    assert len(of_pieces) == len(pieces)
    assert set(range(len(words))) <= set(of_pieces)


def test_a_long_sentence_is_cut_at_spaces(translator):
    sentence = " ".join(["extraordinary"] * 60)
    parts = list(translator._short(sentence))
    assert len(parts) > 1
    assert " ".join(parts) == sentence
    assert all(len(translator.vocabulary.pieces(part)) <= MOST_PIECES for part in parts)


def test_train_tells_settings_and_refuses_others(capsys):
    assert run("train", "translation", "--settings", "--json", "--set", "steps=7") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 7
    for setting, why in [
        ("steps=0", "--set steps: expected Input should be greater than or equal to 1, got '0'"),
        ("stepz=1", "--set stepz: expected one of seed, steps,"),
        ("steps", "--set: expected key=value, got 'steps'"),
        ("language=fr", "--set language: expected Input should be 'zh' or 'de', got 'fr'"),
    ]:
        assert run("train", "translation", "--set", setting) == 2
        assert why in capsys.readouterr().err
    assert run("train", "poetry") == 2


def test_train_without_data_says_how_to_get_them(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    assert run("train", "translation", "--out", str(tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert "regard train translation --download" in message
    assert not (tmp_path / "run").exists()
