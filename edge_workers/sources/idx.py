"""An idx archive, the format of MNIST (its description: Y. LeCun, C. Cortes, C. J. C. Burges), plain or .gz.

Two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian uint32, then the values.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from edge_workers.sources.base import Frame, Split
from pipelines.codecs.base import Array
from pipelines.core.capture import SourcePosition
from pipelines.errors import SourceError

MAX_BYTES = 2 << 30
"""Of the images, which are held in memory."""

_UINT8 = 8
_REMEDY = "give an idx archive of uint8 images, such as train-images-idx3-ubyte.gz, and fetch it again if damaged"


class IdxArchive:
    """Images [n, h, w] or [n, h, w, c] of one archive. Raises `SourceError`."""

    recorded = False

    def __init__(self, path: Path, *, streams: int = 1, loop: int = 1) -> None:
        self._images = read_idx(path)
        self._split = Split(str(path), len(self._images), streams, loop)
        self.streams = self._split.streams

    def frames(self, stream: str, after: SourcePosition | None) -> Iterator[Frame]:
        """Its images behind the position `after`."""
        for position, _, index in self._split.positions(stream, after):
            yield Frame(position, self._images[index])


def read_idx(path: Path) -> Array:
    """All images. Raises `SourceError` for what is missing, not idx, truncated or longer than it says."""
    try:
        with path.open("rb") as plain:
            gzipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            return _read(path, cast("BinaryIO", gzip.GzipFile(fileobj=plain)) if gzipped else plain)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} is damaged ({error})", remedy=_REMEDY) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", remedy="correct `source.path`") from error


def _read(path: Path, file: BinaryIO) -> Array:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != bytes((0, 0, _UINT8)) or magic[3] not in (3, 4):
        raise SourceError(f"{path} is not an idx archive of images", remedy=_REMEDY)
    sizes = file.read(4 * magic[3])
    shape = tuple(int(size) for size in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
    size = math.prod(shape)
    if len(shape) != magic[3] or not 0 < size <= MAX_BYTES:
        raise SourceError(f"{path} says that it holds {size} bytes in {shape}", remedy=_REMEDY)
    content = file.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else f"only {len(content)}"
        raise SourceError(f"{path} should hold {size} bytes of images and holds {found}", remedy=_REMEDY)
    return np.frombuffer(content, np.uint8).reshape(shape)
