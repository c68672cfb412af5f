"""Consume, process, produce: one stage of the flow on one cluster, exactly once.

Constraints
- What a stage makes of a batch, and the offsets of that batch, are written in one transaction or not at all.
- The transaction is begun when its records are ready, so it is open for milliseconds however slow the model is.
- Pending work is bounded in time (`commit_interval_ms`), records and bytes; then it is written before more is read.
- A refusal never loses or doubles: `Aborted` and `Fenced` drop the pending work, `start` makes the coordinator decide
  what became of the transaction, and the stage goes on from what is committed.

Operation
    poll ─▶ Stage.process ─▶ pending ─▶ Transactions.write (every commit_interval_ms, or when full, or before a revoke)
                 ▲ Stage.tick, at least every `idle_ms`

A stage keeps its state by partition and must be able to restore it from what it is told in `assigned`.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter, methodcaller
from typing import Protocol

import msgspec
import structlog

from pipelines.core.progress import Doing
from pipelines.core.work import WorkMeans
from pipelines.errors import BrokerError, Fenced, TidegateError, TransportError
from pipelines.observe import metrics
from pipelines.observe.instruments import Instruments
from pipelines.observe.meters import Counts
from pipelines.transport.base import Aborted, Cluster, Commit, Disconnected, OutOfRange, OutRecord, Partition, Record

log = structlog.get_logger("tidegate.stage")

_TOPIC, _TOPIC_READ = attrgetter("topic"), methodcaller("topic")


class Step(msgspec.Struct, frozen=True):
    """What a stage made: records to be written, and where its group goes on, together."""

    records: Sequence[OutRecord] = ()
    offsets: Mapping[Partition, Commit] = {}
    counts: Counts = {}
    """Counted when that is committed."""


NOTHING = Step()


class Stage(Protocol):
    """One stage. All calls come from one thread; `now_us` is the wall clock, microseconds since the Unix epoch."""

    topics: Sequence[str]
    """What it reads."""

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """These partitions are read from these commits on: forget what was known of them, restore what is needed."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """These partitions are gone, all work on them written or dropped: forget them."""
        ...

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Make something of a batch: records of several partitions, in order within each."""
        ...

    def tick(self, now_us: int) -> Step:
        """Called often, with or without records: what is due by the clock."""
        ...

    def close(self) -> None:
        """The end: release what is held."""
        ...


class StageLimits(msgspec.Struct, frozen=True):
    """How much may be pending, and how long a stage waits."""

    commit_interval_ms: int = 50
    batch_records: int = 500
    pending_records: int = 20_000
    """Written records waiting for the commit."""
    pending_bytes: int = 8 << 20
    """At 70 MB/s and more a commit of 8 MiB stays under 120 ms."""
    idle_ms: int = 10
    """Longest wait for a record: how late `tick` may be."""
    retry_first_s: float = 0.1
    retry_most_s: float = 2.0
    retries: int = 60
    """In a row, without a success between; waits double up to `retry_most_s`. Two minutes, then the process ends with
    the error and its supervisor starts it anew."""


def offsets_after(records: Sequence[Record]) -> dict[Partition, Commit]:
    """The commits that say all of `records` is done."""
    return {(record.topic(), record.partition()): Commit(record.offset() + 1) for record in records}


REJOIN_EVERY = 2
"""Failures in a row after which the group is joined anew: a client can lose its coordinator for good."""


