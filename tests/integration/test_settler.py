"""The settler on real Kafka: answers, deadlines, crashes on either side of a commit, and what is not ours."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from edge_workers.settler import SettlerStage
from pipelines.errors import RecordError
from pipelines.runtime.stage import StageRunner
from pipelines.transport.base import Commit, GroupReader, OutRecord, Partition, Transactions
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.answers import Answer, AnswerBatch, AnswerKind
from schemas.headers import REASON, Extra, Header, Origin
from schemas.ledger import Outcome
from schemas.results import Result
from schemas.topics import SiteTopics, Tier

pytestmark = pytest.mark.kafka

PARTITIONS = 2
HOUR_US = 3_600_000_000
PAST_US = 1
"""A deadline that was over long ago."""
READ_LIMIT = 3_000
"""Polls of 10 ms for one expected event, at most."""


class Died(Exception):
    """The process is no more, as far as Kafka can see."""


class DyingWriter:
    """Dies at the first transaction that holds records once it is told to; after that nothing is written."""

    def __init__(self, inner: Transactions, orders: "Orders") -> None:
        self._inner = inner
        self._orders = orders

    def start(self) -> None:
        self._inner.start()

    def write(
        self,
        records: Iterable[OutRecord],
        offsets: Mapping[Partition, Commit] | None = None,
        group: GroupReader | None = None,
    ) -> None:
        out = list(records)
        if self._orders.dead:
            raise Died
        if out and self._orders.die:
            self._orders.dead = True
            if self._orders.die == "after the commit":
                self._inner.write(out, offsets, group)
            raise Died
        self._inner.write(out, offsets, group)

    def close(self) -> None:
        self._inner.close()


class Orders:
    """When the settler is to die, and whether it did."""

    def __init__(self, die: str = "") -> None:
        self.die = die
        self.dead = False


class DyingCluster(KafkaCluster):
    """Gives out writers that die."""

    orders: Orders

    def transactions(self, transactional_id: str, compression: Any = "zstd") -> Any:
        return DyingWriter(super().transactions(transactional_id, compression), self.orders)


class Harbour:
    """A site on the session's broker: what is written to it, and what came out."""

    def __init__(self, site: str, cluster: DyingCluster) -> None:
        self.topics = SiteTopics(site)
        self.cluster = cluster
        specs = [spec for spec in self.topics.specs() if spec.tier is Tier.EDGE]
        cluster.create_topics(specs, PARTITIONS, 3_600_000)
        cluster.write_first_positions(self.topics.settler_group, [*self.topics.uplinks, self.topics.answers])
        cluster.orders = Orders()
        self.writer = cluster.transactions(f"test.{site}")
        self.writer.start()
        self.next_seq = 0

    def escalate(
        self, items: int, *, deadline_us: int, partition: int = 0, priority: int = 0, edge: bool = True
    ) -> list[Header]:
        """Write `items` records to an uplink topic, one transaction for every two: Kafka's markers leave gaps."""
        sent = []
        for seq in range(self.next_seq, self.next_seq + items):
            extra = Extra("7", 0.4, "below_threshold") if edge else Extra(reason="below_threshold")
            sent.append(
                Header(1, f"cam-{partition}", 0, seq, 1, 100, deadline_us, priority, "raw", model="edge@1", extra=extra)
            )
        self.next_seq += items
        for first in range(0, items, 2):
            self.writer.write(
                OutRecord(
                    self.topics.uplink(priority),
                    b"pixels",
                    header.stream.encode(),
                    partition,
                    headers.pair("image/x-raw", header),
                )
                for header in sent[first : first + 2]
            )
        return sent

    def answer(self, sent: Sequence[Header], kind: AnswerKind = AnswerKind.ANSWERED, label: str = "8") -> None:
        """Write the cloud's answers to these records, one answers record a partition."""
        where = {
            (header.stream, header.first_seq): Origin(header.priority, record.partition(), record.offset())
            for record in self.cluster.read_all(self.topics.uplinks)
            for header in [readable(record)]
            if header is not None
        }
        for partition in range(PARTITIONS):
            answers = [
                Answer(h.stream, h.epoch, h.first_seq, origin, kind, label, 0.99, "cloud@1", "undecodable")
                for h in sent
                for origin in [where[h.stream, h.first_seq]]
                if origin.partition == partition
            ]
            if answers:
                batch = AnswerBatch(wire.VERSION, self.topics.site, answers)
                self.writer.write([OutRecord(self.topics.answers, wire.encode(batch), partition=partition)])

    def marks(self) -> Counter[tuple[str, int, str, str]]:
        """Every mark, taken apart: stream, seq, outcome and reason."""
        return Counter(
            (mark.stream, seq, mark.outcome.value, mark.reason)
            for record in self.cluster.read_all([self.topics.ledger])
            for mark in wire.decode_marks(record.value()).marks
            for seq in range(mark.first_seq, mark.last_seq + 1)
        )

    def results(self) -> list[Result]:
        return [
            result
            for record in self.cluster.read_all([self.topics.results])
            for result in wire.decode_results(record.value()).results
        ]

    def wait_for_marks(self, items: int) -> None:
        """Until `items` items have a mark."""
        starts = {(self.topics.ledger, number): 0 for number in range(PARTITIONS)}
        reader = self.cluster.reader(starts)
        try:
            seen = 0
            for _ in range(READ_LIMIT):
                for record in reader.poll(100, 0.01):
                    marks = wire.decode_marks(record.value()).marks
                    seen += sum(mark.last_seq - mark.first_seq + 1 for mark in marks)
                if seen >= items:
                    return
            pytest.fail(f"{seen} items have a mark, {items} were expected")
        finally:
            reader.close()

    @contextmanager
    def settler(self, orders: Orders | None = None) -> Iterator[tuple[SettlerStage, "Future[None]"]]:
        """A settler that runs until the end of the block, or until it dies."""
        cluster = DyingCluster(self.cluster.name, self.cluster.bootstrap)
        cluster.orders = orders or Orders()
        stage, stop = SettlerStage(self.topics.site), threading.Event()
        runner = StageRunner(
            stage,
            cluster,
            group=self.topics.settler_group,
            transactional_id=f"settle.{self.topics.site}.0",
            stop=stop,
        )
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(runner.run)
            try:
                yield stage, done
            finally:
                stop.set()
        if not cluster.orders.dead:
            done.result()
        cluster.close()


