"""Carries records from one cluster to another, exactly once, in order within each lane and partition.

Constraints
- A source record's copy and the position after it are written in one transaction on the destination.
- One forwarder is active under a transactional id. A second one that starts takes over; the first is fenced at its
  next transaction, can write nothing more, and ends with `TakenOver` (`ownership.py` says how they are told apart).
- Nothing but the positions is trusted: after any failure the forwarder starts again from them. `Transactions.start`
  comes first, since only then has the coordinator decided what became of an open transaction.
- The bytes of a transaction are capped (produce outruns the broker: uncapped, commits took 88 to 319 ms).

Format of the positions topic (compacted, one partition): `topic:partition` -> `ForwardPosition`, `owner` -> `Owner`.

Operation
    owner ─▶ start ─▶ positions ─▶ a reader a lane ─▶ buffers ─▶ choose ─▶ prepare ─▶ one transaction ─┐
      ▲                                                  ▲─────────────────────────────────────────────┤
      └────────────── any failure, after a wait ◀──────────────────────────────────────────────────────┘

A supervisor that starts again what ended with `TakenOver` (exit 5) must wait, or the two would take over from each
other without end.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Protocol

import msgspec
import structlog

from pipelines.core.lanes import choose
from pipelines.core.progress import Doing
from pipelines.errors import BrokerError, Fenced, TakenOver, TidegateError, TransportError
from pipelines.observe import metrics
from pipelines.observe.instruments import Instruments
from pipelines.runtime.let_go import FOREIGN, LetGo
from pipelines.runtime.ownership import Ownership
from pipelines.transport.base import Aborted, Cluster, OutOfRange, OutRecord, Partition, Reader, Record
from schemas import wire
from schemas.errors import ForeignRecord
from schemas.positions import OWNER_KEY, ForwardPosition, forward_key, partition_of

log = structlog.get_logger("tidegate.forwarder")

_TOPIC = attrgetter("topic")


class Expired(msgspec.Struct, frozen=True):
    """In place of a record: its deadline has passed, it is not sent."""


class Prepare(Protocol):
    """Makes the record to be sent from the one read. Raises `ForeignRecord` for what is not ours."""

    def __call__(self, record: Record, now_us: int) -> OutRecord | Expired:
        """What to send, or why not."""
        ...


class Lane(msgspec.Struct, frozen=True):
    """One source topic, and how its records are made ready for the destination. Lanes come first priority first."""

    topic: str
    prepare: Prepare


class ForwarderLimits(msgspec.Struct, frozen=True):
    """What is held and sent at a time, and how failures are waited out."""

    transaction_bytes: int = 4 << 20
    """At 70 MB/s and more a commit of 4 MiB stays under 60 ms."""
    buffer_records: int = 2_000
    """A lane, beside the client's own prefetch of `prefetch_bytes`."""
    prefetch_bytes: int = 8 << 20
    """A lane."""
    linger_ms: int = 20
    """A record that came alone waits this long for company: fewer, larger transactions."""
    idle_ms: int = 5
    """Longest wait when all lanes are empty."""
    retry_first_s: float = 0.1
    retry_most_s: float = 2.0
    retries: int = 300
    """In a row: ten minutes at the least, then the process ends with the error and its supervisor starts it anew."""


