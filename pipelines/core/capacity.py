"""How many records a second one worker can do, as it says itself and as was seen. Pure.

What a worker notes of itself is the time that a record takes it, waits for a processor included; what it cannot know is
what a limit on its processor leaves it when it is busy without a pause, nor what its neighbours take from it then. So a
rate that was seen while work waited all the time comes before a note, and is kept for a while.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import median

import msgspec

from pipelines.core.lag import GroupLag, PartitionLag, State

WAITING_S = 0.3
"""A worker before which more than this much work lies is not idle."""

BUSY_S, BUSY_MOST_S = 4.0, 10.0
"""A worker must have been busy for so long before its rate counts; the rate is taken over the last of it."""

RATES_S = 12.0
"""After so long with the same partitions the rates, means over 10 s (`core.lag`), are the worker's alone."""

KEPT_S = 3600.0
"""What was seen is believed for so long, then the notes are asked again."""

SEEN_MOST = 64
"""Observations kept of a worker."""


class Capacity(msgspec.Struct, frozen=True):
    """Records a second of one worker: the median over the workers."""

    per_s: float
    measured: bool
    """Seen while work waited; else the workers' own notes."""


class _Worker(msgspec.Struct):
    """What was seen of a worker since its partitions are the same."""

    begun_at: dict[tuple[str, int], int]
    """What it holds, and its offsets when it got that."""
    since_s: float
    seen: deque[tuple[float, int]] = msgspec.field(default_factory=lambda: deque(maxlen=SEEN_MOST))
    """When, and the sum of its offsets, as long as it is busy."""
    begun: bool = False
    """It has begun on every partition that has work for it: until then it fetches, and its model may load."""


class Capacities:
    """What the workers of one group can do. One `see` an observation; as many workers are kept as the group has."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._measured: tuple[float, float] | None = None

    def see(self, at_s: float, group: GroupLag) -> None:
        """Learn from one observation."""
        held: dict[str, list[PartitionLag]] = defaultdict(list)
        for one in group.partitions:
            if one.owner and one.state not in (State.BLOCKED, State.STALLED):
                held[one.owner].append(one)
        before, self._workers = self._workers, {}
        rates: list[float] = []
        for name, partitions in held.items():
            offsets = {(one.topic, one.partition): one.committed for one in partitions}
            worker = before.get(name)
            if worker is None or worker.begun_at.keys() != offsets.keys():
                worker = _Worker(offsets, at_s)
            self._workers[name] = worker
            rate = _busy_rate(worker, at_s, partitions)
            if rate is not None:
                rates.append(rate)
        if rates:
            self._measured = (at_s, median(rates))

    def capacity(self, at_s: float, group: GroupLag) -> Capacity | None:
        """The best that is known; None where nothing is."""
        if self._measured is not None and at_s - self._measured[0] <= KEPT_S:
            # Who does more than was measured can do more: its machine is less busy now.
            return Capacity(max(self._measured[1], self._most_done(at_s, group)), True)
        return noted(group)

    def _most_done(self, at_s: float, group: GroupLag) -> float:
        """Of the workers that have held what they hold for longer than rates are means over."""
        done: dict[str, float] = defaultdict(float)
        for one in group.partitions:
            done[one.owner] += one.out_per_s
        settled = (name for name, worker in self._workers.items() if at_s - worker.since_s >= RATES_S)
        return max((done[name] for name in settled), default=0.0)


def _busy_rate(worker: _Worker, at_s: float, partitions: Sequence[PartitionLag]) -> float | None:
    """Records a second of a worker that has been busy for long enough."""
    seen = worker.seen
    offset = sum(one.committed for one in partitions)
    busy = sum(one.lag_records for one in partitions) > WAITING_S * sum(one.out_per_s for one in partitions) > 0
    if not worker.begun:
        worker.begun = all(
            one.committed > worker.begun_at[one.topic, one.partition] for one in partitions if one.lag_records
        )
        seen.clear()
    if not busy:
        seen.clear()
    seen.append((at_s, offset))
    while len(seen) > 2 and at_s - seen[1][0] >= BUSY_MOST_S:
        seen.popleft()
    span_s = at_s - seen[0][0]
    done = offset - seen[0][1]
    return done / span_s if busy and span_s >= BUSY_S and done > 0 else None


def noted(group: GroupLag) -> Capacity | None:
    """What the workers say that they could do. On partitions where one did nothing yet it has said nothing."""
    of = {one.owner: one.capacity_per_s for one in group.partitions if one.owner and one.capacity_per_s}
    return Capacity(median(of.values()), False) if of else None
