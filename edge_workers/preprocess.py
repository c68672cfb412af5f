"""A frame to the payload that travels. JPEG files that need nothing travel unchanged; all else is encoded anew."""

import re
from pathlib import Path

import cv2
import msgspec
import numpy as np

from pipelines.codecs.base import MAX_PIXELS, Array, Codec
from pipelines.codecs.jpeg import START, Jpeg, decode_image, read_frame_header
from pipelines.errors import UndecodableItem
from schemas.headers import Params
from schemas.topics import RECORD_BYTES_MOST

FILE_BYTES_MOST = 64 << 20
"""Of an image file that is read at all."""

PAYLOAD_BYTES_MOST = RECORD_BYTES_MOST - (64 << 10)
"""What a record's headers and its batch need besides stays under 64 KiB."""

UNREADABLE = "unreadable"
TOO_LARGE = "too_large"

_JPEG = Jpeg()
_NETPBM = re.compile(rb"P[56]\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(\d{1,9})\s")


class Prepared(msgspec.Struct, frozen=True):
    """What travels."""

    payload: bytes
    codec: Codec
    params: Params


class Refused(msgspec.Struct, frozen=True):
    """A frame that cannot travel. `reason` is `unreadable` or `too_large`, `why` is for people."""

    reason: str
    why: str
    content: bytes = b""
    """The file's bytes, as far as they were read."""


class Preprocess:
    """Resizes, makes grey and encodes, as asked. Sizes are width and height in pixels."""

    def __init__(
        self,
        codec: Codec,
        *,
        resize: tuple[int, int] | None = None,
        grey: bool = False,
        payload_bytes_most: int = PAYLOAD_BYTES_MOST,
    ) -> None:
        self.codec = codec
        self._payload_bytes_most = payload_bytes_most
        self._resize = resize
        self._grey = grey

    def __call__(self, content: Path | bytes | Array) -> Prepared | Refused:
        """The payload of a frame's content. Raises `ConfigError` where the codec cannot take such arrays."""
        if isinstance(content, Path):
            try:
                if content.stat().st_size > FILE_BYTES_MOST:
                    return Refused(TOO_LARGE, f"{content} has more than {FILE_BYTES_MOST} bytes")
                content = content.read_bytes()
            except OSError as error:
                return Refused(UNREADABLE, str(error))
        try:
            prepared = self._prepare(content)
        except UndecodableItem as error:
            return Refused(UNREADABLE, str(error), content if isinstance(content, bytes) else b"")
        if len(prepared.payload) > self._payload_bytes_most:
            excess = f"{len(prepared.payload)} bytes are over the {self._payload_bytes_most} that a record may have"
            return Refused(TOO_LARGE, f"{excess}: give `encode.resize`")
        return prepared

    def _prepare(self, content: bytes | Array) -> Prepared:
        if isinstance(content, np.ndarray):
            return self._encode(content)
        return Prepared(content, _JPEG, Params()) if self._needs_nothing(content) else self._encode(_decode(content))

    def _needs_nothing(self, content: bytes) -> bool:
        if not content.startswith(START):
            return False
        if self._resize is None and not self._grey:
            return True  # Damaged or not: whoever decodes it will see.
        try:
            frame = read_frame_header(content)
        except UndecodableItem:
            return False
        return self._resize in (None, (frame.width, frame.height)) and (not self._grey or frame.components == 1)

    def _encode(self, array: Array) -> Prepared:
        if self._grey and array.ndim == 3:
            array = _as_uint8(cv2.cvtColor(array, cv2.COLOR_RGB2GRAY)) if array.shape[2] == 3 else array[..., 0]
        if self._resize is not None and self._resize != (array.shape[1], array.shape[0]):
            shrinks = self._resize[0] < array.shape[1]
            # Area averaging does not alias where pixels are thrown away.
            array = _as_uint8(
                cv2.resize(array, self._resize, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            )
        payload, params = self.codec.encode(array)
        return Prepared(payload, self.codec, params)


def _as_uint8(image: object) -> Array:
    return np.asarray(image, np.uint8)


def _decode(content: bytes) -> Array:
    """A still image. Raises `UndecodableItem`, also for formats whose size cannot be told before they are decoded."""
    if content.startswith(START):
        return _JPEG.decode(content, Params())
    width, height = _size(content)
    if not 0 < width * height <= MAX_PIXELS:
        raise UndecodableItem(f"an image of {width} x {height} is not within {MAX_PIXELS} pixels")
    return decode_image(content)


def _size(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG, BMP or binary netpbm image, from its first bytes; zeros for anything else."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content.startswith(b"BM"):
        height = int.from_bytes(content[22:26], "little", signed=True)  # Negative where rows run from the top down.
        return int.from_bytes(content[18:22], "little"), abs(height)
    netpbm = _NETPBM.match(content)
    return (int(netpbm[1]), int(netpbm[2])) if netpbm else (0, 0)
