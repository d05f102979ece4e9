"""Pictures that people bring: any file that Pillow reads, or a clear word on why it cannot be used."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard._errors import DataError, DependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 100_000_000
"""Larger pictures are refused: decoded they would take gigabytes."""


def read_picture(path: Path, content: bytes | None = None) -> Image:
    """The first frame of a picture, upright, as RGBA of 8 bits.

    Grey, palettes, CMYK and 16 bits are converted; a picture without transparency becomes opaque. `content` is the
    picture where it is in no file; then `path` is only what errors call it.

    Raises:
        DataError: no such file, a folder, no picture, cut short, or more than `MOST_PIXELS` pixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DependencyError("pillow", "train") from error
    if content is None:
        _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if content is None else BytesIO(content)) as opened:
                _check_size(path, *opened.size)
                upright = ImageOps.exif_transpose(opened)
                return _of_eight_bits(upright).convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{str(path)!r}: expected a picture that Pillow reads; {_cause(error)}") from error
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for files that are cut or bent
        raise DataError(f"{str(path)!r}: the picture is damaged or cut short ({_cause(error)}).") from error


def on_background(picture: Image, colour: tuple[int, int, int] = (255, 255, 255)) -> Image:
    """An RGBA picture laid on a background, as RGB."""
    from PIL import Image

    below = Image.new("RGBA", picture.size, (*colour, 255))
    return Image.alpha_composite(below, picture).convert("RGB")


def contained(picture: Image, side: int) -> Image:
    """Scaled so that the longer side is `side` pixels; the shorter one keeps at least one."""
    from PIL import Image

    factor = side / max(picture.size)
    width, height = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def tensor_of(picture: Image) -> Tensor:
    """uint8 (channels, height, width)."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.reshape(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


def _of_eight_bits(picture: Image) -> Image:
    """Grey of 16 or 32 bits is cut at 255 by `convert`, so it is scaled first."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    wide: Any = picture.convert("F")
    highest = float(wide.getextrema()[1])
    most = 65535.0 if highest > 255.0 else 255.0 if highest > 1.0 else 1.0

    def scaled(value: Any) -> Any:
        return value * (255.0 / most) + 0.0  # Pillow wants exactly this form

    return wide.point(scaled).convert("L")


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{str(path)!r}: there is no such file. Give the path of a picture (PNG, JPEG, WebP, ...).")
    if not path.is_file():
        raise DataError(f"{str(path)!r}: expected a picture, got a folder. Give one file.")


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{str(path)!r}: expected at most {MOST_PIXELS:,} pixels, got {width:,} x {height:,}. Make it smaller."
        )
    if not width * height:
        raise DataError(f"{str(path)!r}: the picture has no pixels ({width} x {height}).")


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
