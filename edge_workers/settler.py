"""The settler: what was sent to the cloud and what the cloud said of it, brought together; one outcome an item.

The shell over `pipelines.core.settlement`: records become events, instructions become records. For each partition
number p it reads `uplink.p0..p2[p]` and `answers[p]`, which the range assignor gives to one member, and writes
`results[p]` and `ledger[p]`: one record a Step and partition, more only where that would not fit into a Kafka record.
What the core must not forget stands in the commits, which are written in the same transaction.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog

from pipelines.core.endings import Ending
from pipelines.core.ledger import MarkBook
from pipelines.core.settlement import (
    AnswersSeen,
    Clock,
    Count,
    Counted,
    Event,
    Instruction,
    Limits,
    RecordSeen,
    Settlement,
    Unreadable,
)
from pipelines.errors import ForeignRecord, UnknownVersion
from pipelines.observe.metrics import FOREIGN_RECORDS, ITEMS, LATE_ANSWERS
from pipelines.runtime.dead_letters import dead_letter
from pipelines.runtime.let_go import FOREIGN, LetGo
from pipelines.runtime.stage import NOTHING, Step
from pipelines.transport.base import Commit, OutRecord, Partition, Record
from schemas import headers, wire
from schemas.ledger import Mark, MarkBatch, Outcome
from schemas.results import Result, ResultBatch
from schemas.topics import SiteTopics

log = structlog.get_logger("tidegate.settler")

UNKNOWN_VERSION = "unknown_version"

BATCH = 1_000
"""Results or marks a record, at most: at 300 bytes each a third of Kafka's default limit of 1 MB."""

REPORT_US = 10_000_000
"""Counters are logged at most this often."""

T = TypeVar("T")


class SettlerCounts(msgspec.Struct):
    """Since the start. What was in a transaction that was rolled back counts again."""

    settled: int = 0
    """Items with an outcome."""
    foreign: int = 0
    """Records that were not ours."""
    unknown_version: int = 0
    """Records of a later version."""
    late_answer: int = 0
    unmatched_answer: int = 0
    dropped_answer: int = 0
    """Too many answers were held whose record was not read yet."""
    forced: int = 0
    """Records that ended without the cloud, because too many waited behind them."""

    def add(self, name: str, times: int = 1) -> None:
        """Count `times` of one of the fields."""
        setattr(self, name, getattr(self, name) + times)


