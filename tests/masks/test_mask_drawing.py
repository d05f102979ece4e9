"""Pictures: written whole or not at all, labelled, and never larger than they can show."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch

from regard._errors import DataError, DependencyError, MaskError
from regard.masks import BigBird, Causal, Dense, GlobalTokens, Padding, SlidingWindow
from regard.masks import _draw as draw_module

FILES = [
    "bigbird", "blocks", "causal", "dense", "dilated", "documents",
    "global_tokens", "grid", "keys", "padding", "prefix", "window",
]  # fmt: skip
STARTS = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}


@pytest.mark.parametrize("suffix", STARTS)
def test_draw_writes_what_the_suffix_says(tmp_path, suffix):
    Causal().draw(tmp_path / f"mask.{suffix}", q_len=8)
    assert (tmp_path / f"mask.{suffix}").read_bytes().startswith(STARTS[suffix])
    assert [path.name for path in tmp_path.iterdir()] == [f"mask.{suffix}"]


def axes_of(figure):
    (axes,) = figure.axes
    return axes


def test_axes_are_labelled_and_the_title_is_the_mask():
    axes = axes_of(Causal("bottom_right").draw(q_len=3, kv_len=5))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key index", "query index")
    assert axes.get_title() == "Causal(align='bottom_right')"
    assert axes.images[0].get_array().tolist() == [[2, 2, 2, 0, 0], [2, 2, 2, 2, 0], [2, 2, 2, 2, 2]]
    assert list(axes.images[0].get_extent()) == [-0.5, 4.5, 2.5, -0.5]


def test_title_can_be_given_and_blocks_drawn():
    axes = axes_of(Causal().draw(q_len=8, title="mine", block_size=4))
    assert axes.get_title() == "mine"
    assert len(axes.collections) == 2


def test_masks_of_a_batch_draw_the_first_sample_and_say_so():
    axes = axes_of((Padding([1, 2]) & Dense(torch.ones(1, 3, 2, 2, dtype=torch.bool))).draw(q_len=2))
    assert axes.get_title().endswith("(sample 0, head 0)")
    assert axes.images[0].get_array().tolist() == [[2, 0], [2, 0]]


def test_long_texts_are_drawn_from_the_block_map(monkeypatch):
    mask = SlidingWindow(2500) | GlobalTokens(16)
    monkeypatch.setattr(type(mask), "dense", lambda *_: pytest.fail("laid out all pairs"))
    axes = axes_of(mask.draw(q_len=100_000))
    assert max(axes.images[0].get_array().shape) <= 512
    assert "196 x 196 pairs" in axes.get_title()
    assert {text.get_text() for text in axes.figure.legends[0].get_texts()} == {
        "may attend",
        "partly",
        "may not attend",
    }


def test_empty_mask_and_long_title_are_drawn(tmp_path):
    Causal("top_left").draw(tmp_path / "empty.png", q_len=0, kv_len=3)
    assert axes_of(Padding([]).draw(q_len=2)).images[0].get_array().tolist() == [[0, 0], [0, 0]]
    axes = axes_of(GlobalTokens(range(0, 4000, 7)).draw(q_len=4000))
    assert axes.get_title().startswith("GlobalTokens([0, 7,")
    assert " ..." in axes.get_title()


def test_draw_checks_the_mask_before_it_writes(tmp_path):
    with pytest.raises(MaskError):
        Causal().draw(tmp_path / "mask.png", q_len=3, kv_len=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mask.bmp", "mask", "mask.png.exe"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(
        DataError, match=r"picture file: expected a name ending in one of \.pdf, \.png, \.svg, got 'mask"
    ):
        Causal().draw(tmp_path / name)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"picture file: expected an existing folder, got '.*nowhere'\. Make it first\."
    ):
        Causal().draw(tmp_path / "nowhere" / "mask.png")


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "mask.png").mkdir()
    with pytest.raises(DataError, match=r"expected a writable place, got '.*mask\.png' \(.*\)\. Take another folder\."):
        Causal().draw(tmp_path / "mask.png")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    target = tmp_path / "mask.png"
    target.write_bytes(b"old")

    def half(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(DataError, match="No space left on device"):
        Causal().draw(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_without_matplotlib_the_group_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"pip install 'regard\[plot\]'"):
        Causal().draw()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_file_draws_its_own_mask(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "picture.png")])
    runpy.run_module(f"regard.masks.{name}", run_name="__main__")
    told = capsys.readouterr().out.splitlines()
    assert (tmp_path / "picture.png").read_bytes().startswith(STARTS["png"])
    assert "% of the pairs at length 64" in told[1]
    assert told[2] == str(tmp_path / "picture.png")


def test_demonstration_names_its_picture_after_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/window.py"])
    draw_module.demonstrate(BigBird(8))
    assert (tmp_path / "window.png").exists()
    assert capsys.readouterr().out.startswith("BigBird(")


def test_demonstration_ends_with_one_line_when_it_cannot_write(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["window.py", "picture.bmp"])
    with pytest.raises(SystemExit, match="picture file: expected a name ending in one of"):
        draw_module.demonstrate(Causal())
