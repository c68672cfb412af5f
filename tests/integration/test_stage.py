"""One stage on a real Kafka: whatever fails at whatever moment, each record is answered once, in order."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipelines.core.credit import CreditLimits
from pipelines.core.engine import EngineLimits
from pipelines.core.work import WorkNote
from pipelines.errors import BrokerError
from pipelines.observe.instruments import Instruments
from pipelines.observe.metrics import ITEMS, READ, TRANSACTIONS, WRITTEN
from pipelines.runtime.stage import FAILED, NOTHING, StageRunner, Step, offsets_after
from pipelines.transport.base import Aborted, Commit, Disconnected, OutOfRange, OutRecord, Partition, Record
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier, TopicSpec

PARTITIONS = 4
RECORDS = 400
HOUR_MS = 3_600_000
QUICK = EngineLimits(batch_records=20, pending_records=20, retry_first_us=10_000, retry_most_us=50_000)
"""Many small transactions: a fault falls between them."""
PATIENT = EngineLimits(commit_interval_us=HOUR_MS * 1000)
"""Nothing is written unless something else than the clock wants it."""
WAIT_S = 60


class Echo:
    """Answers each record with its own value, in the partition that it came from. Notes what it is told."""

    def __init__(self, source: str, destination: str) -> None:
        self.topics = [source]
        self.destination = destination
        self.held: dict[Partition, Commit] = {}
        self.seen: list[bytes] = []
        self.closed = False
        self.moved = threading.Condition()

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        with self.moved:
            self.held.update(partitions)
            self.moved.notify_all()

    def revoked(self, partitions: Sequence[Partition]) -> None:
        with self.moved:
            for partition in partitions:
                del self.held[partition]
            self.moved.notify_all()

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        assert {(record.topic(), record.partition()) for record in records} <= self.held.keys()
        with self.moved:
            self.seen += [record.value() or b"" for record in records]
            self.moved.notify_all()
        out = [OutRecord(self.destination, record.value(), partition=record.partition()) for record in records]
        return Step(out, offsets_after(records))

    def tick(self, now_us: int) -> Step:
        return NOTHING

    def close(self) -> None:
        self.closed = True

    def wait(self, reached: Callable[[], bool]) -> None:
        with self.moved:
            assert self.moved.wait_for(reached, WAIT_S)


class Faulty(KafkaCluster):
    """Its writers and readers do at their n-th call what the test says, instead of or after what they should."""

    writes: Mapping[int, Callable[[Callable[[], None]], None]] = {}
    lost_at_poll = 0
    """Of the first reader: from then on it gives nothing any more."""
    left = 0
    """Faults that came."""

    def transactions(self, transactional_id: str, *given: Any) -> Any:
        writer = super().transactions(transactional_id, *given)
        write, calls = writer.write, [0]

        def counted(*arguments: Any) -> None:
            calls[0] += 1
            if calls[0] not in self.writes:
                return write(*arguments)
            self.left += 1
            try:
                return self.writes[calls[0]](lambda: write(*arguments))
            except Aborted:
                writer.close()  # As after any refusal: only `start` makes it able to write again.
                raise

        writer.write = counted  # type: ignore[method-assign]
        return writer

    def group_reader(self, group: str, *given: Any, **named: Any) -> Any:
        reader = super().group_reader(group, *given, **named)
        poll, last, calls = reader.poll, self.lost_at_poll, [0]
        self.lost_at_poll = 0

        def counted(*arguments: Any) -> list[Record]:
            calls[0] += 1
            if calls[0] == last:
                self.left += 1
                raise Disconnected("gone, says the test")
            records = poll(*arguments)
            return [] if 0 < last < calls[0] else records

        reader.poll = counted  # type: ignore[method-assign]
        return reader


@pytest.fixture
def cluster(broker, site) -> Iterator[Faulty]:
    with closing(Faulty("kafka.edge", broker.bootstrap)) as one:
        one.create_topics([TopicSpec(f"{site}.{name}", Tier.EDGE) for name in ("in", "out")], PARTITIONS, HOUR_MS)
        one.write_first_positions(site, [f"{site}.in"])
        yield one


@pytest.fixture
def send(cluster, site) -> Iterator[Callable[[int, int], None]]:
    with closing(KafkaCluster.transactions(cluster, f"in.{site}")) as writer:
        writer.start()
        yield lambda first, count: writer.write(
            [OutRecord(f"{site}.in", b"%05d" % n, partition=n % PARTITIONS) for n in range(first, first + count)]
        )


@contextmanager
def running(
    cluster: KafkaCluster, site: str, number: int = 0, limits: EngineLimits = QUICK
) -> Iterator[tuple[Echo, "Future[None]"]]:
    """A runner until the end of the block. What it raises is in the future."""
    stage, stop = Echo(f"{site}.in", f"{site}.out"), threading.Event()
    runner = StageRunner(
        stage, cluster, group=site, transactional_id=f"stage.{site}.{number}", stop=stop, limits=limits
    )
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(runner.run)
        try:
            yield stage, done
        finally:
            stop.set()
            done.exception(WAIT_S)


def answers(cluster: KafkaCluster, site: str, expected: int) -> list[list[bytes]]:
    """What lies in each output partition, as soon as there are so many records."""
    found: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    with closing(cluster.reader({(f"{site}.out", number): 0 for number in range(PARTITIONS)})) as reader:
        for _ in range(int(WAIT_S / 0.1)):
            for record in reader.poll(1000, 0.1):
                found[record.partition()].append(record.value() or b"")
            if sum(map(len, found)) >= expected:
                return found
    raise AssertionError(f"{sum(map(len, found))} of {expected} came")


def each_once(count: int) -> list[list[bytes]]:
    return [[b"%05d" % n for n in range(first, count, PARTITIONS)] for first in range(PARTITIONS)]


def refuse(write: Callable[[], None]) -> None:
    raise Aborted("refused by the test")


def lose_the_answer(write: Callable[[], None]) -> None:
    write()
    raise Aborted("written, and nobody knows")


def refuse_as_broker(write: Callable[[], None]) -> None:
    raise BrokerError("refused by the test")


@pytest.mark.parametrize(
    "faults",
    [
        {2: refuse, 3: refuse, 6: refuse},
        {1: lose_the_answer, 4: lose_the_answer, 5: lose_the_answer},
        {2: refuse_as_broker, 3: lose_the_answer, 4: refuse},
    ],
    ids=["rolled back", "unknown end", "mixed"],
)
def test_each_record_is_answered_once_whatever_a_write_says(cluster, site, send, faults):
    send(0, RECORDS)
    cluster.writes = faults
    with running(cluster, site) as (_, done):
        answers(cluster, site, RECORDS)
    done.result()
    assert cluster.left == len(faults)
    assert answers(cluster, site, RECORDS) == each_once(RECORDS)
    committed = cluster.committed(site, [f"{site}.in"])
    ends = cluster.end_offsets([f"{site}.in"])
    with running(cluster, site) as (stage, done):
        stage.wait(lambda: len(stage.held) == PARTITIONS)
        assert stage.held == committed
        send(RECORDS, PARTITIONS)
        answers(cluster, site, RECORDS + PARTITIONS)
    assert [value for value in stage.seen if int(value) < RECORDS] == [], "a second life does nothing again"
    assert all(commit.offset <= ends[partition] for partition, commit in committed.items())


def test_being_fenced_costs_nothing_but_time(cluster, site, send):
    def fence(write: Callable[[], None]) -> None:
        with closing(KafkaCluster.transactions(cluster, f"stage.{site}.0")) as other:
            other.start()
        write()

    send(0, RECORDS)
    cluster.writes = {2: fence, 5: fence}
    with running(cluster, site) as (_, done):
        answers(cluster, site, RECORDS)
    done.result()
    assert cluster.left == 2
    assert answers(cluster, site, RECORDS) == each_once(RECORDS)


def test_a_reader_that_lost_its_cluster_is_replaced(cluster, site, send):
    send(0, RECORDS)
    cluster.lost_at_poll = 12
    with running(cluster, site) as (_, done):
        answers(cluster, site, RECORDS)
        send(RECORDS, PARTITIONS)
        answers(cluster, site, RECORDS + PARTITIONS)
    done.result()
    assert cluster.left == 1
    assert answers(cluster, site, RECORDS + PARTITIONS) == each_once(RECORDS + PARTITIONS)


def test_what_is_pending_is_written_before_partitions_go(cluster, site, send):
    send(0, RECORDS)
    with running(cluster, site, 0, PATIENT) as (first, done):
        first.wait(lambda: len(first.seen) == RECORDS)
        assert list(cluster.read_all([f"{site}.out"])) == []
        with running(cluster, site, 1, PATIENT) as (second, done_too):
            second.wait(lambda: len(second.held) == PARTITIONS // 2)
            assert answers(cluster, site, RECORDS) == each_once(RECORDS)
            send(RECORDS, PARTITIONS)
            second.wait(lambda: len(second.seen) == PARTITIONS // 2)
            assert [value for value in second.seen if int(value) < RECORDS] == []
            first.wait(lambda: len(first.seen) == RECORDS + PARTITIONS // 2)
            assert not first.held.keys() & second.held.keys()
    # Neither clock nor limit asked for it: what was pending is written at the end.
    assert answers(cluster, site, RECORDS + PARTITIONS) == each_once(RECORDS + PARTITIONS)
    for one in (done, done_too):
        one.result()
    assert first.closed
    assert second.closed


def test_a_refused_write_at_a_revoke_is_done_again_by_who_holds_the_partition_next(cluster, site, send):
    send(0, RECORDS)
    cluster.writes = {1: refuse}
    with running(cluster, site, 0, PATIENT) as (first, done):
        first.wait(lambda: len(first.seen) == RECORDS)
        calm = KafkaCluster("kafka.edge", cluster.bootstrap)
        with closing(calm), running(calm, site, 1) as (second, done_too):
            second.wait(lambda: len(second.seen) >= RECORDS // 2)
            first.wait(lambda: len(first.seen) >= RECORDS + RECORDS // 2)
    for one in (done, done_too):
        one.result()
    assert cluster.left == 1
    assert answers(cluster, site, RECORDS) == each_once(RECORDS)


def test_two_runners_share_while_records_flow(cluster, site, send):
    send(0, RECORDS)
    with running(cluster, site, 0) as (first, done):
        first.wait(lambda: len(first.seen) > 0)
        with running(cluster, site, 1) as (second, done_too):
            send(RECORDS, RECORDS)
            second.wait(lambda: len(second.held) > 0)
            send(2 * RECORDS, RECORDS)
            second.wait(lambda: len(second.seen) > 0)
        send(3 * RECORDS, RECORDS)
        answers(cluster, site, 4 * RECORDS)
    for one in (done, done_too):
        one.result()
    assert answers(cluster, site, 4 * RECORDS) == each_once(4 * RECORDS)


def test_records_that_retention_removed_unread_end_the_stage(cluster, site, send):
    send(0, RECORDS)
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 2})
    for future in admin.delete_records([TopicPartition(f"{site}.in", 1, 3)]).values():
        future.result()
    hopeful = EngineLimits(retry_first_us=HOUR_MS * 1000, retry_most_us=HOUR_MS * 1000)
    with running(cluster, site, 0, hopeful) as (stage, done), pytest.raises(OutOfRange):
        done.result(WAIT_S)
    assert stage.closed
    assert cluster.committed(site, [f"{site}.in"])[f"{site}.in", 1] == Commit(0), "no record was passed over"


def test_what_lasts_is_raised_after_the_stated_tries(cluster, site, send):
    send(0, RECORDS)
    cluster.writes = dict.fromkeys(range(1, 100), refuse)
    limits = EngineLimits(commit_interval_us=0, retry_first_us=1_000, retry_most_us=1_000, retries=3)
    with running(cluster, site, 0, limits) as (stage, done), pytest.raises(Aborted, match="refused by the test"):
        done.result(WAIT_S)
    assert cluster.left == limits.retries + 1
    assert stage.closed
    assert list(cluster.read_all([f"{site}.out"])) == []


class Choosy(Echo):
    """Fails on whole batches because of single records, and buries those."""

    def __init__(self, source: str, destination: str, poison: frozenset[int]) -> None:
        super().__init__(source, destination)
        self.poison = poison
        self.buried: list[bytes] = []

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        if any(int(record.value() or b"") in self.poison for record in records):
            raise ArithmeticError("a record that nobody can take")
        return super().process(records, now_us)

    def bury(self, record: Record, reason: str, now_us: int) -> Step:
        assert reason == FAILED
        self.buried.append(record.value() or b"")
        out = OutRecord(self.destination, b"dead " + (record.value() or b""), partition=record.partition())
        return Step([out], offsets_after([record]))


def test_items_on_which_a_stage_fails_are_found_and_buried_and_no_other(cluster, site, send):
    poison = frozenset({0, 7, 8, 201, RECORDS - 1})
    send(0, RECORDS)
    stage, stop = Choosy(f"{site}.in", f"{site}.out", poison), threading.Event()
    runner = StageRunner(stage, cluster, group=site, transactional_id=f"stage.{site}.0", stop=stop, limits=QUICK)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(runner.run)
        found = answers(cluster, site, RECORDS)
        stop.set()
        done.result(WAIT_S)
    dead = {b"dead %05d" % number for number in poison}
    expected = [[b"dead " + value if b"dead " + value in dead else value for value in of] for of in each_once(RECORDS)]
    assert found == expected, "in order, each once"
    assert sorted(stage.buried) == sorted(b"%05d" % number for number in poison)


def test_where_every_item_fails_the_worker_ends_instead_of_burying_them_all(cluster, site, send):
    send(0, RECORDS)
    stage, stop = Choosy(f"{site}.in", f"{site}.out", frozenset(range(RECORDS))), threading.Event()
    limits = msgspec.structs.replace(QUICK, burials=5)
    runner = StageRunner(stage, cluster, group=site, transactional_id=f"stage.{site}.0", stop=stop, limits=limits)
    with pytest.raises(ArithmeticError):
        runner.run()
    assert len(stage.buried) == limits.burials
    assert stage.closed


class Slow(Echo):
    """Is at its first batch until it may go on."""

    def __init__(self, source: str, destination: str) -> None:
        super().__init__(source, destination)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        return super().process(records, now_us)


def test_a_long_batch_holds_up_a_rebalance_and_loses_and_doubles_nothing(cluster, site, send):
    send(0, RECORDS)
    slow, stop = Slow(f"{site}.in", f"{site}.out"), threading.Event()
    runner = StageRunner(slow, cluster, group=site, transactional_id=f"stage.{site}.0", stop=stop, limits=QUICK)
    with ThreadPoolExecutor(1) as pool, closing(cluster.look()) as look:
        done = pool.submit(runner.run)
        assert slow.begun.wait(WAIT_S)
        with running(cluster, site, 1) as (second, done_too):
            until_s = time.monotonic() + WAIT_S
            while len(look.members([site])[site]) < 2:
                assert time.monotonic() < until_s
            assert not second.held, "nothing is given away that is being worked on"
            slow.go_on.set()
            second.wait(lambda: len(second.held) == PARTITIONS // 2)
            answers(cluster, site, RECORDS)
        stop.set()
        done.result(WAIT_S)
    done_too.result()
    assert answers(cluster, site, RECORDS) == each_once(RECORDS)


def test_what_is_read_ahead_is_bounded_while_a_batch_takes_long(cluster, site, send):
    """Beyond its share a partition is paused, and goes on later: all is answered in the end."""
    send(0, RECORDS)
    slow, stop = Slow(f"{site}.in", f"{site}.out"), threading.Event()
    credit = CreditLimits(ahead_records=20, records=40)
    runner = StageRunner(
        slow, cluster, group=site, transactional_id=f"stage.{site}.0", stop=stop, limits=QUICK, credit=credit
    )
    held = runner._fetcher._credit
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(runner.run)
        until_s = time.monotonic() + WAIT_S
        while len(held.paused) < PARTITIONS:
            assert time.monotonic() < until_s
        assert held.records <= credit.records + QUICK.batch_records
        slow.go_on.set()
        answers(cluster, site, RECORDS)
        stop.set()
        done.result(WAIT_S)
    assert answers(cluster, site, RECORDS) == each_once(RECORDS)


class Telling(Echo):
    """Counts what it answers, and may keep something of its own in its commits."""

    own = ""

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        step = super().process(records, now_us)
        offsets = {partition: Commit(commit.offset, self.own) for partition, commit in step.offsets.items()}
        return Step(step.records, offsets, {(ITEMS, "answered_edge", ""): len(records)})


@pytest.mark.parametrize("own", ["", "mine"])
def test_meters_count_what_was_committed_and_commits_say_how_fast_their_worker_is(cluster, site, send, own):
    send(0, RECORDS)
    cluster.writes = {2: refuse, 3: lose_the_answer, 5: refuse}
    stage, stop, instruments = Telling(f"{site}.in", f"{site}.out"), threading.Event(), Instruments("edge", site)
    stage.own = own
    runner = StageRunner(
        stage,
        cluster,
        group=site,
        transactional_id=f"stage.{site}.0",
        stop=stop,
        limits=QUICK,
        name="edge-0",
        notes=True,
        instruments=instruments,
    )
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(runner.run)
        answers(cluster, site, RECORDS)
        stop.set()
        done.result(WAIT_S)

    def counted(name: str, **labels: str) -> float:
        return instruments.meters.registry.get_sample_value(name, {"site": site, "kind": "edge", **labels}) or 0.0

    lost = RECORDS - counted(ITEMS, outcome="answered_edge", reason="")
    assert 0 < lost <= QUICK.batch_records, "of the one commit whose answer was lost, nobody knows"
    assert counted(WRITTEN, topic=f"{site}.out") == RECORDS - lost
    assert counted(READ, topic=f"{site}.in") > RECORDS, "what was rolled back is read again"
    assert counted(TRANSACTIONS, result="aborted") == 3
    assert counted(TRANSACTIONS, result="committed") >= RECORDS / QUICK.batch_records - 1
    assert instruments.why_not() == ""
    for commit in cluster.committed(site, [f"{site}.in"]).values():
        note = WorkNote.read(commit.metadata)
        if own:
            assert commit.metadata == own, "a stage's own comes first"
        else:
            assert note is not None
            assert note.worker == "edge-0"
            assert min(note.record_us, note.commit_us, note.capacity_per_s) > 0


class Nobody:
    """Hears of partitions, and does nothing about it."""

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        pass

    def revoked(self, partitions: Sequence[Partition]) -> None:
        pass

    lost = revoked


def test_a_client_knows_whether_there_is_more_to_read_markers_left_out(broker, cluster, site, send):
    many = 50 * RECORDS  # So many that one by one they take longer than until the next statistics.
    send(0, many)
    watched = KafkaCluster("kafka.edge", broker.bootstrap, {"statistics.interval.ms": 2})
    with closing(watched), closing(watched.group_reader(site, [f"{site}.in"], Nobody())) as reader:

        def read(most: int, *, until_unread: bool, least: int) -> int:
            count, until_s = 0, time.monotonic() + WAIT_S
            while count < least or reader.has_unread != until_unread:
                assert time.monotonic() < until_s, f"{count} were read"
                count += len(reader.poll(most, 0.05))
            return count

        count = read(1, until_unread=True, least=1)
        assert count < many
        # Behind the last record of each partition lies the marker of its transaction.
        assert read(RECORDS, until_unread=False, least=many - count) == many - count
