"""How much a worker may have read and not yet done: credit in records and bytes, with hysteresis.

Constraints
- Pure. A worker that keeps up costs nothing here but a sum of sizes: what is held is a row of polls, done in order.
- `has_room` says whether reading ahead is worth it. Where it is not, a worker polls all the same, for one record at a
  time and not often, so that its client hears of rebalances while a model takes long.
- What then still gathers is bounded: a partition that has used up its equal share of the whole is paused, alone.
  Pausing throws away what the client has prefetched of it (20,000 records cost 76 MB on the wire with 40 pauses, 4 MB
  with none), so it goes on only when three quarters of its share are free again.
- What is held never exceeds the whole by more than one poll.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from operator import methodcaller

import msgspec

from pipelines.transport.base import Partition, Record

RESUME_BELOW = 0.25
"""Of a share."""


class CreditLimits(msgspec.Struct, frozen=True):
    """Of one worker, beside the client's own prefetch (16 MiB)."""

    ahead_records: int = 1_000
    ahead_bytes: int = 8 << 20
    """Of what is held, when no more is read ahead: two batches of small records, or a few of photographs."""
    records: int = 20_000
    bytes: int = 64 << 20
    """The whole."""


_VALUE = methodcaller("value")


class _Poll:
    """Records of one poll that are not all done."""

    __slots__ = ("done", "records", "size_bytes")

    def __init__(self, records: Sequence[Record], size_bytes: int) -> None:
        self.records, self.size_bytes, self.done = records, size_bytes, 0


class Credit:
    """What is held, and which partitions are paused for it."""

    def __init__(self, limits: CreditLimits | None = None) -> None:
        self._limits = limits or CreditLimits()
        self._polls: deque[_Poll] = deque()
        self._partitions: set[Partition] = set()
        self._paused: set[Partition] = set()
        self.records = self.bytes = 0
        """Held."""

    @property
    def has_room(self) -> bool:
        """Whether to read ahead."""
        return self.records < self._limits.ahead_records and self.bytes < self._limits.ahead_bytes

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """These are read from now on; a client begins with none of them paused."""
        self._partitions.update(partitions)
        self._paused.difference_update(partitions)

    def revoked(self, partitions: Iterable[Partition]) -> None:
        """These are gone, and what was read of them is dropped."""
        gone = set(partitions)
        self._partitions -= gone
        self._paused -= gone
        held, self._polls = self._polls, deque()
        self.records = self.bytes = 0
        for poll in held:
            left = [r for r in poll.records[poll.done :] if (r.topic(), r.partition()) not in gone]
            if left:
                self.fetched(left)

    def fetched(self, records: Sequence[Record]) -> None:
        """These were read."""
        # For every record read: the quickest there is.
        size_bytes = sum(map(len, filter(None, map(_VALUE, records))))
        self._polls.append(_Poll(records, size_bytes))
        self.records += len(records)
        self.bytes += size_bytes

    def done(self, count: int) -> None:
        """So many more are done, in the order of reading."""
        while count and self._polls:
            poll = self._polls[0]
            left = len(poll.records) - poll.done
            if count < left:
                poll.done += count
                self.records -= count
                return
            count -= left
            self.records -= left
            self.bytes -= poll.size_bytes
            self._polls.popleft()

    def dropped(self) -> None:
        """All that is held is given up."""
        self._polls.clear()
        self.records = self.bytes = 0

    def changes(self) -> tuple[list[Partition], list[Partition]]:
        """Which partitions are to be paused and which resumed, now; each is told once."""
        shares = max(len(self._partitions), 1)
        share_records, share_bytes = self._limits.records / shares, self._limits.bytes / shares
        if not self._paused and self.records < share_records and self.bytes < share_bytes:
            return [], []
        count: Counter[Partition] = Counter()
        size: Counter[Partition] = Counter()
        for poll in self._polls:
            for record in poll.records[poll.done :]:
                partition = (record.topic(), record.partition())
                count[partition] += 1
                size[partition] += len(record.value() or b"")
        used = {p: max(count[p] / share_records, size[p] / share_bytes) for p in self._partitions}
        # Partitions that come make every share smaller, but not what the others have used already.
        is_full = self.records >= self._limits.records or self.bytes >= self._limits.bytes
        pause = sorted(p for p in self._partitions - self._paused if is_full or used[p] >= 1)
        resume = [] if is_full else sorted(p for p in self._paused if used[p] <= RESUME_BELOW)
        self._paused.update(pause)
        self._paused.difference_update(resume)
        return pause, resume

    @property
    def paused(self) -> frozenset[Partition]:
        """Those that do not flow now."""
        return frozenset(self._paused)
