"""Fashion-MNIST: 28 x 28 grey pictures of ten kinds of clothes (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747; MIT).

Splits: the data set's own 10,000 test pictures; of its 60,000 others the last 5,000 validate and the rest trains.
No picture is in two of them (a test compares all pixels).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard._errors import DataError
from regard.recipes.pictures import contained, on_background, tensor_of
from regard.training.sources import Package, fetch

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 28
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the training pixels, from 0 to 1."""

VALIDATION = 5000
_HOME = "usr/share/datasets/fashion-mnist"
FASHION_MNIST = Package(
    registry="debian",
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    licence="MIT",
    megabytes=30.9,
    members=(f"{_HOME}/*.gz",),
)


@dataclass(frozen=True)
class Pictures:
    """One split.

    Attributes:
        images: uint8 (pictures, 28, 28); what is worn is bright on black.
        labels: int64 (pictures,), places among the classes.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Pictures:
        """The first ones only; all for 0."""
        return self if not count else Pictures(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Splits:
    """What is trained on, what decides, and what is reported; and the names of the classes."""

    train: Pictures
    validation: Pictures
    test: Pictures
    classes: tuple[str, ...] = CLASSES


def load(*, download: bool) -> Splits:
    """All of Fashion-MNIST.

    Raises:
        DataError: it is not in the cache and not to be downloaded, or a file of it cannot be read.
    """
    home = fetch(FASHION_MNIST, download=download, recipe="image_classification") / _HOME
    return split(_pictures(home, "train"), _pictures(home, "t10k"))


def split(others: Pictures, test: Pictures, validation: int = VALIDATION) -> Splits:
    """Test as it is; of the others the last `validation` validate."""
    at = len(others) - validation
    return Splits(
        Pictures(others.images[:at], others.labels[:at]), Pictures(others.images[at:], others.labels[at:]), test
    )


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes, as uint8 of the sizes that it names.

    Raises:
        DataError: damaged, or no such file.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        sizes = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
        begins = 4 + 4 * len(sizes)
        values = torch.frombuffer(bytearray(content[begins:]), dtype=torch.uint8)
        if content[:3] != b"\0\0\x08":
            raise DataError(f"{path.name}: expected an IDX file of bytes, got one that begins with {content[:4]!r}")
        return values.reshape(sizes)
    except (OSError, EOFError, zlib.error, IndexError, struct.error, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name}: expected a whole IDX.gz file ({error}). Download it again.") from error


def normalised(images: Tensor) -> Tensor:
    """uint8 (..., 28, 28) to float32 (..., 1, 28, 28) of mean 0 and deviation 1."""
    return ((images.to(torch.float32) / 255.0 - MEAN) / DEVIATION).unsqueeze(-3)


def preprocessed(picture: Image) -> Tensor:
    """A photograph as the data set has them, uint8 (28, 28).

    As Xiao et al. made theirs: grey, the longest side 28, centred, bright on black. A picture with a bright border is
    taken for a photograph on white and inverted.
    """
    values = tensor_of(contained(on_background(picture).convert("L"), SIDE))[0]
    border = torch.cat([values[0], values[-1], values[:, 0], values[:, -1]]).to(torch.float32)
    if float(border.mean()) > 127.5:
        values = 255 - values
    canvas = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    top, left = (SIDE - values.shape[0]) // 2, (SIDE - values.shape[1]) // 2
    canvas[top : top + values.shape[0], left : left + values.shape[1]] = values
    return canvas


def _pictures(home: Path, prefix: str) -> Pictures:
    images, labels = (
        read_idx(home / f"{prefix}-images-idx3-ubyte.gz"),
        read_idx(home / f"{prefix}-labels-idx1-ubyte.gz"),
    )
    if images.shape != (len(labels), SIDE, SIDE):
        raise DataError(f"{prefix}: expected {len(labels)} pictures of {SIDE} x {SIDE}, got {tuple(images.shape)}")
    return Pictures(images, labels.to(torch.int64))
