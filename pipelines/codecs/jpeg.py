"""JPEG through OpenCV. A camera's own JPEG files are decoded the same way, EXIF orientation applied.

libjpeg fills what a truncated file lacks with grey and calls it an image, and it allocates what the frame header asks
for. So the markers are walked first (ITU-T T.81, annex B): size from the frame header, and the end must be there.
"""

from typing import NamedTuple

import cv2
import numpy as np

from pipelines.codecs.base import MAX_PIXELS, Array
from pipelines.errors import ConfigError, UndecodableItem
from schemas.headers import Params

START = b"\xff\xd8"
END = b"\xff\xd9"
# SOF0 to SOF15, without DHT, JPG and DAC, which lie among them.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_MAX_SEGMENTS = 10_000

# OpenCV reports each damaged image on stderr in several lines. It is ours to report: once, with the item's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class JpegFrame(NamedTuple):
    """What a JPEG's frame header says."""

    height: int
    width: int
    components: int


def read_frame_header(payload: bytes) -> JpegFrame:
    """Size of a complete JPEG without decoding it. Raises `UndecodableItem` for other bytes and truncated ones."""
    if payload[:2] != START:
        raise UndecodableItem("the bytes are not a JPEG")
    frame, at = None, 2
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(payload) or payload[at] != 0xFF:
            break
        marker, length = payload[at + 1], int.from_bytes(payload[at + 2 : at + 4], "big")
        if marker == 0xFF:  # Fill bytes may stand before a marker.
            at += 1
            continue
        if marker in _FRAME_HEADERS and at + 10 <= len(payload):
            height = int.from_bytes(payload[at + 5 : at + 7], "big")
            width = int.from_bytes(payload[at + 7 : at + 9], "big")
            frame = JpegFrame(height, width, payload[at + 9])
        if marker == _START_OF_SCAN:
            # In coded data 0xFF is followed by 0x00 or a restart marker, so an end marker behind here is the end.
            if frame is None or payload.rfind(END, at) < 0:
                break
            return frame
        at += 2 + length
    raise UndecodableItem(f"the JPEG of {len(payload)} bytes is truncated or damaged")


class Jpeg:
    """Lossy; grey arrays stay grey."""

    name = "jpeg"
    content_type = "image/jpeg"
    compressed = True

    def __init__(self, quality: int = 80) -> None:
        if not 1 <= quality <= 100:
            raise ConfigError(f"the quality of codec 'jpeg' is {quality}", remedy="give a number from 1 to 100")
        self.quality = quality

    def encode(self, array: Array) -> tuple[bytes, Params]:
        """A baseline JPEG of [h, w], [h, w, 1] or [h, w, 3] (RGB). Raises `ConfigError` for anything else."""
        grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
        colour = array.ndim == 3 and array.shape[2] == 3
        if array.dtype != np.uint8 or not array.size or not (grey or colour) or max(array.shape[:2]) > 0xFFFF:
            raise ConfigError(
                f"codec 'jpeg' takes uint8 [h, w] or [h, w, 3], not {array.dtype} {array.shape}",
                remedy="use codec 'raw', or convert in the source",
            )
        image = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if colour else array
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1].tobytes(), Params()

    def decode(self, payload: bytes, params: Params) -> Array:
        """[h, w] of a grey JPEG, [h, w, 3] (RGB) of any other. Raises `UndecodableItem`."""
        frame = read_frame_header(payload)
        if not 0 < frame.height * frame.width <= MAX_PIXELS:
            raise UndecodableItem(f"a JPEG of {frame.width} x {frame.height} is not within {MAX_PIXELS} pixels")
        return decode_image(payload)


def decode_image(payload: bytes) -> Array:
    """Any still image that OpenCV reads, [h, w] or [h, w, 3] (RGB), of a size checked before. `UndecodableItem`."""
    try:
        array = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise UndecodableItem(f"OpenCV cannot decode {len(payload)} bytes: {error.err}") from error
    if array is None:
        raise UndecodableItem(f"OpenCV cannot decode {len(payload)} bytes")
    return np.asarray(array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_BGR2RGB), np.uint8)
