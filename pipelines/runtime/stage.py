"""Consume, process, produce: one stage of the flow on one cluster, exactly once.

The shell over `pipelines.core.engine`: this thread runs the stage and writes, the fetcher's thread reads. What is
decided, and why nothing is lost or doubled, stands there; here it is carried out.

Operation
    Fetcher.inbox ─▶ Engine ─▶ Process, Tick, Bury: the stage │ Write: one transaction │ GoBack, Release: the fetcher

A transaction is begun when its records are ready, so it is open for milliseconds however slow the model is. A stage
keeps its state by partition and must be able to restore it from what it is told in `assigned`.
"""

import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Protocol, runtime_checkable

import msgspec
import structlog

from pipelines.core.credit import CreditLimits
from pipelines.core.engine import (
    Bury,
    End,
    Engine,
    EngineLimits,
    Event,
    Failed,
    GoBack,
    Instruction,
    Lost,
    Process,
    Processed,
    Refused,
    Release,
    Stop,
    Tick,
    WentBack,
    Write,
    Written,
)
from pipelines.core.progress import Doing
from pipelines.core.work import WorkMeans
from pipelines.errors import BrokerError, Fenced, TidegateError, TransportError
from pipelines.observe import metrics
from pipelines.observe.instruments import Instruments
from pipelines.observe.meters import Counts
from pipelines.runtime.fetcher import Assigned, Fetcher, Heard, Rewound
from pipelines.transport.base import Aborted, Cluster, Commit, OutRecord, Partition, Record, total_bytes

log = structlog.get_logger("tidegate.stage")

WAIT_MOST_S = 0.1
"""How late a stop may be noticed."""

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


@runtime_checkable
class Burying(Protocol):
    """A stage that keeps nothing between batches, so that an item on which it fails can be found and taken out.

    Whatever its `process` raises, other than an error of ours, is then taken for the fault of an item.
    """

    def bury(self, record: Record, reason: str, now_us: int) -> Step:
        """Make of this record what is left to be made of it: its dead letter, its mark, and the offset behind it."""
        ...


FAILED = "failed"
"""The reason of an item on which a stage failed by itself."""


