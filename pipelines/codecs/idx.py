"""idx archives, the format of MNIST (its description: Y. LeCun, C. Cortes, C. J. C. Burges), plain or .gz.

Two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian uint32, then the values.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pipelines.codecs.base import Array
from pipelines.errors import SourceError

MAX_BYTES = 2 << 30
"""Of the values, which are held in memory."""

_UINT8 = 8
_REMEDY = "give an idx archive of uint8 such as train-images-idx3-ubyte.gz, and fetch it again if damaged"


def read_idx(path: Path, dimensions: tuple[int, ...] = (1, 3, 4)) -> Array:
    """All values, uint8. Raises `SourceError` for what is missing, not idx, truncated or longer than it says.

    `dimensions` are the numbers of them that will do: 1 for labels, 3 or 4 for images.
    """
    try:
        with path.open("rb") as plain:
            gzipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file = cast("BinaryIO", gzip.GzipFile(fileobj=plain)) if gzipped else plain
            return _read(path, file, dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} is damaged ({error})", remedy=_REMEDY) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", remedy="correct the path") from error


def write_idx(path: Path, values: Array) -> None:
    """Write uint8 values of any shape as a plain archive."""
    header = bytes((0, 0, _UINT8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(header + values.tobytes())


def _read(path: Path, file: BinaryIO, dimensions: tuple[int, ...]) -> Array:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != bytes((0, 0, _UINT8)) or magic[3] not in dimensions:
        wanted = " or ".join(str(number) for number in dimensions)
        raise SourceError(f"{path} is not an idx archive of {wanted} dimensions", remedy=_REMEDY)
    sizes = file.read(4 * magic[3])
    shape = tuple(int(size) for size in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
    size = math.prod(shape)
    if len(shape) != magic[3] or not 0 < size <= MAX_BYTES:
        raise SourceError(f"{path} says that it holds {size} bytes in {shape}", remedy=_REMEDY)
    content = file.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else f"only {len(content)}"
        raise SourceError(f"{path} should hold {size} bytes and holds {found}", remedy=_REMEDY)
    return np.frombuffer(content, np.uint8).reshape(shape)
