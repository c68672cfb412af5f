"""Bytes to arrays and back: what a codec is, and the one registry.

Constraints
- An array is uint8, [height, width] (grey) or [height, width, 3] in the order red, green, blue, as most models take it.
- `decode` of any bytes whatsoever gives an array or `UndecodableItem`; it never crashes, and never allocates more than
  `MAX_PIXELS` however large the bytes say they are.
- Codecs are found by entry point only (group `tidegate.codecs`). A record's header names its codec, and headers come
  from outside: they must not be able to name a module to import.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from schemas.headers import Header, Params

__all__ = ["MAX_PIXELS", "Array", "Codec", "decode", "find_codec"]

GROUP = "tidegate.codecs"

MAX_PIXELS = 1 << 25
"""Of one image: a little more than an 8K frame, 100 MB as colour."""

Array = NDArray[np.uint8]


class Codec(Protocol):
    """Turns arrays into payloads and back. One object serves all threads; settings are given when it is made."""

    name: str
    """What a header says in `codec`, and the name of the entry point."""
    content_type: str
    """What a record says in `content-type`."""
    compressed: bool
    """Whether payloads are compressed already, so that the log need not try."""

    def encode(self, array: Array) -> tuple[bytes, Params]:
        """The payload, and what `decode` needs besides. Raises `ConfigError` for a shape or dtype it cannot take."""
        ...

    def decode(self, payload: bytes, params: Params) -> Array:
        """The array, perhaps a read-only view of `payload`. Raises `UndecodableItem`."""
        ...


@cache
def installed() -> dict[str, EntryPoint]:
    """Codecs by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def find_codec(name: str, **settings: Any) -> Codec:
    """The codec called `name`, made with `settings` (such as `quality`). Raises `ConfigError`."""
    point = installed().get(name)
    if point is None:
        raise ConfigError(
            f"there is no codec '{name}'",
            remedy=f"choose one of {', '.join(sorted(installed()))}, or install a package that has it in '{GROUP}'",
        )
    try:
        codec: Codec = point.load()(**settings)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"codec '{name}' cannot be made ({error})", remedy="correct its settings") from error
    return codec


def decode(header: Header, payload: bytes) -> Array:
    """The array of an item, by the codec its header names. `UndecodableItem`; `ConfigError` for an unknown codec."""
    return find_codec(header.codec).decode(payload, header.params)
