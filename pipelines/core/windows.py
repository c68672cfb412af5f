"""Tumbling event-time windows a stream and class, over settled results.

A result belongs to the window of its `capture_us`, whenever it comes: a late one makes a new revision, none is
dropped. `closed` is information: the stream's own event time (the latest capture seen of it) has passed the end of the
window and the lateness allowed. The wall clock plays no part, so a backlog that drains splits nothing.

A `WindowBook` holds the windows of one partition of one site's results
    add ─▶ changed windows ─▶ emit: one revision each, to be written with the offsets of what was added
    add ─▶ starts that were evicted: `recall` them from what was written, then add again
    restore: the windows that were written, after a restart

Memory is bounded. Windows are evicted by start, all of one start together, so that a start is either held whole or
not at all and a new window is never taken for one that was evicted, nor the other way round.
"""

import heapq
import math
from collections.abc import Collection, Iterable, Sequence

import msgspec

from pipelines.errors import ConfigError
from schemas.aggregates import Window
from schemas.results import Result

MAX_WINDOWS = 20_000
"""Held a partition after an emission, and a tenth more before the next: 8 MB at about 400 bytes each. What must fit
is streams x classes x (lateness / size + 2): 600 streams of a partition with 10 classes and a lateness of one window
make 18,000."""

MAX_EVICTED_STARTS = 10_000
"""Starts known to be evicted: 28 hours of 10 s windows, about 1 MB. Before the oldest of them all count as evicted."""


class _Tally(msgspec.Struct):
    """A window as it stands. `revision` is the last one emitted, 0 where none was."""

    stream: str
    label: str
    start_us: int
    count: int = 0
    confidence_ppm_sum: int = 0
    latency_us_sum: int = 0
    revision: int = 0
    closed: bool = False
    changed: bool = False


class _Bucket(msgspec.Struct):
    """All windows of one start."""

    tallies: dict[tuple[str, str], _Tally]
    open: int = 0


class _Clock(msgspec.Struct):
    """A stream's event time, and how many windows keep it in memory."""

    event_time_us: int
    windows: int = 0


