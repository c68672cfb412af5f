"""What a source is, and how one is found.

Constraints
- A source must be able to go on exactly behind any position that it gave: that makes the capture exactly once. It
  must therefore not change (no files added, removed or renamed) as long as positions of it are stored.
- Positions of a stream grow and are unique over all loops.
- A source neither waits nor reads a clock: the producer releases frames at their rate.
"""

import inspect
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pipelines.codecs.base import Array
from pipelines.config.units import Rate
from pipelines.core.capture import SourcePosition, split_positions
from pipelines.errors import SourceError

__all__ = ["Frame", "Source", "SourceFactory", "Split", "open_source"]

GROUP = "tidegate.sources"


class Frame(msgspec.Struct, frozen=True):
    """One frame of one stream."""

    position: SourcePosition
    """Where the stream's source stands with this frame."""
    content: Path | bytes | Array
    """An image file, the bytes of one, or uint8 [h, w] or [h, w, 3] (RGB). Files are read when they are released."""
    recorded_us: int | None = None
    """When it was recorded, from any one zero for all streams; None where that is not known."""


class Source(Protocol):
    """Frames of one or more streams."""

    streams: Sequence[str]
    """Their ids, which become Kafka keys."""
    recorded: bool
    """Whether frames know when they were recorded."""

    def frames(self, stream: str, after: SourcePosition | None) -> Iterator[Frame]:
        """Frames of `stream` behind the position `after`, from the start if None. Raises `SourceError`."""
        ...


class SourceFactory(Protocol):
    """What an entry point of group `tidegate.sources`, or a `module:name`, must be: a class or a function."""

    def __call__(self, path: Path, *, streams: int, loop: int, **options: Any) -> Source:
        """The source at `path`, split over `streams` cameras, played `loop` times (0: without end). `SourceError`."""
        ...


def find_source(kind: str) -> SourceFactory:
    """The source called `kind`: an entry point, or `module:name`. Raises `SourceError`."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    module, _, attribute = kind.partition(":")
    if not attribute and kind not in points:
        raise SourceError(
            f"there is no source '{kind}'",
            remedy=f"choose one of {', '.join(sorted(points))}, or write module:name",
        )
    try:
        factory: SourceFactory = getattr(import_module(module), attribute) if attribute else points[kind].load()
    except (ImportError, AttributeError, ValueError) as error:
        raise SourceError(
            f"source '{kind}' cannot be imported ({error})",
            remedy="write it as module:name, both importable",
        ) from error
    return factory


def open_source(kind: str, path: Path, *, streams: int = 1, loop: int = 1, **options: Any) -> Source:
    """The source, looked at and ready. Raises `SourceError` for what is missing, empty, damaged or misspelt."""
    factory = find_source(kind)
    try:
        inspect.signature(factory).bind(path, streams=streams, loop=loop, **options)
    except TypeError as error:
        raise SourceError(
            f"source '{kind}' refuses its options ({error})", remedy="correct `source.options`"
        ) from error
    return factory(path, streams=streams, loop=loop, **options)


def check_rate(source: Source, rate: Rate) -> None:
    """Raise `SourceError` where `rate` is `as recorded` and the source does not know when its frames were."""
    if rate.as_recorded and not source.recorded:
        raise SourceError("this source has no recorded times", remedy="give `source.rate` such as `10/s`")


class Split:
    """A fixed list of `length` items played as `streams` cameras, `loop` times: what both our sources are."""

    def __init__(self, what: str, length: int, streams: int, loop: int) -> None:
        if length < streams:
            raise SourceError(f"{what} has {length} items for {streams} streams", remedy="lower `source.streams`")
        digits = max(2, len(str(streams - 1)))
        self.streams = [f"cam-{number:0{digits}}" for number in range(streams)]
        self._number = {stream: number for number, stream in enumerate(self.streams)}
        self._what, self._length, self._loop = what, length, loop

    def positions(self, stream: str, after: SourcePosition | None) -> Iterator[tuple[int, int, int]]:
        """Behind `after`: position, round and index of each item of `stream`."""
        if isinstance(after, str):
            raise SourceError(
                f"stream '{stream}' stands at '{after}', which is no position in {self._what}",
                remedy="run another source under another `site`",
            )
        number = self._number[stream]
        for position in split_positions(self._length, len(self.streams), number, self._loop, after):
            yield position, *divmod(position, self._length)