class StageRunner:
    """Runs one stage until `stop` is set."""

    def __init__(
        self,
        stage: Stage,
        cluster: Cluster,
        *,
        group: str,
        transactional_id: str,
        stop: threading.Event,
        limits: StageLimits | None = None,
        name: str = "",
        notes: bool = False,
        instruments: Instruments | None = None,
    ) -> None:
        """`name` is what the group knows this worker as.

        `notes`: commits tell how fast it is (see `core.work`). Not for a stage that keeps something of its own in them.
        """
        self._stage = stage
        self._signs = instruments or Instruments()
        self._meters = self._signs.meters
        self._name = name
        self._means = WorkMeans() if notes and name else None
        self._counts: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._limits = limits or StageLimits()
        self._stop = stop
        self._records: list[OutRecord] = []
        self._offsets: dict[Partition, Commit] = {}
        self._pending_bytes = 0
        self._pending_since_s = 0.0
        self._failures = 0
        self._dropped = ""
        self._writer = cluster.transactions(transactional_id)
        self._writer.start()
        self._join = partial(cluster.group_reader, group, stage.topics, self, name=name)
        self._reader = self._join()
        self._held: set[Partition] = set()
        self._meters.watch(metrics.HELD, lambda: len(self._held))

    def run(self) -> None:
        """Work until stopped. Raises `OutOfRange` where retention removed what was not read, and what lasts."""
        try:
            while not self._stop.is_set():
                try:
                    self._signs.at(Doing.READING)
                    if self._dropped:
                        self._go_back()
                    self._turn()
                except OutOfRange:
                    raise
                except (TransportError, BrokerError, Fenced) as error:
                    self._wait_after(error)
                    if isinstance(error, Disconnected) or self._failures % REJOIN_EVERY == 0:
                        self._rejoin()
            self._write_pending()
        finally:
            self._reader.close()
            self._writer.close()
            self._stage.close()

    def _turn(self) -> None:
        records = self._reader.poll(self._limits.batch_records, self._limits.idle_ms / 1000)
        if self._dropped:
            return  # A rebalance within poll dropped pending work: what was just read is read again.
        began_s = time.perf_counter()
        self._signs.at(Doing.WORKING)
        now_us = time.time_ns() // 1000
        if records:
            self._add(self._stage.process(records, now_us))
            self._count_batch(records, time.perf_counter() - began_s)
        else:
            self._signs.unread(some=bool(self._held) and self._reader.has_unread)
        self._add(self._stage.tick(now_us))
        if self._due():
            self._write_pending()
        self._meters.add(metrics.BUSY_SECONDS, time.perf_counter() - began_s)

    def _count_batch(self, records: Sequence[Record], took_s: float) -> None:
        self._signs.read()
        topics = self._stage.topics
        # Looking at each record is only for those that can come from several topics.
        read = {topics[0]: len(records)} if len(topics) == 1 else Counter(map(_TOPIC_READ, records))
        for topic, count in read.items():
            self._meters.add(metrics.READ, count, topic)
        self._meters.observe(metrics.BATCH_SECONDS, took_s)
        self._meters.observe(metrics.BATCH_RECORDS, len(records))
        if self._means is not None:
            self._means.batch(time.monotonic(), len(records), took_s * 1e6)

    def _add(self, step: Step) -> None:
        for what, count in step.counts.items():
            self._counts[what] += count
        if not step.records and not step.offsets:
            return
        if not self._records and not self._offsets:
            self._pending_since_s = time.monotonic()
        self._records.extend(step.records)
        self._offsets.update(step.offsets)
        self._pending_bytes += sum(record.size_bytes for record in step.records)

    def _due(self) -> bool:
        if not self._records and not self._offsets:
            return False
        limits = self._limits
        return (
            (time.monotonic() - self._pending_since_s) * 1000 >= limits.commit_interval_ms
            or len(self._records) >= limits.pending_records
            or self._pending_bytes >= limits.pending_bytes
        )

    def _write_pending(self) -> None:
        if self._records or self._offsets:
            self._signs.at(Doing.WRITING)
            if self._means is not None:
                note = str(self._means.note(self._name, self._limits.commit_interval_ms * 1000))
                self._offsets = {p: c if c.metadata else Commit(c.offset, note) for p, c in self._offsets.items()}
            began_s = time.perf_counter()
            try:
                self._writer.write(self._records, self._offsets, self._reader)
            except (Aborted, Fenced) as error:
                self._meters.add(metrics.TRANSACTIONS, 1, "fenced" if isinstance(error, Fenced) else "aborted")
                raise
            self._count_written(time.perf_counter() - began_s)
            self._failures = 0
        self._forget_pending()

    def _count_written(self, took_s: float) -> None:
        self._signs.done()
        self._meters.add(metrics.TRANSACTIONS, 1, "committed")
        self._meters.observe(metrics.TRANSACTION_SECONDS, took_s)
        self._meters.add(metrics.WRITTEN_BYTES, self._pending_bytes)
        for topic, count in Counter(map(_TOPIC, self._records)).items():
            self._meters.add(metrics.WRITTEN, count, topic)
        self._meters.add_all(self._counts)
        if self._means is not None:
            self._means.commit(time.monotonic(), took_s * 1e6)

    def _forget_pending(self) -> None:
        self._records, self._offsets, self._pending_bytes = [], {}, 0
        self._counts.clear()

    def _wait_after(self, error: TidegateError) -> None:
        """Note that pending work is dropped, and wait. Raises the error once it has lasted too long."""
        self._forget_pending()
        self._dropped = str(error)
        self._signs.failed(error)
        self._failures += 1
        if self._failures > self._limits.retries:
            raise error
        wait_s = min(self._limits.retry_first_s * 2 ** min(self._failures - 1, 10), self._limits.retry_most_s)
        log.warning("going_back", error=self._dropped, wait_s=wait_s, failures=self._failures)
        self._stop.wait(wait_s)

    def _rejoin(self) -> None:
        """Begin as a new member of the group: what the old one held comes back through `assigned`."""
        log.warning("rejoining")
        self._reader.abandon()
        self._forget(sorted(self._held))
        self._reader = self._join()

    def _go_back(self) -> None:
        # The order matters: `start` settles what became of an open transaction, only then are commits the truth.
        self._writer.start()
        self._stage.assigned(self._reader.rewind())
        self._dropped = ""

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Partitions that the group gave us."""
        log.info("assigned", partitions=[f"{topic}[{number}]" for topic, number in partitions])
        self._held.update(partitions)
        self._stage.assigned(partitions)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Partitions that the group wants back: write what is pending first."""
        try:
            self._write_pending()
        except (TransportError, Fenced) as error:
            # The next owner does these again; the partitions that stay with us go back to their commits.
            self._forget_pending()
            self._dropped = str(error)
        self._forget(partitions)

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Partitions that are somebody else's already."""
        self._forget_pending()
        self._dropped = "partitions were lost"
        self._forget(partitions)

    def _forget(self, partitions: Sequence[Partition]) -> None:
        log.info("revoked", partitions=[f"{topic}[{number}]" for topic, number in partitions])
        self._held.difference_update(partitions)
        self._stage.revoked(partitions)
