"""An array's bytes as they lie in memory (row by row): for tiny images, which batch compression shrinks better."""

import math

import numpy as np

from pipelines.codecs.base import MAX_PIXELS, Array
from pipelines.errors import ConfigError, UndecodableItem
from schemas.headers import Params

MAX_DIMENSIONS = 4


class Raw:
    """Shape and dtype stand in the header."""

    name = "raw"
    content_type = "application/octet-stream"
    compressed = False

    def encode(self, array: Array) -> tuple[bytes, Params]:
        """The bytes of a uint8 array. Raises `ConfigError` for another dtype."""
        if array.dtype != np.uint8 or not 1 <= array.ndim <= MAX_DIMENSIONS or not array.size:
            raise ConfigError(
                f"codec 'raw' takes uint8 arrays of 1 to {MAX_DIMENSIONS} dimensions, not {array.dtype} {array.shape}",
                remedy="convert them in the source",
            )
        return array.tobytes(), Params(shape=array.shape)

    def decode(self, payload: bytes, params: Params) -> Array:
        """A read-only view of `payload`. Raises `UndecodableItem` where the shape does not say exactly its bytes."""
        shape = params.shape
        if params.dtype != "uint8":
            raise UndecodableItem(f"raw items are uint8, not '{params.dtype[:20]}'")
        if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1 or len(payload) > 3 * MAX_PIXELS:
            raise UndecodableItem(f"{len(payload)} raw bytes of {len(shape)} dimensions are not an item")
        if math.prod(shape) != len(payload):
            raise UndecodableItem(f"{len(payload)} raw bytes are not of shape {shape}")
        return np.frombuffer(payload, np.uint8).reshape(shape)