class Forwarder:
    """Forwards until `stop` is set."""

    def __init__(
        self,
        *,
        source: Cluster,
        destination: Cluster,
        lanes: Sequence[Lane],
        positions_topic: str,
        transactional_id: str,
        instance: str,
        stop: threading.Event,
        limits: ForwarderLimits | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._signs = instruments or Instruments()
        self._let_go = LetGo(log)
        self._source = source
        self._destination = destination
        self._lanes = lanes
        self._positions_topic = positions_topic
        self._stop = stop
        self._limits = limits or ForwarderLimits()
        self._owner = Ownership(destination, transactional_id, positions_topic, OWNER_KEY, instance)
        self._writer = destination.transactions(transactional_id)
        self._readers: list[Reader] = []
        self._buffers: list[deque[Record]] = [deque() for _ in lanes]
        self._positions: dict[Partition, ForwardPosition] = {}
        self._ready = False
        self._failures = 0

    def run(self) -> None:
        """Forward until stopped. Raises `TakenOver` where another started later, `OutOfRange`, and what lasts."""
        try:
            while not self._stop.is_set():
                try:
                    self._signs.at(Doing.READING)
                    if not self._ready:
                        self._begin()
                    self._turn()
                    self._let_go.report(time.time_ns() // 1000)
                except (OutOfRange, TakenOver):
                    raise
                except (Fenced, TransportError, BrokerError) as error:
                    self._wait_after(error)
        finally:
            self._let_go.tell()
            self._close_readers()
            self._writer.close()

    def _begin(self) -> None:
        """Fence the one before, read where it stood, and begin to read there."""
        self._close_readers()
        self._owner.ensure()
        self._writer.start()
        self._positions = positions = self._stored_positions()
        topics = [lane.topic for lane in self._lanes]
        for lane in self._lanes:
            starts = {
                partition: self._position(partition).next_offset for partition in self._source.partitions([lane.topic])
            }
            self._readers.append(self._source.reader(starts, self._limits.prefetch_bytes))
        self._ready = True
        log.info("forwarding", topics=topics, resumed=sum(p.records for p in positions.values()))

    def _stored_positions(self) -> dict[Partition, ForwardPosition]:
        positions: dict[Partition, ForwardPosition] = {}
        for record in self._destination.read_all([self._positions_topic]):
            if record.key() == OWNER_KEY:
                continue
            try:
                positions[partition_of(record.key() or b"")] = wire.decode_forward_position(record.value())
            except ForeignRecord as error:
                # What stood there before stays the truth.
                log.warning("foreign_record", topic=self._positions_topic, offset=record.offset(), error=str(error))
        return positions

    def _position(self, partition: Partition) -> ForwardPosition:
        found = self._positions.get(partition)
        if found is None:
            raise TransportError(
                f"'{self._positions_topic}' has no position for {partition[0]}[{partition[1]}]",
                remedy="`tidegate topics apply` writes the first ones",
            )
        return found

    def _turn(self) -> None:
        if not self._fill():
            return
        began_s = time.perf_counter()
        self._signs.read()
        self._signs.at(Doing.WORKING)
        sizes = [[len(record.value() or b"") for record in buffer] for buffer in self._buffers]
        taken = choose(sizes, self._limits.transaction_bytes)
        chosen = [
            (lane, buffer[index])
            for lane, buffer, count in zip(self._lanes, self._buffers, taken, strict=True)
            for index in range(count)
        ]
        records, positions = self._prepare(chosen)
        marks = [
            OutRecord(self._positions_topic, wire.encode(position), forward_key(*partition), 0)
            for partition, position in positions.items()
        ]
        self._write([*records, *marks])
        self._failures = 0
        self._count(positions, taken)
        self._positions.update(positions)
        self._signs.meters.add(metrics.BUSY_SECONDS, time.perf_counter() - began_s)
        for buffer, count in zip(self._buffers, taken, strict=True):
            for _ in range(count):
                buffer.popleft()

    def _write(self, records: Sequence[OutRecord]) -> None:
        meters, began_s = self._signs.meters, time.perf_counter()
        self._signs.at(Doing.WRITING)
        try:
            self._writer.write(records)
        except (Aborted, Fenced) as error:
            meters.add(metrics.TRANSACTIONS, 1, "fenced" if isinstance(error, Fenced) else "aborted")
            raise
        self._signs.done()
        meters.add(metrics.TRANSACTIONS, 1, "committed")
        meters.observe(metrics.TRANSACTION_SECONDS, time.perf_counter() - began_s)
        for topic, count in Counter(map(_TOPIC, records)).items():
            meters.add(metrics.WRITTEN, count, topic)

    def _count(self, positions: Mapping[Partition, ForwardPosition], taken: Sequence[int]) -> None:
        """What these positions say is done; those before are still in `_positions`."""
        meters = self._signs.meters
        for lane, read in zip(self._lanes, taken, strict=True):
            meters.add(metrics.READ, read, lane.topic)
        for partition, now in positions.items():
            topic, before = partition[0], self._positions[partition]
            meters.add(metrics.FORWARDED, now.records - before.records, topic)
            meters.add(metrics.FORWARDED_BYTES, now.bytes - before.bytes, topic)
            meters.add(metrics.WRITTEN_BYTES, now.bytes - before.bytes)
            meters.add(metrics.FORWARD_EXPIRED, now.expired - before.expired, topic)
            meters.add(metrics.FOREIGN_RECORDS, now.foreign - before.foreign)

    def _fill(self) -> bool:
        """Read what is there, within the limits; True where there is something to send."""
        waited = False
        while True:
            for reader, buffer in zip(self._readers, self._buffers, strict=True):
                room = self._limits.buffer_records - len(buffer)
                if room > 0:
                    buffer.extend(reader.poll(room, 0))
            found = any(self._buffers)
            if found and (waited or self._enough()):
                return True
            if waited or self._stop.is_set():
                return False
            # One lane's arrival is enough to wake up: wait on the results, which every item ends in.
            wait_ms = self._limits.linger_ms if found else self._limits.idle_ms
            self._buffers[-1].extend(self._readers[-1].poll(1, wait_ms / 1000))
            waited = True

    def _enough(self) -> bool:
        return sum(len(buffer) for buffer in self._buffers) >= self._limits.buffer_records // 4

    def _prepare(
        self, chosen: Sequence[tuple[Lane, Record]]
    ) -> tuple[list[OutRecord], Mapping[Partition, ForwardPosition]]:
        """The records to send, and the positions after them."""
        now_us = time.time_ns() // 1000
        out: list[OutRecord] = []
        positions: dict[Partition, ForwardPosition] = {}
        for lane, record in chosen:
            partition = (record.topic(), record.partition())
            before = positions.get(partition) or self._position(partition)
            sent_bytes, sent, expired, foreign = 0, 0, 0, 0
            try:
                made = lane.prepare(record, now_us)
                if isinstance(made, Expired):
                    expired = 1
                else:
                    out.append(made)
                    sent, sent_bytes = 1, made.size_bytes
            except ForeignRecord:
                foreign = 1
                self._let_go.note(FOREIGN, record)
            positions[partition] = ForwardPosition(
                next_offset=record.offset() + 1,
                records=before.records + sent,
                bytes=before.bytes + sent_bytes,
                expired=before.expired + expired,
                foreign=before.foreign + foreign,
            )
        return out, positions

    def _wait_after(self, error: TidegateError) -> None:
        self._ready = False
        self._signs.failed(error)
        self._failures += 1
        if self._failures > self._limits.retries:
            raise error
        wait_s = min(self._limits.retry_first_s * 2 ** min(self._failures - 1, 10), self._limits.retry_most_s)
        log.warning("starting_again", error=str(error), wait_s=wait_s, failures=self._failures)
        self._stop.wait(wait_s)

    def _close_readers(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = []
        for buffer in self._buffers:
            buffer.clear()
