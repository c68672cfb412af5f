"""Since when the first unprocessed record of each partition waits, with as few looks at the log as will do.

Constraints
- Offsets may hold no record (transaction markers, what was rolled back, what compaction removed): a lag in offsets need
  not mean that anything waits.
- A record is looked at once, however long it waits; what was found empty is not looked at again.
- Where a look gave no answer, what is said is the latest that is sure: the record before, or the moment of the sample.
"""

from collections.abc import Mapping

import msgspec

Place = tuple[str, int]
"""Topic and partition number."""


class Waits(msgspec.Struct, frozen=True):
    """How long a record waits: two moments, microseconds since the Unix epoch."""

    since_us: int
    """Since when, by its item."""
    written_us: int
    """When it was written to the topic."""


class Found(msgspec.Struct, frozen=True):
    """The first record at or after an offset."""

    offset: int
    waits: Waits


class _Known(msgspec.Struct, frozen=True):
    """No record lies from `start` up to `offset`; `waits` is of the record there, None where none was yet."""

    start: int
    offset: int
    waits: Waits | None


class Oldest:
    """Of the partitions of one group."""

    def __init__(self) -> None:
        self._known: dict[Place, _Known] = {}
        self._waits: dict[Place, Waits | None] = {}
        self._asked: dict[Place, tuple[int, int]] = {}

    def wanted(self, standing: Mapping[Place, tuple[int, int]], at_us: int) -> dict[Place, int]:
        """Where to look, given commit and last stable offset of each partition at `at_us`."""
        self._asked = {}
        wanted = {}
        for place, (committed, end) in standing.items():
            known = self._known.get(place)
            start = committed
            if known is not None and known.start <= committed <= known.offset:
                if known.waits is not None:
                    self._waits[place] = known.waits if known.offset < end else None
                    continue
                start = known.offset
            if start >= end:
                self._waits[place] = None
                continue
            self._asked[place] = (committed, end)
            wanted[place] = start
            # In case that no answer comes.
            if self._waits.get(place) is None:
                self._waits[place] = Waits(at_us, at_us)
        return wanted

    def note(self, found: Mapping[Place, Found | None]) -> None:
        """What the look showed; None where there is no record. Places without an answer are left out."""
        for place, record in found.items():
            committed, end = self._asked[place]
            if record is None:
                self._known[place] = _Known(committed, end, None)
                self._waits[place] = None
            else:
                self._known[place] = _Known(committed, record.offset, record.waits)
                # One past the end came after the sample: nothing waited then.
                self._waits[place] = record.waits if record.offset < end else None

    def waits(self, place: Place) -> Waits | None:
        """How long the oldest record waits; None: nothing waits."""
        return self._waits.get(place)
