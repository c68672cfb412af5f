"""Captures frames: each gets its seq, and travels in one transaction with the positions that say so.

Constraints
- Every source position is captured exactly once, whatever dies when: records, marks of frames that cannot travel, and
  `StreamPosition`s are written together, and positions are read only after `start` has ended every earlier holder of
  the transactional id. A stream without a stored position begins a new epoch; nothing else does.
- Another producer of the same slot, started later, fences this one and ends it with `TakenOver`
  (`pipelines/runtime/ownership.py` says how that is told from a transaction that was given up).
- What waits for a transaction is bounded in time, records and bytes.
- While Kafka takes no records nothing is captured: what waited is dropped with the seqs that it had, no frame is taken,
  and a log line says which cluster and, as its disk may be full, which folder.
- Capture time is this machine's clock when a frame is released at its rate.

Operation
    Source ─▶ Schedule ─▶ release: seq, Preprocess, header ─▶ Captured ─▶ Transactions.write (every 50 ms, or full)
       └── after any failure: look who owns the slot, start, read the positions, go on behind them ◀──┘
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

import msgspec
import structlog

from edge_workers.captured import Captured
from edge_workers.preprocess import Preprocess, Refused
from edge_workers.sources.base import Frame, Source, check_rate
from pipelines.config.units import Rate
from pipelines.core.capture import Capture
from pipelines.core.pacing import Schedule
from pipelines.core.progress import Doing
from pipelines.errors import BrokerError, Fenced, TakenOver, TidegateError, TransportError
from pipelines.observe import metrics
from pipelines.observe.instruments import Instruments
from pipelines.runtime.ownership import Ownership
from pipelines.runtime.positions import stored_positions
from pipelines.transport.base import Aborted, Cluster, OutRecord
from pipelines.transport.storage import Storage
from schemas import headers
from schemas.control import producer_key
from schemas.headers import Header, Params
from schemas.ledger import Outcome
from schemas.topics import SiteTopics

log = structlog.get_logger("tidegate.producer")

_NO_PARAMS = Params()
_TOPIC = attrgetter("topic")

SAID_AFTER = 3
"""Failures in a row. One is a hiccup: a coordinator that moved, a broker that was started again."""


def wall_clock_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


class CaptureSettings(msgspec.Struct, frozen=True):
    """What every item is given."""

    rate: Rate
    """Of each stream."""
    deadline_us: int
    """From capture on."""
    priority: int = 1
    """0 (first) to 2."""
    priorities: Mapping[str, int] = {}
    """By stream, where one has another than `priority`."""


class ProducerLimits(msgspec.Struct, frozen=True):
    """How much may be pending, and how long a failure may last."""

    commit_interval_ms: int = 50
    transaction_records: int = 5_000
    transaction_bytes: int = 8 << 20
    """At 70 MB/s and more a commit of 8 MiB stays under 120 ms."""
    retry_first_s: float = 0.1
    retry_most_s: float = 2.0
    retries: int = 60
    """In a row; waits double up to `retry_most_s`: two minutes, then the process ends with the error."""


class _Stream(msgspec.Struct, frozen=True):
    name: str
    key: bytes
    priority: int
    frames: Iterator[Frame]


class Producer:
    """Runs one source, under the transactional id `producer.<site>.<slot>`. `instance` is no other life's name."""

    def __init__(
        self,
        cluster: Cluster,
        topics: SiteTopics,
        source: Source,
        preprocess: Preprocess,
        settings: CaptureSettings,
        *,
        instance: str,
        stop: threading.Event,
        slot: int = 0,
        limits: ProducerLimits | None = None,
        clock_us: Callable[[], int] = wall_clock_us,
        instruments: Instruments | None = None,
    ) -> None:
        """Raises `SourceError` where the rate is `as recorded` and the source does not know when that was."""
        check_rate(source, settings.rate)
        self._cluster, self._topics, self._source, self._preprocess = cluster, topics, source, preprocess
        self._settings, self._limits = settings, limits or ProducerLimits()
        self._stop, self._clock_us = stop, clock_us
        self._signs = instruments or Instruments()
        self._signs.meters.watch(metrics.CAPTURING, lambda: not self.not_capturing)
        transactional_id = f"producer.{topics.site}.{slot}"
        self._owner = Ownership(cluster, transactional_id, topics.control, producer_key(slot), instance)
        self._writer = cluster.transactions(transactional_id, "none" if preprocess.codec.compressed else "zstd")
        self._captured = Captured(topics)
        self._write_by_us = 0
        self._failures = 0
        self._storage = Storage("kafka.edge", "its address")
        self.not_capturing = ""
        """Why nothing is captured, with the remedy; "" while all is well."""
        self._must_resume = True
        self._capture = Capture([], {}, 0)

    def run(self) -> None:
        """Until the source has ended and all is written, or `stop` is set. Raises `TakenOver`, and what lasts."""
        try:
            while not self._stop.is_set():
                try:
                    if self._must_resume:
                        self._resume()
                    if not self._turn():
                        return
                except TakenOver:
                    raise
                except (Fenced, TransportError, BrokerError) as error:
                    self._wait_after(error)
            if not self._must_resume:
                self._write()
        finally:
            self._writer.close()

    def _resume(self) -> None:
        """Go on behind what is stored."""
        self._signs.at(Doing.READING)
        self._owner.ensure()
        # The order matters: `start` settles what became of an open transaction, only then are positions the truth.
        self._writer.start()
        stored = stored_positions(self._cluster, self._topics)
        names, settings = list(self._source.streams), self._settings
        self._capture = Capture(names, stored, self._clock_us() // 1000)
        self._captured = Captured(self._topics)
        self._streams = [
            _Stream(
                name,
                name.encode(),
                settings.priorities.get(name, settings.priority),
                self._source.frames(name, self._capture.after(name)),
            )
            for name in names
        ]
        self._schedule: Schedule[Frame] = Schedule(
            len(names), per_s=settings.rate.per_s, as_recorded=settings.rate.as_recorded
        )
        for number in range(len(names)):
            self._schedule_next(number)
        self._must_resume = False
        with suppress(BrokerError):  # Asked while it is well: a Kafka whose disk is full has ended, and tells nothing.
            self._storage = self._cluster.storage()
        self._signs.at(Doing.WORKING)
        log.info("capturing", streams=len(names), resumed=len(stored.keys() & set(names)))

    def _schedule_next(self, number: int) -> None:
        frame = next(self._streams[number].frames, None)
        if frame is not None:
            self._schedule.add(number, frame, frame.recorded_us)

    def _turn(self) -> bool:
        """Release or wait, then write what is due; False once all is captured and written."""
        now_us = time.monotonic_ns() // 1000
        wait_us = self._schedule.wait_us(now_us)
        if wait_us is None:
            self._write()
            self._signs.meters.set(metrics.SOURCE_ENDED, 1)
            log.info("source_ended")
            return False
        if wait_us:
            if self._captured:
                wait_us = min(wait_us, max(self._write_by_us - now_us, 0))
            self._signs.at(Doing.IDLE)
            self._stop.wait(wait_us / 1e6)
            self._signs.at(Doing.WORKING)
        else:
            if not self._captured:
                self._write_by_us = now_us + self._limits.commit_interval_ms * 1000
            number, frame = self._schedule.take()
            self._release(self._streams[number], frame)
            self._schedule_next(number)
        if self._captured and self._is_full_or_due():
            self._write()
        return True

    def _release(self, stream: _Stream, frame: Frame) -> None:
        capture_us = self._clock_us()
        epoch, seq = self._capture.take(stream.name, frame.position)
        prepared = self._preprocess(frame.content)
        header = Header(
            version=headers.VERSION,
            stream=stream.name,
            epoch=epoch,
            first_seq=seq,
            count=1,
            capture_us=capture_us,
            deadline_us=capture_us + self._settings.deadline_us,
            priority=stream.priority,
            codec="" if isinstance(prepared, Refused) else prepared.codec.name,
            params=_NO_PARAMS if isinstance(prepared, Refused) else prepared.params,
            source_position=frame.position,
        )
        if isinstance(prepared, Refused):
            origin = frame.content if isinstance(frame.content, Path) else stream.name
            self._captured.refuse(header, stream.key, prepared, f"{origin}@{frame.position}")
        else:
            self._captured.add(header, stream.key, prepared.codec.content_type, prepared.payload)

    def _is_full_or_due(self) -> bool:
        captured, limits = self._captured, self._limits
        return (
            len(captured) >= limits.transaction_records
            or captured.size_bytes >= limits.transaction_bytes
            or time.monotonic_ns() // 1000 >= self._write_by_us
        )

    def _write(self) -> None:
        if self._captured:
            self._signs.at(Doing.WRITING)
            began_s = time.perf_counter()
            records = self._captured.records(self._capture.changed())
            try:
                self._writer.write(records)
            except (Aborted, Fenced) as error:
                result = "fenced" if isinstance(error, Fenced) else "aborted"
                self._signs.meters.add(metrics.TRANSACTIONS, 1, result)
                raise
            self._failures, self.not_capturing = 0, ""
            self._count(records, time.perf_counter() - began_s)
            self._signs.at(Doing.WORKING)
        self._captured = Captured(self._topics)

    def _count(self, records: Sequence[OutRecord], took_s: float) -> None:
        meters, captured = self._signs.meters, self._captured
        self._signs.done()
        meters.add(metrics.CAPTURED, len(captured))
        meters.add(metrics.TRANSACTIONS, 1, "committed")
        meters.observe(metrics.TRANSACTION_SECONDS, took_s)
        meters.add(metrics.WRITTEN_BYTES, captured.size_bytes + sum(one.size_bytes for one in records[len(captured) :]))
        for topic, count in Counter(map(_TOPIC, records)).items():
            meters.add(metrics.WRITTEN, count, topic)
        for reason, count in captured.reasons.items():
            meters.add(metrics.ITEMS, count, Outcome.DEAD_LETTERED, reason)

    def _wait_after(self, error: TidegateError) -> None:
        """Note that what was captured is dropped, and wait. Raises the error once it has lasted too long."""
        self._must_resume = True
        self._signs.failed(error)
        self._failures += 1
        self._say_not_capturing()
        if self._failures > self._limits.retries:
            if not isinstance(error, TransportError):
                raise error  # A broker that answers: what it says is the reason.
            problem, remedy = self._storage.complaint()
            raise TransportError(f"{problem} ({error})", remedy=remedy) from error
        wait_s = min(self._limits.retry_first_s * 2 ** min(self._failures - 1, 10), self._limits.retry_most_s)
        log.warning("going_back", error=str(error), wait_s=wait_s, failures=self._failures)
        self._stop.wait(wait_s)

    def _say_not_capturing(self) -> None:
        """Once an outage: at once where a disk is full, else when it lasts."""
        if self.not_capturing or not (self._failures >= SAID_AFTER or self._storage.full()):
            return
        problem, remedy = self._storage.complaint()
        self.not_capturing = f"{problem}: {remedy}"
        log.error("not_capturing", why=problem, remedy=f"{remedy}: capturing goes on behind the last item written")
