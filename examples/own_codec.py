"""A codec of your own: deflate, which is lossless. Codecs are found by entry point, so it lives in a package of yours:

    [project.entry-points."tidegate.codecs"]
    deflate = "own_codec:Deflate"

Then `encode: {codec: deflate}` in the pipeline file. Edge and cloud workers both need the package.
`decode` is given bytes from anywhere: it must answer with an array or `UndecodableItem`, and bound what it allocates.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from pipelines.codecs.base import MAX_PIXELS
from pipelines.errors import UndecodableItem
from schemas.headers import Params


class Deflate:
    """The bytes of an array, compressed one item at a time."""

    name = "deflate"
    content_type = "application/zlib"
    compressed = True

    def encode(self, array: NDArray[np.uint8]) -> tuple[bytes, Params]:
        """The payload, and the shape that `decode` needs."""
        return zlib.compress(array.tobytes(), level=1), Params(shape=array.shape)

    def decode(self, payload: bytes, params: Params) -> NDArray[np.uint8]:
        """The array. Raises `UndecodableItem`."""
        size = math.prod(params.shape) if len(params.shape) in (2, 3) and min(params.shape) > 0 else 0
        if not 0 < size <= 3 * MAX_PIXELS:
            raise UndecodableItem(f"shape {params.shape} is not an image")
        try:
            stream = zlib.decompressobj()
            content = stream.decompress(payload, size + 1)
        except zlib.error as error:
            raise UndecodableItem(f"not deflate: {error}") from error
        if len(content) != size or not stream.eof:
            raise UndecodableItem(f"not the bytes of shape {params.shape}")
        return np.frombuffer(content, np.uint8).reshape(params.shape)


if __name__ == "__main__":
    codec = Deflate()
    payload, params = codec.encode(np.zeros((28, 28), np.uint8))
    print(len(payload), "bytes for", codec.decode(payload, params).shape)
