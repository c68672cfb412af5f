"""When items are released: the streams of a source merged into one order of time. Pure; times are microseconds.

Constraints
- No drift: an item's time is computed from the start and its number, never from the item before it.
- An item is never released early. A producer that fell behind releases late, as fast as it can, until it has caught
  up by at most `CATCH_UP_US`; what it is behind beyond that is never made up: the whole schedule moves (`moved_us`).
- Streams of one rate are spread evenly over their interval, as cameras are that nobody synchronised.
"""

import heapq
from typing import Generic, TypeVar

CATCH_UP_US = 1_000_000

T = TypeVar("T")


class Schedule(Generic[T]):
    """Holds the next item of each stream and says which is due."""

    def __init__(self, streams: int, *, per_s: float | None, as_recorded: bool = False) -> None:
        """`per_s` items a second from each stream; None: as fast as possible, or by each item's recorded time."""
        self._streams = streams
        self._per_s = per_s
        self._paced = per_s is not None or as_recorded
        self._as_recorded = as_recorded
        self._given = [0] * streams
        self._waiting: list[tuple[int, int, T]] = []
        self._start_us: int | None = None
        self.moved_us = 0
        """By how much the schedule has been given up so far."""

    def add(self, stream: int, item: T, recorded_us: int | None = None) -> None:
        """The next item of `stream` (0 .. streams - 1), which has none waiting; `recorded_us` from any one zero."""
        number = self._given[stream]
        self._given[stream] = number + 1
        if self._as_recorded:
            offset = recorded_us or 0
        elif self._per_s is not None:
            offset = round((number + stream / self._streams) * 1e6 / self._per_s)
        else:
            offset = number
        heapq.heappush(self._waiting, (offset, stream, item))

    def wait_us(self, now_us: int) -> int | None:
        """How long until `take` may be called; 0: now; None: nothing waits. The first call starts the schedule."""
        if not self._waiting:
            return None
        if not self._paced:
            return 0
        offset = self._waiting[0][0]
        if self._start_us is None:
            self._start_us = now_us - offset
        behind_us = now_us - self._start_us - offset
        if behind_us > CATCH_UP_US:
            self._start_us += behind_us - CATCH_UP_US
            self.moved_us += behind_us - CATCH_UP_US
        return max(-behind_us, 0)

    def take(self) -> tuple[int, T]:
        """The stream and the item that come first. Give the stream its next item before anything else."""
        _, stream, item = heapq.heappop(self._waiting)
        return stream, item