class _EvictedStarts:
    """Which starts were evicted: exactly for the latest of them, all of the time before that."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._heap: list[int] = []
        self._all_until: float = -math.inf

    def __contains__(self, start_us: int) -> bool:
        return start_us in self._known or start_us <= self._all_until

    def add(self, start_us: int) -> None:
        self._known.add(start_us)
        heapq.heappush(self._heap, start_us)
        if len(self._heap) > MAX_EVICTED_STARTS:
            oldest = heapq.heappop(self._heap)
            self._known.discard(oldest)
            self._all_until = max(self._all_until, oldest)


class WindowBook:
    """The windows of one partition of one site's results. Times are microseconds since the Unix epoch."""

    def __init__(self, site: str, size_us: int, lateness_us: int, max_windows: int = MAX_WINDOWS) -> None:
        if size_us < 1 or lateness_us < 0:
            raise ConfigError("`windows.size` must be above 0 and `windows.lateness` not below it", remedy="mend them")
        self.site = site
        self.evicted_open = 0
        """Windows evicted before they closed, since there was nothing else to evict: the limit is too low."""
        self._size_us = size_us
        self._lateness_us = lateness_us
        self._max_windows = max_windows
        self._buckets: dict[int, _Bucket] = {}  # By start, least recently touched first.
        self._clocks: dict[str, _Clock] = {}
        self._changed: list[_Tally] = []
        self._held = 0
        self._evicted = _EvictedStarts()

    def __len__(self) -> int:
        """Windows held."""
        return self._held

    @property
    def full(self) -> bool:
        """A tenth more are held than the limit allows: emit now. (At the limit itself every batch would.)"""
        return self._held > self._max_windows + self._max_windows // 10

    def add(self, results: Sequence[Result]) -> frozenset[int]:
        """Count all of the results, or none: then the starts of evicted windows that must be recalled first."""
        size_us = self._size_us
        starts = {result.capture_us // size_us * size_us for result in results}
        evicted = frozenset(start for start in starts if start not in self._buckets and start in self._evicted)
        if evicted:
            return evicted
        for start in sorted(starts):
            self._touch(start)
        for result in results:
            self._count(result, result.capture_us // size_us * size_us)
        return frozenset()

    def recall(self, starts: Collection[int], written: Iterable[Window]) -> None:
        """Take back evicted starts. `written` is all that this book's emissions wrote, in order."""
        found = {(w.start_us, w.stream, w.label): w for w in written if w.start_us in starts}
        for start in sorted(starts):
            self._buckets[start] = _Bucket({})
        for window in found.values():
            self._take(window)

    def restore(self, window: Window) -> None:
        """Take a window that was written before a restart. To be called for each, in order, before anything else.

        A stream's event time becomes the start of its latest window, so it is behind by less than one size: what was
        closed stays so, and only a window that a late result begins may be told closed later than it would have been.
        Raises `ConfigError` for a window of another size.
        """
        if window.size_us != self._size_us:
            raise ConfigError(
                f"topic 'aggregates' holds windows of {window.size_us / 1e6:g} s of site '{self.site}', and "
                f"`windows.size` says {self._size_us / 1e6:g} s",
                remedy="set it back: windows of two sizes would not add up",
            )
        if window.start_us in self._buckets or window.start_us not in self._evicted:
            self._take(window)
            self._trim()

    def emit(self) -> list[Window]:
        """The next revision of every window that changed or closed. Then evict what is held beyond the limit."""
        self._close_passed()
        windows = [self._next_revision(tally) for tally in self._changed]
        self._changed = []
        self._trim()
        return windows

    def _touch(self, start_us: int) -> _Bucket:
        bucket = self._buckets.pop(start_us) if start_us in self._buckets else _Bucket({})
        self._buckets[start_us] = bucket
        return bucket

    def _count(self, result: Result, start_us: int) -> None:
        bucket = self._buckets[start_us]
        tally = bucket.tallies.get((result.stream, result.label))
        if tally is None:
            tally = self._hold(bucket, _Tally(result.stream, result.label, start_us))
        tally.count += 1
        tally.confidence_ppm_sum += round(result.confidence * 1_000_000)
        tally.latency_us_sum += result.settled_us - result.capture_us
        self._note_change(tally)
        clock = self._clocks[result.stream]
        if result.capture_us > clock.event_time_us:
            clock.event_time_us = result.capture_us

    def _hold(self, bucket: _Bucket, tally: _Tally) -> _Tally:
        bucket.tallies[tally.stream, tally.label] = tally
        bucket.open += not tally.closed
        clock = self._clocks.get(tally.stream)
        if clock is None:
            clock = self._clocks[tally.stream] = _Clock(tally.start_us)
        clock.windows += 1
        self._held += 1
        return tally

    def _take(self, window: Window) -> None:
        bucket = self._touch(window.start_us)
        tally = bucket.tallies.get((window.stream, window.label))
        if tally is None:
            tally = self._hold(bucket, _Tally(window.stream, window.label, window.start_us))
        tally.count = window.count
        tally.confidence_ppm_sum = window.confidence_ppm_sum
        tally.latency_us_sum = window.latency_us_sum
        tally.revision = window.revision
        if window.closed:
            self._close(bucket, tally)
        clock = self._clocks[window.stream]
        clock.event_time_us = max(clock.event_time_us, window.start_us)

    def _note_change(self, tally: _Tally) -> None:
        if not tally.changed:
            tally.changed = True
            self._changed.append(tally)

    def _close(self, bucket: _Bucket, tally: _Tally) -> None:
        bucket.open -= not tally.closed
        tally.closed = True

    def _close_passed(self) -> None:
        latest_us = max((clock.event_time_us for clock in self._clocks.values()), default=0)
        for start_us, bucket in self._buckets.items():
            passed_us = start_us + self._size_us + self._lateness_us
            if not bucket.open or passed_us > latest_us:
                continue
            for tally in bucket.tallies.values():
                if not tally.closed and self._clocks[tally.stream].event_time_us >= passed_us:
                    self._close(bucket, tally)
                    self._note_change(tally)

    def _next_revision(self, tally: _Tally) -> Window:
        tally.revision += 1
        tally.changed = False
        return Window(
            site=self.site,
            stream=tally.stream,
            label=tally.label,
            start_us=tally.start_us,
            size_us=self._size_us,
            count=tally.count,
            confidence_ppm_sum=tally.confidence_ppm_sum,
            latency_us_sum=tally.latency_us_sum,
            mean_confidence=tally.confidence_ppm_sum / tally.count / 1e6,
            mean_latency_ms=tally.latency_us_sum / tally.count / 1e3,
            revision=tally.revision,
            closed=tally.closed,
        )

    def _trim(self) -> None:
        """Evict the least recently touched starts that are closed; only where there is none, those that are not."""
        while self._held > self._max_windows:
            closed = next((start for start, bucket in self._buckets.items() if not bucket.open), None)
            self._evict(next(iter(self._buckets)) if closed is None else closed)

    def _evict(self, start_us: int) -> None:
        bucket = self._buckets.pop(start_us)
        self.evicted_open += bucket.open
        self._held -= len(bucket.tallies)
        for tally in bucket.tallies.values():
            clock = self._clocks[tally.stream]
            clock.windows -= 1
            if not clock.windows:
                del self._clocks[tally.stream]
        self._evicted.add(start_us)