def readable(record: Any) -> Header | None:
    try:
        return headers.find(record.headers())
    except RecordError:
        return None


@pytest.fixture
def harbour(broker: Any, site: str) -> Iterator[Harbour]:
    cluster = DyingCluster("kafka.edge", broker.bootstrap)
    try:
        yield Harbour(site, cluster)
    finally:
        cluster.close()


def far() -> int:
    return time.time_ns() // 1000 + HOUR_US


def marked(sent: Iterable[Header], outcome: Outcome, reason: str = "") -> Counter[tuple[str, int, str, str]]:
    return Counter((header.stream, header.first_seq, outcome.value, reason) for header in sent)


def test_every_way_to_end(harbour: Harbour) -> None:
    answered = [
        *harbour.escalate(3, deadline_us=far()),
        *harbour.escalate(3, deadline_us=far(), partition=1, priority=2, edge=False),
    ]
    silent = harbour.escalate(2, deadline_us=PAST_US, priority=1)
    expired = harbour.escalate(2, deadline_us=PAST_US, partition=1, edge=False)
    refused = harbour.escalate(1, deadline_us=far())
    buried = harbour.escalate(1, deadline_us=far(), edge=False)
    with harbour.settler() as (stage, _):
        harbour.wait_for_marks(4)
        harbour.answer(silent, label="late")
        harbour.answer(answered)
        harbour.answer([*refused, *buried], AnswerKind.DEAD_LETTERED)
        harbour.wait_for_marks(12)
    assert harbour.marks() == (
        marked(answered, Outcome.ANSWERED_CLOUD)
        + marked([*silent, *refused], Outcome.ANSWERED_EDGE_FALLBACK)
        + marked(expired, Outcome.EXPIRED)
        + marked(buried, Outcome.DEAD_LETTERED, "undecodable")
    )
    found = {(result.stream, result.seq): result for result in harbour.results()}
    assert len(harbour.results()) == len(found) == len(answered) + len(silent) + len(refused)
    for header in answered:
        result = found[header.stream, header.first_seq]
        assert (result.label, result.model, result.reason) == ("8", "cloud@1", "below_threshold")
        assert result.edge_label == header.extra.edge_label
    assert {found[h.stream, h.first_seq].reason for h in silent} == {"deadline"}
    assert {found[h.stream, h.first_seq].reason for h in refused} == {"cloud_dead_letter"}
    assert stage.counts.late_answer == len(silent)
    assert stage.counts.settled == 12


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_crash_leaves_every_item_one_outcome(harbour: Harbour, moment: str) -> None:
    """The second record and more settle before the first: only the bitmap in the commit says so after the crash."""
    sent = harbour.escalate(40, deadline_us=far())
    early = sent[1:20]
    with harbour.settler():
        harbour.answer(early)
        harbour.wait_for_marks(len(early))
    uplink = (harbour.topics.uplinks[0], 0)
    commit = harbour.cluster.committed(harbour.topics.settler_group, harbour.topics.uplinks)[uplink]
    assert commit.offset == 0
    assert commit.metadata

    overdue = harbour.escalate(5, deadline_us=PAST_US, priority=1)
    harbour.answer(sent[20:30])
    orders = Orders(moment)
    with harbour.settler(orders) as (_, done), pytest.raises(Died):
        done.result(timeout=60)
    assert orders.dead

    harbour.answer([sent[0], *sent[15:]])
    with harbour.settler():
        harbour.wait_for_marks(len(sent) + len(overdue))
        # Answers come in order: once this one has its mark, all those that came late were handled.
        last = harbour.escalate(1, deadline_us=far())
        harbour.answer(last)
        harbour.wait_for_marks(len(sent) + len(overdue) + 1)
    assert harbour.marks() == (
        marked([*sent, *last], Outcome.ANSWERED_CLOUD) + marked(overdue, Outcome.ANSWERED_EDGE_FALLBACK)
    )
    assert Counter(result.seq for result in harbour.results()) == Counter(range(harbour.next_seq))
    commits = harbour.cluster.committed(harbour.topics.settler_group, [*harbour.topics.uplinks, harbour.topics.answers])
    assert {found.metadata for found in commits.values()} == {""}