def offsets_after(records: Sequence[Record]) -> dict[Partition, Commit]:
    """The commits that say all of `records` is done."""
    last = {(record.topic(), record.partition()): record for record in records}
    return {partition: Commit(record.offset() + 1) for partition, record in last.items()}


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
        limits: EngineLimits | None = None,
        credit: CreditLimits | None = None,
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
        self._limits = limits or EngineLimits()
        self._stop = stop
        self._engine = Engine(self._limits, isolates=isinstance(stage, Burying))
        self._writer = cluster.transactions(transactional_id)
        self._writer.start()
        self._fetcher = Fetcher(
            lambda listener: cluster.group_reader(group, stage.topics, listener, name=name),
            poll_records=self._limits.batch_records,
            limits=credit,
        )
        self._held: set[Partition] = set()
        self._losses = 0
        """Of which we have heard."""
        self._meters.watch(metrics.HELD, lambda: len(self._held))

    def run(self) -> None:
        """Work until stopped. Raises `OutOfRange` where retention removed what was not read, and what lasts."""
        try:
            self._fetcher.start()
            while (end := self._turn()) is None:
                pass
            self._release(sorted(self._held))
        finally:
            self._fetcher.close()
            self._writer.close()
            self._stage.close()
        if end.error is not None:
            raise end.error

    def _turn(self) -> End | None:
        """Hear what has happened, then do one thing."""
        engine = self._engine
        if self._stop.is_set():
            engine.handle(Stop(), _now_us())
        wait_us = engine.due_us() - _now_us()
        if wait_us > 0:
            self._signs.at(Doing.READING)
        self._hear_all(wait_us / 1e6)
        instruction = engine.next(_now_us())
        if isinstance(instruction, End):
            return instruction
        if instruction is not None:
            self._carry_out(instruction)
        return None

    def _hear_all(self, wait_s: float) -> None:
        """What lies in the inbox; where that is empty, what comes within `wait_s`."""
        inbox = self._fetcher.inbox
        try:
            heard = inbox.get(wait_s > 0, min(wait_s, WAIT_MOST_S)) if wait_s > 0 else inbox.get_nowait()
            while True:
                self._hear(heard)
                heard = inbox.get_nowait()
        except queue.Empty:
            return

    def _hear(self, heard: Heard) -> None:
        if isinstance(heard, Assigned):
            log.info("assigned", partitions=_named(heard.commits))
            self._held.update(heard.commits)
            self._restore(heard.commits)
        elif isinstance(heard, Rewound):
            if self._restore(heard.commits):
                self._engine.handle(WentBack(heard.number), _now_us())
        else:
            if isinstance(heard, Refused):
                self._note_failure(heard.error)
            elif isinstance(heard, Lost):
                self._losses += 1
                self._forget_counts()
            self._engine.handle(heard, _now_us())
            # Before anything else is heard: the same partitions may come again right behind.
            while self._engine.is_releasing and (instruction := self._engine.next(_now_us())) is not None:
                self._carry_out(instruction)

    def _restore(self, commits: Mapping[Partition, Commit]) -> bool:
        """Tell the stage where it stands; whether it could take that."""
        self._signs.at(Doing.READING)
        refused = self._guarded(lambda: self._stage.assigned(commits))
        if refused is not None:
            self._engine.handle(refused, _now_us())
        return refused is None

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Process():
                event = self._process(instruction.records)
            case Tick():
                event = self._make(lambda now_us: self._stage.tick(now_us))
                self._note_unread()
            case Bury():
                event = self._bury(instruction)
            case Write():
                event = self._write(instruction)
            case Release():
                self._release(instruction.partitions)
                return
            case GoBack():
                # The order matters: `start` settles what became of a transaction, only then are commits the truth.
                refused = self._guarded(self._writer.start)
                if refused is None:
                    self._fetcher.go_back(instruction.number, rejoin=instruction.rejoin)
                    return
                event = refused
            case End():
                return
        self._engine.handle(event, _now_us())

    def _process(self, records: Sequence[Record]) -> Event:
        began_s = time.perf_counter()
        event = self._make(lambda now_us: self._stage.process(records, now_us))
        took_s = time.perf_counter() - began_s
        if isinstance(event, Processed):
            self._fetcher.done(len(records))
            self._count_batch(records, took_s)
            return msgspec.structs.replace(event, took_us=int(took_s * 1e6))
        return event

    def _bury(self, instruction: Bury) -> Event:
        log.error("item_failed", exc_info=instruction.error)
        stage, record = self._stage, instruction.record
        if not isinstance(stage, Burying):
            raise TypeError("only a stage that buries isolates its items")
        event = self._make(lambda now_us: stage.bury(record, FAILED, now_us))
        if isinstance(event, Processed):
            self._fetcher.done(1)
            return event
        return Refused(event.error) if isinstance(event, Failed) else event

    def _make(self, call: Callable[[int], Step]) -> Event:
        """What the stage makes."""
        self._signs.at(Doing.WORKING)
        began_s = time.perf_counter()
        made: list[Step] = []
        refused = self._guarded(lambda: made.append(call(time.time_ns() // 1000)))
        self._meters.add(metrics.BUSY_SECONDS, time.perf_counter() - began_s)
        if refused is not None:
            return refused
        step = made[0]
        for what, count in step.counts.items():
            self._counts[what] += count
        return Processed(step.records, step.offsets, total_bytes(step.records))

    def _guarded(self, call: Callable[[], object]) -> Failed | Refused | None:
        """Do it, and say how it went wrong."""
        try:
            call()
        except (TransportError, BrokerError, Fenced) as error:
            self._note_failure(error)
            return Refused(error)
        except TidegateError as error:
            return Refused(error, final=True)
        except Exception as error:  # noqa: BLE001 - the code of a user's stage may raise anything; the engine decides
            self._signs.failed(error)
            return Failed(error)
        return None

    def _note_failure(self, error: Exception) -> None:
        self._forget_counts()
        self._signs.failed(error)
        log.warning("going_back", error=str(error), failures=self._engine.failures + 1)

    def _forget_counts(self) -> None:
        self._counts.clear()

    def _write(self, instruction: Write) -> Event:
        self._signs.at(Doing.WRITING)
        offsets = instruction.offsets
        if self._means is not None:
            note = str(self._means.note(self._name, self._limits.commit_interval_us))
            offsets = {p: c if c.metadata else Commit(c.offset, note) for p, c in offsets.items()}
        began_s = time.perf_counter()
        refused = self._guarded(lambda: self._write_as_member(instruction.records, offsets))
        if refused is not None:
            result = "fenced" if isinstance(refused.error, Fenced) else "aborted"
            self._meters.add(metrics.TRANSACTIONS, 1, result)
            return Refused(refused.error, final=isinstance(refused, Failed))
        self._count_written(instruction, time.perf_counter() - began_s)
        return Written()

    def _write_as_member(self, records: Sequence[OutRecord], offsets: Mapping[Partition, Commit]) -> None:
        # A loss may lie in the inbox, behind what we heard last. The member has a new epoch then, and the group would
        # take what we made of partitions that are somebody else's.
        if self._fetcher.losses != self._losses:
            raise Aborted("partitions were lost meanwhile")
        self._writer.write(records, offsets, self._fetcher.reader)

    def _release(self, partitions: Sequence[Partition]) -> None:
        log.info("revoked", partitions=_named(partitions))
        self._held.difference_update(partitions)
        self._stage.revoked(partitions)
        self._fetcher.release(partitions)

    def _note_unread(self) -> None:
        """Whether the client knows of more than it hands out, though we have done all that it did."""
        idle = bool(self._held) and not self._engine.batches
        self._signs.unread(some=idle and self._fetcher.reader.has_unread)

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

    def _count_written(self, written: Write, took_s: float) -> None:
        self._signs.done()
        self._meters.add(metrics.TRANSACTIONS, 1, "committed")
        self._meters.observe(metrics.TRANSACTION_SECONDS, took_s)
        self._meters.add(metrics.WRITTEN_BYTES, written.size_bytes)
        for topic, count in Counter(map(_TOPIC, written.records)).items():
            self._meters.add(metrics.WRITTEN, count, topic)
        self._meters.add_all(self._counts)
        self._forget_counts()
        if self._means is not None:
            self._means.commit(time.monotonic(), took_s * 1e6)


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def _named(partitions: Iterable[Partition]) -> list[str]:
    return [f"{topic}[{number}]" for topic, number in partitions]
