"""What was read and is not done: the next batch of it, and the one item that makes a batch fail.

Constraints
- Pure. Order within a partition is kept: batches are taken in the order of reading, and the halves of one that failed
  before anything else.
- A batch is what has come while the one before was done, up to `records`, and up to what by its measured cost is done
  within `budget_us`; it waits for more only where `linger_us` says so.
- A failing item is found by halving, in log2(n) steps beside the work itself, and told after `attempts` tries alone.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from pipelines.core.work import Mean
from pipelines.transport.base import Partition, Record


class BatchLimits(msgspec.Struct, frozen=True):
    """How much is taken at a time."""

    records: int = 500
    budget_us: int = 250_000
    """A quarter of a second: with the commit, a partition that is asked back goes within half a second."""
    linger_us: int = 0
    """Where a model gains much by large batches."""
    attempts: int = 2
    """Of an item by itself."""


class Batches:
    """The records of one worker, from read to done."""

    def __init__(self, limits: BatchLimits | None = None) -> None:
        self._limits = limits or BatchLimits()
        self._waiting: deque[Sequence[Record]] = deque()
        self._since_us = 0
        self._suspects: list[Sequence[Record]] = []
        """Parts of batches that failed, the first last."""
        self._attempts = 0
        self._cost = Mean()
        self.doing: Sequence[Record] = ()
        """Taken, and neither done nor failed."""

    def __len__(self) -> int:
        """Records that wait."""
        return sum(map(len, self._waiting)) + sum(map(len, self._suspects))

    def add(self, records: Sequence[Record], now_us: int) -> None:
        """These were read, behind all others."""
        if not self._waiting:
            self._since_us = now_us
        self._waiting.append(records)

    def due_us(self) -> int | None:
        """When the next batch may be taken; 0: at once, None: nothing waits."""
        if self._suspects:
            return 0
        if not self._waiting:
            return None
        linger_us = self._limits.linger_us
        return self._since_us + linger_us if linger_us and len(self) < self.most else 0

    @property
    def most(self) -> int:
        """Records of a batch now."""
        limits, cost_us = self._limits, self._cost.value
        return limits.records if cost_us <= 0 else max(1, min(limits.records, int(limits.budget_us / cost_us)))

    def take(self, now_us: int) -> Sequence[Record]:
        """The next batch. `due_us` must have come."""
        if self._suspects:
            self.doing = self._suspects.pop()
            return self.doing
        most = self.most
        batch = self._waiting.popleft()
        if len(batch) < most and self._waiting:
            batch = list(batch)
            while self._waiting and len(batch) < most:
                batch += self._waiting.popleft()
        if len(batch) > most:
            self._waiting.appendleft(batch[most:])
            batch = batch[:most]
        self._since_us = now_us
        self.doing = batch
        return batch

    def done(self, took_us: int, now_us: int) -> None:
        """The batch was done, in so much time."""
        self._cost.add(now_us / 1e6, len(self.doing), took_us)
        self.doing, self._attempts = (), 0

    def failed(self) -> Record | None:
        """The batch failed: its halves come next. One item alone is tried again; the item, once that was enough."""
        doing, self.doing = self.doing, ()
        if len(doing) > 1:
            half = len(doing) // 2
            self._suspects += [doing[half:], doing[:half]]
            return None
        self._attempts += 1
        if self._attempts < self._limits.attempts:
            self._suspects.append(doing)
            return None
        self._attempts = 0
        return doing[0]

    def drop(self, partitions: set[Partition]) -> None:
        """Forget what was read of these."""

        def left(records: Sequence[Record]) -> list[Record]:
            return [record for record in records if (record.topic(), record.partition()) not in partitions]

        self._waiting = deque(filter(None, map(left, self._waiting)))
        self._suspects = list(filter(None, map(left, self._suspects)))
        self._attempts = 0

    def clear(self) -> None:
        """Forget all; what was learnt of its cost stays."""
        self._waiting.clear()
        self._suspects.clear()
        self.doing, self._attempts = (), 0
