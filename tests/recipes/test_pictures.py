"""Pictures that people bring."""

import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from regard._errors import DataError
from regard.recipes import pictures
from regard.recipes.pictures import on_background, read_picture, tensor_of


def saved(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *((mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((mode, "tif") for mode in ("CMYK", "YCbCr", "I", "F")),
    ],
)
def test_every_kind_of_pixel_is_read(tmp_path, mode, ending):
    source = Image.new("I" if mode in {"I;16", "I", "F"} else "RGB", (5, 3))
    read = read_picture(saved(source.convert(mode), tmp_path / f"a.{ending}"))
    assert (read.mode, read.size) == ("RGBA", (5, 3))


def test_grey_of_sixteen_bits_keeps_its_brightness(tmp_path):
    picture = Image.new("I;16", (2, 1))
    picture.putpixel((0, 0), 65535)
    picture.putpixel((1, 0), 32768)
    values = tensor_of(read_picture(saved(picture, tmp_path / "a.png")))
    assert values[0, 0].tolist() == [255, 127]


def test_transparency_shows_the_background(tmp_path):
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    flat = tensor_of(on_background(read_picture(saved(picture, tmp_path / "a.png"))))
    assert flat[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]


def test_a_turned_photograph_stands_upright(tmp_path):
    picture = Image.new("RGB", (4, 2))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").size == (2, 4)


def test_tensor_has_channels_first():
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((1, 0), (1, 2, 3))
    assert tensor_of(picture).tolist() == [[[0, 1]], [[0, 2]], [[0, 3]]]
    assert tensor_of(picture).dtype == torch.uint8


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_picture_is_named(tmp_path):
    text = tmp_path / "a.png"
    text.write_text("hello")
    assert "there is no such file" in refused(tmp_path / "b.png")
    assert "got a folder" in refused(tmp_path)
    assert "expected a picture that Pillow reads" in refused(text)
    (tmp_path / "empty.png").write_bytes(b"")
    assert "expected a picture that Pillow reads" in refused(tmp_path / "empty.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_picture_that_was_cut_short_is_refused(tmp_path, ending, part):
    path = tmp_path / f"a.{ending}"
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    Image.fromarray(noise.numpy()).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refused(path)


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(bomb)
    assert "pixels" in refused(tmp_path / "a.png")


def test_the_limit_is_ours_and_not_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 11)
    message = refused(saved(Image.new("L", (4, 3)), tmp_path / "a.png"))
    assert "expected at most 11 pixels, got 4 x 3" in message