def test_what_is_not_ours_is_kept_and_the_rest_goes_on(harbour: Harbour) -> None:
    newer = headers.encode(Header(9, "cam-0", 0, 0, 2, 0, 0, 0, "raw"))
    uplink, answers = harbour.topics.uplinks[0], harbour.topics.answers
    other_site = AnswerBatch(wire.VERSION, "elsewhere", [])
    later = AnswerBatch(wire.VERSION + 1, harbour.topics.site, [])
    harbour.writer.write(
        [
            OutRecord(uplink, b"spam", partition=0),
            OutRecord(uplink, b"new", partition=0, headers=[(headers.TG, newer)]),
            OutRecord(answers, b"{", partition=0),
            OutRecord(answers, wire.encode(other_site), partition=0),
            OutRecord(answers, wire.encode(later), partition=0),
        ]
    )
    harbour.next_seq = 2
    sent = harbour.escalate(2, deadline_us=far())
    harbour.answer(sent)
    with harbour.settler() as (stage, _):
        harbour.wait_for_marks(4)
    dead = Counter(
        dict(record.headers())[REASON].decode() for record in harbour.cluster.read_all([harbour.topics.dead_letters])
    )
    assert dead == {"foreign": 3, "unknown_version": 2}
    assert harbour.marks() == marked(sent, Outcome.ANSWERED_CLOUD) + Counter(
        {("cam-0", seq, "dead_lettered", "unknown_version"): 1 for seq in (0, 1)}
    )
    assert (stage.counts.foreign, stage.counts.unknown_version) == (3, 2)


def test_two_settlers_share_the_partitions_and_one_takes_over(harbour: Harbour) -> None:
    first = [*harbour.escalate(4, deadline_us=far()), *harbour.escalate(4, deadline_us=far(), partition=1)]
    with harbour.settler():
        harbour.answer(first[1:4])
        harbour.wait_for_marks(3)
        other = KafkaCluster(harbour.cluster.name, harbour.cluster.bootstrap)
        stage, stop, took = SettlerStage(harbour.topics.site), threading.Event(), threading.Event()
        runner = StageRunner(
            Watched(stage, took.set),
            other,
            group=harbour.topics.settler_group,
            transactional_id=f"settle.{harbour.topics.site}.1",
            stop=stop,
        )
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(runner.run)
            assert took.wait(60)
            harbour.answer(first)
            harbour.wait_for_marks(len(first))
            stop.set()
        done.result()
        second = harbour.escalate(4, deadline_us=far(), partition=1)
        harbour.answer(second)
        harbour.wait_for_marks(len(first) + len(second))
        other.close()
    assert harbour.marks() == marked([*first, *second], Outcome.ANSWERED_CLOUD)


class Watched:
    """A stage that says when it was given partitions."""

    def __init__(self, stage: SettlerStage, given: Callable[[], None]) -> None:
        self._stage = stage
        self._given = given
        self.topics = stage.topics
        self.revoked, self.process, self.tick, self.close = stage.revoked, stage.process, stage.tick, stage.close

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        self._stage.assigned(partitions)
        self._given()
