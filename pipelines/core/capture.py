"""What has been captured: the next seq and the source position of every stream, and where each goes on.

A position that was stored is the truth: seqs go on densely behind it, and the source goes on exactly behind its last
item. A stream without one begins a new epoch at seq 0; nothing else ever begins an epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from schemas.positions import StreamPosition

__all__ = ["SourcePosition"]

SourcePosition = int | str
"""Opaque to all but the source that gave it."""


class Capture:
    """The streams of one producer between two commits of their positions."""

    def __init__(self, streams: Sequence[str], stored: Mapping[str, StreamPosition], epoch: int) -> None:
        """`epoch` is for streams that have nothing stored: milliseconds since the Unix epoch, now."""
        self._positions = {stream: stored.get(stream) or StreamPosition(epoch, 0) for stream in streams}
        self._changed: set[str] = set()

    def after(self, stream: str) -> SourcePosition | None:
        """The source position of the last item captured, behind which the source goes on; None: from the start."""
        return self._positions[stream].source_position

    def take(self, stream: str, source_position: SourcePosition) -> tuple[int, int]:
        """Epoch and seq of the stream's next item, which lies at `source_position` in its source."""
        at = self._positions[stream]
        self._positions[stream] = StreamPosition(at.epoch, at.next_seq + 1, source_position)
        self._changed.add(stream)
        return at.epoch, at.next_seq

    def changed(self) -> dict[str, StreamPosition]:
        """Positions to be stored together with the items taken since the last call."""
        changed = {stream: self._positions[stream] for stream in sorted(self._changed)}
        self._changed.clear()
        return changed


def split_positions(length: int, streams: int, stream: int, loop: int, after: int | None) -> Iterator[int]:
    """Positions of camera `stream` of `streams` that share `length` items: item i goes to camera i modulo `streams`.

    The position of item i in round k is k * length + i, so it grows and is unique over all rounds. `loop` rounds are
    played, without end if 0; those up to `after`, included, are left out. All counts from 0, `streams <= length`.
    """
    first_round, first = divmod(0 if after is None else after + 1, length)
    first += (stream - first) % streams
    for played in count(first_round) if loop == 0 else range(first_round, loop):
        base = played * length
        yield from range(base + first, base + length, streams)
        first = stream