class SettlerStage:
    """The stage of the settlers of one site. `limits` hold for each partition number."""

    def __init__(self, site: str, limits: Limits | None = None) -> None:
        self._names = SiteTopics(site)
        self.topics: Sequence[str] = [*self._names.uplinks, self._names.answers]
        self._priorities = {topic: priority for priority, topic in enumerate(self._names.uplinks)}
        self._limits = limits or Limits()
        self._settlements: dict[int, Settlement] = {}
        self._written: dict[Partition, Commit] = {}
        self.counts = SettlerCounts()
        self._reported = SettlerCounts()
        self._report_due_us = 0
        self._let_go = LetGo(log)

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Restore each partition from its commit alone."""
        for (topic, number), commit in partitions.items():
            if number not in self._settlements:
                self._settlements[number] = Settlement(self._names, number, self._limits)
            self._settlements[number].assign(topic, commit)
            self._written[topic, number] = commit

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Forget these partitions; their next owner restores them."""
        for topic, number in partitions:
            self._written.pop((topic, number), None)
            settlement = self._settlements.get(number)
            if settlement is None:
                continue
            settlement.release(topic)
            if settlement.is_idle:
                del self._settlements[number]

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Take records and answers; settle what is complete."""
        outbox = _Outbox(self._names, self.counts, now_us, self._let_go)
        for record in records:
            event = self._answers(record, outbox) if record.topic() == self._names.answers else self._uplink(record)
            late = outbox.late
            outbox.carry_out(record.partition(), self._settlements[record.partition()].handle(event))
            if outbox.late > late:
                self._let_go.note(Counted.LATE_ANSWER, record)
        return self._step(outbox, {record.partition() for record in records})

    def tick(self, now_us: int) -> Step:
        """Settle what is past its deadline."""
        outbox = _Outbox(self._names, self.counts, now_us, self._let_go)
        for number, settlement in self._settlements.items():
            outbox.carry_out(number, settlement.handle(Clock(now_us)))
        if now_us >= self._report_due_us:
            self.report()
            self._report_due_us = now_us + REPORT_US
        self._let_go.report(now_us)
        return self._step(outbox, self._settlements)

    def close(self) -> None:
        """Log the counters a last time."""
        self.report()
        self._let_go.tell()

    def report(self) -> None:
        """Log the counters, if any has moved."""
        if self.counts != self._reported:
            log.info("settled", site=self._names.site, **msgspec.structs.asdict(self.counts))
            self._reported = msgspec.structs.replace(self.counts)

    def _uplink(self, record: Record) -> Event:
        priority = self._priorities[record.topic()]
        try:
            return RecordSeen(priority, record.offset(), headers.find(record.headers()))
        except UnknownVersion as error:
            return Unreadable(priority, record.offset(), record, UNKNOWN_VERSION, error.account)
        except ForeignRecord:
            return Unreadable(priority, record.offset(), record, FOREIGN)

    def _answers(self, record: Record, outbox: "_Outbox") -> Event:
        """Answers that cannot be read are kept at once, and again if they are read again: no item hangs on it."""
        try:
            batch = wire.decode_answers(record.value())
        except ForeignRecord:
            outbox.bury(record, FOREIGN)
        else:
            if batch.site == self._names.site and batch.version == wire.VERSION:
                return AnswersSeen(record.offset(), batch.answers, outbox.now_us)
            outbox.bury(record, UNKNOWN_VERSION if batch.site == self._names.site else FOREIGN)
        return AnswersSeen(record.offset(), (), outbox.now_us)

    def _step(self, outbox: "_Outbox", numbers: Iterable[int]) -> Step:
        """What was made, with the commits that have moved."""
        moved: dict[Partition, Commit] = {}
        for number in numbers:
            for partition, commit in self._settlements[number].commits().items():
                if self._written[partition] != commit:
                    moved[partition] = commit
        self._written.update(moved)
        records = outbox.records()
        return Step(records, moved, outbox.tally) if records or moved or outbox.tally else NOTHING


class _Outbox:
    """What one Step writes."""

    def __init__(self, names: SiteTopics, counts: SettlerCounts, now_us: int, let_go: LetGo) -> None:
        self.now_us = now_us
        self._names = names
        self._counts = counts
        self._dead: list[OutRecord] = []
        self._results: defaultdict[int, list[Result]] = defaultdict(list)
        self._marks: defaultdict[int, MarkBook] = defaultdict(MarkBook)
        self._let_go = let_go
        self.late = 0
        self._unaccounted = 0
        self.tally: dict[tuple[str, ...], float] = {}
        """For the metrics: filled by `records`."""

    def carry_out(self, number: int, instructions: Sequence[Instruction]) -> None:
        """Do as the core says for partition `number`."""
        for instruction in instructions:
            if isinstance(instruction, Ending):
                instruction.enter(self._marks[number])
                self._results[number] += instruction.results(self.now_us)
                self._counts.settled += instruction.count
            elif isinstance(instruction, Count):
                self._counts.add(instruction.what.value, instruction.times)
                if instruction.what is Counted.LATE_ANSWER:
                    self.late += instruction.times
            else:
                self._refuse(number, instruction)

    def bury(self, record: Record, reason: str) -> None:
        """Keep a record that cannot be taken among the dead letters, and count it. No item hangs on it."""
        self._unaccounted += 1
        self._keep(record, reason)

    def _keep(self, record: Record, reason: str, item: tuple[str, int, int] | None = None) -> None:
        self._counts.add(reason)
        self._let_go.note(reason, record, item)
        self._dead.append(dead_letter(self._names.dead_letters, record, reason))

    def _refuse(self, number: int, unreadable: Unreadable) -> None:
        if unreadable.account is None:
            self.bury(unreadable.record, unreadable.reason)
        else:
            _version, stream, epoch, first_seq, count = unreadable.account
            self._keep(unreadable.record, unreadable.reason, (stream, epoch, first_seq))
            book = self._marks[number]
            book.add(stream, epoch, first_seq, count, Outcome.DEAD_LETTERED, unreadable.reason)
            self._counts.settled += count

    def records(self) -> list[OutRecord]:
        """All of it, results and marks batched by partition."""
        site, out = self._names.site, self._dead
        for number, results in self._results.items():
            for batch in _batches(results):
                value = wire.encode(ResultBatch(wire.VERSION, site, batch))
                out.append(OutRecord(self._names.results, value, partition=number))
        items: Counter[tuple[str, str]] = Counter()
        for number, book in self._marks.items():
            items.update(book.totals())
            marks: list[Mark] = book.marks()
            for some in _batches(marks):
                value = wire.encode(MarkBatch(wire.VERSION, site, some))
                out.append(OutRecord(self._names.ledger, value, partition=number))
        tally: dict[tuple[str, ...], float] = {(ITEMS, *ending): count for ending, count in items.items()}
        tally |= {(LATE_ANSWERS,): self.late, (FOREIGN_RECORDS,): self._unaccounted}
        self.tally = {key: count for key, count in tally.items() if count}
        return out


def _batches(values: list[T]) -> Iterable[list[T]]:
    return (values[first : first + BATCH] for first in range(0, len(values), BATCH))
