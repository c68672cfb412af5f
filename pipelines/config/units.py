"""Durations, sizes, rates and addresses as people write them: `5s`, `16MiB`, `10/s`, `127.0.0.1:9464`."""

import re
from typing import Self

_DURATION_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_SIZE_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER = r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*"  # More digits could overflow a float.
_QUANTITY = re.compile(_NUMBER + r"([a-zA-Z]+)\s*")
_LISTEN = re.compile(r"([A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")

AS_RECORDED = "as recorded"
UNPACED = "as fast as possible"


def _quantity(text: object, units: dict[str, int], what: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not a {what}: write it as `{example}` (units: {', '.join(units)})")
    return round(float(match[1]) * units[match[2]])


class Duration(int):
    """A length of time, in microseconds."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `50ms`, `5s`, `1h`. Raises `ValueError` with the remedy."""
        return cls(_quantity(text, _DURATION_US, "duration", "5s"))

    @property
    def us(self) -> int:
        """Microseconds."""
        return int(self)

    @property
    def ms(self) -> int:
        """Whole milliseconds."""
        return self // 1_000

    @property
    def s(self) -> float:
        """Seconds."""
        return self / 1e6


class Size(int):
    """A number of bytes."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `16MiB`, `2GB`. Raises `ValueError` with the remedy."""
        return cls(_quantity(text, _SIZE_BYTES, "size", "16MiB"))


class Rate:
    """How fast a source releases items, for each of its streams. Not to be changed once made."""

    __slots__ = ("as_recorded", "per_s")

    def __init__(self, per_s: float | None = None, *, as_recorded: bool = False) -> None:
        self.per_s = per_s
        self.as_recorded = as_recorded

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `10/s`, `as recorded`, `as fast as possible`. Raises `ValueError` with the remedy."""
        if text == AS_RECORDED:
            return cls(as_recorded=True)
        if text == UNPACED:
            return cls()
        match = re.fullmatch(_NUMBER + r"/\s*s\s*", text) if isinstance(text, str) else None
        if match is None or not float(match[1]) > 0:
            raise ValueError(f"{text!r} is not a rate: write `10/s`, `{AS_RECORDED}` or `{UNPACED}`")
        return cls(float(match[1]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rate) and (self.per_s, self.as_recorded) == (other.per_s, other.as_recorded)

    def __hash__(self) -> int:
        return hash((self.per_s, self.as_recorded))


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port to listen on; every interface where no host is given. Raises `ValueError` with the remedy."""
    match = _LISTEN.fullmatch(text)
    if match is None or int(match[2]) > 65_535:
        raise ValueError(f"{text!r} is no address to listen on: write it as `127.0.0.1:9464`")
    return match[1].strip("[]"), int(match[2])


def decode_hook(kind: type, value: object) -> object:
    """For msgspec: read the types above from their text."""
    if kind in (Duration, Size, Rate):
        return kind.parse(value)
    raise TypeError(f"{kind.__name__} cannot stand in a pipeline file")


def schema_hook(kind: type) -> dict[str, object]:
    """For msgspec: the JSON Schema of the types above."""
    examples = {Duration: "5s", Size: "16MiB", Rate: "10/s"}
    return {"type": "string", "examples": [examples[kind]]}
