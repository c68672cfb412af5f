"""Records cross from one Kafka to another exactly once and in order, whoever dies, stalls or takes over."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipelines.core.lanes import FLOOR_SHARE
from pipelines.errors import ForeignRecord, TransportError
from pipelines.runtime.forwarder import Expired, Forwarder, ForwarderLimits, Lane, TakenOver
from pipelines.transport.base import Aborted, OutOfRange, OutRecord, Partition, Record
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.positions import OWNER_KEY, ForwardPosition, Owner, forward_key
from schemas.topics import Tier, TopicSpec

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 2
LANES = ("high", "low")
HOUR_MS = 3_600_000
WAIT_S = 60
QUICK = ForwarderLimits(transaction_bytes=400, linger_ms=1, retry_first_s=0.01, retry_most_s=0.05)
"""Many small transactions: a fault falls between them."""


def prepare_for(topic: str) -> Callable[[Record, int], OutRecord | Expired]:
    def prepare(record: Record, now_us: int) -> OutRecord | Expired:
        value = record.value() or b""
        if value.startswith(b"expired"):
            return Expired()
        if value.startswith(b"foreign"):
            raise ForeignRecord("says the test")
        return OutRecord(topic, value, record.key(), record.partition())

    return prepare


def forwarder(
    source: KafkaCluster,
    destination: KafkaCluster,
    site: str,
    stop: threading.Event,
    instance: str = "first",
    limits: ForwarderLimits = QUICK,
) -> Forwarder:
    return Forwarder(
        source=source,
        destination=destination,
        lanes=[Lane(f"{site}.{name}", prepare_for(f"{site}.to.{name}")) for name in LANES],
        positions_topic=f"{site}.positions",
        transactional_id=f"forward.{site}",
        instance=instance,
        stop=stop,
        limits=limits,
    )


class Prefetched(KafkaCluster):
    """The first poll of its readers gives `count` records at once: what a forwarder chooses from is then known."""

    count = 0

    def reader(self, starts: Mapping[Partition, int], *given: Any) -> Any:
        reader = super().reader(starts, *given)
        poll, begun = reader.poll, threading.Event()

        def whole(max_records: int, timeout_s: float) -> list[Record]:
            if begun.is_set() or not self.count:
                return poll(max_records, timeout_s)
            begun.set()
            found: list[Record] = []
            for _ in range(int(WAIT_S / 0.1)):
                found += poll(max_records, 0.1)
                if len(found) >= self.count:
                    return found
            raise AssertionError(f"only {len(found)} of {self.count} came")

        reader.poll = whole  # type: ignore[method-assign]
        return reader


class Link:
    """Two clusters, the topics of one test on them, and what lies there."""

    def __init__(self, site: str, source: str, destination: Any) -> None:
        self.site = site
        self.source = Prefetched("kafka.edge", source)
        self.destination = destination
        self.froms = [f"{site}.{name}" for name in LANES]
        self.tos = [f"{site}.to.{name}" for name in LANES]
        self.positions_topic = f"{site}.positions"
        specs = [TopicSpec(name, Tier.EDGE) for name in self.froms]
        self.source.create_topics(specs, PARTITIONS, HOUR_MS)
        positions = TopicSpec(self.positions_topic, Tier.CLOUD, keyed=False, compacted=True)
        specs = [*(TopicSpec(name, Tier.CLOUD) for name in self.tos), positions]
        self.destination.create_topics(specs, PARTITIONS, HOUR_MS)
        self._sender = self.source.transactions(f"send.{site}")
        self._sender.start()

    def write_first_positions(self) -> None:
        keys = [forward_key(*partition) for partition in self.source.partitions(self.froms)]
        first = wire.encode(ForwardPosition(0))
        with closing(KafkaCluster.transactions(self.destination, f"first.{self.site}")) as writer:
            writer.start()
            writer.write([OutRecord(self.positions_topic, first, key, 0) for key in keys])

    def send(self, lane: int, values: Sequence[bytes]) -> None:
        self._sender.write(
            [OutRecord(self.froms[lane], v, b"key", number % PARTITIONS) for number, v in enumerate(values)]
        )

    def stored(self) -> tuple[dict[bytes, ForwardPosition], list[str]]:
        """The positions, and the owners in their order."""
        positions, owners = {}, []
        for record in self.destination.read_all([self.positions_topic]):
            if record.key() == OWNER_KEY:
                owners.append(wire.decode_owner(record.value()).instance)
            else:
                positions[record.key() or b""] = wire.decode_forward_position(record.value())
        return positions, owners

    def arrived(self, count: int, at: Mapping[int, Callable[[], None]] | None = None) -> dict[Partition, list[bytes]]:
        """All that came, as soon as there is so much; on the way, what is to be done `at` so many records."""
        found: dict[Partition, list[bytes]] = {p: [] for p in self.destination.partitions(self.tos)}
        due = sorted((at or {}).items())
        with closing(self.destination.reader(dict.fromkeys(found, 0))) as reader:
            for _ in range(int(WAIT_S / 0.1)):
                for record in reader.poll(50, 0.1):
                    found[record.topic(), record.partition()].append(record.value() or b"")
                total = sum(map(len, found.values()))
                while due and total >= due[0][0]:
                    due.pop(0)[1]()
                if total >= count and not due:
                    return found
        raise AssertionError(f"{sum(map(len, found.values()))} of {count} came")

    @contextmanager
    def running(
        self, instance: str = "first", limits: ForwarderLimits = QUICK, destination: KafkaCluster | None = None
    ) -> Iterator["Future[None]"]:
        """A forwarder until the end of the block. What it raises is in the future."""
        stop = threading.Event()
        one = forwarder(self.source, destination or self.destination, self.site, stop, instance, limits)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(one.run)
            try:
                yield done
            finally:
                stop.set()
                done.exception(WAIT_S)

    def close(self) -> None:
        self._sender.close()
        self.source.close()
        self.destination.close()


@pytest.fixture
def bare_link(brokers, site, steered) -> Iterator[Link]:
    """Without first positions."""
    with closing(Link(site, brokers.edge.bootstrap, steered("kafka.cloud", brokers.cloud.bootstrap))) as one:
        yield one


@pytest.fixture
def link(bare_link) -> Link:
    bare_link.write_first_positions()
    return bare_link


def numbered(first: int, count: int) -> list[bytes]:
    return [b"%06d" % number for number in range(first, first + count)]


def in_order(link: Link, values: Sequence[bytes]) -> dict[Partition, list[bytes]]:
    """What must have arrived when each lane was sent `values`."""
    return {(topic, number): list(values[number::PARTITIONS]) for topic in link.tos for number in range(PARTITIONS)}


def refuse(write: Callable[[], None]) -> None:
    raise Aborted("refused by the test")


def lose_the_answer(write: Callable[[], None]) -> None:
    write()
    raise Aborted("written, and nobody knows")


def test_all_arrive_in_order_and_what_does_not_is_counted(link):
    values = [value for n in range(100) for value in (b"%06d" % n, b"%06d" % n, b"expired", b"foreign", b"", b"")]
    sent = [value for value in values if value not in (b"expired", b"foreign")]
    for lane in range(len(LANES)):
        link.send(lane, values)
    with link.running() as done:
        found = link.arrived(len(sent) * len(LANES))
    done.result()
    assert found == in_order(link, sent)
    positions, owners = link.stored()
    assert owners == ["first"]
    ends = link.source.end_offsets(link.froms)
    assert positions.keys() == {forward_key(*partition) for partition in ends}
    for (topic, number), end in ends.items():
        own = sent[number::PARTITIONS]
        counted = ForwardPosition(
            next_offset=positions[forward_key(topic, number)].next_offset,
            records=len(own),
            bytes=sum(len(value) + len(b"key") for value in own),
            expired=100 * (number == 0),
            foreign=100 * (number == 1),
        )
        assert positions[forward_key(topic, number)] == counted
        assert counted.next_offset == 300 < end, "the position is after the last record; its marker takes an offset"


@pytest.mark.parametrize(
    "faults",
    [
        {("claim.write", 1): refuse, ("write", 1): refuse, ("write", 3): refuse, ("write", 4): refuse},
        {("claim.write", 1): lose_the_answer, ("write", 1): lose_the_answer, ("write", 3): lose_the_answer},
        {("write", 2): lose_the_answer, ("write", 3): refuse, ("write", 6): lose_the_answer},
    ],
    ids=["rolled back", "unknown end", "mixed"],
)
def test_each_record_arrives_once_whatever_a_write_says(link, faults):
    values = numbered(0, 200)
    for lane in range(len(LANES)):
        link.send(lane, values)
    link.destination.at = faults
    with link.running() as done:
        link.arrived(len(values) * len(LANES))
    done.result()
    assert all(link.destination.calls[name] >= number for name, number in faults)
    assert link.arrived(len(values) * len(LANES)) == in_order(link, values)
    assert link.stored()[1] == ["first"], "claimed once, whatever became of the first try"


def test_a_budget_goes_by_priority_with_a_floor_for_the_last(link):
    # Of 100 bytes each; a transaction takes 20. Its floor lets every lane with something to send have 2 of them.
    values = [b"%0100d" % number for number in range(180)]
    for lane in range(len(LANES)):
        link.send(lane, values)
    link.source.count = len(values)
    with link.running(limits=ForwarderLimits(transaction_bytes=2_000)) as done:
        found = link.arrived(len(values) * len(LANES))
    done.result()
    assert found == in_order(link, values)
    sent = [[sum(r.topic == topic for r in records) for topic in link.tos] for records in link.destination.written]
    floor = int(20 * FLOOR_SHARE / len(LANES))
    assert floor == 2
    while_high = [[20 - floor, floor]] * 10
    assert [pair for pair in sent if any(pair)] == [*while_high, *[[0, 20]] * 8]


CHILD = """
import sys, threading
from tests.integration.test_forwarder import KafkaCluster, forwarder
source, destination, site, instance = sys.argv[1:]
forwarder(KafkaCluster("a", source), KafkaCluster("b", destination), site, threading.Event(), instance).run()
"""


def test_kill_9_at_any_moment_loses_and_doubles_nothing(link, tmp_path):
    values = numbered(0, 3_000)
    for lane in range(len(LANES)):
        link.send(lane, values)
    children: list[subprocess.Popen[bytes]] = []

    def next_life() -> None:
        if children:
            children[-1].kill()
            children[-1].wait()
        addresses = [link.source.bootstrap, link.destination.bootstrap]
        with (tmp_path / "log").open("ab") as log:
            arguments = [*addresses, link.site, f"life-{len(children)}"]
            children.append(
                subprocess.Popen([sys.executable, "-c", CHILD, *arguments], cwd=ROOT, stdout=log, stderr=log)
            )

    total = len(values) * len(LANES)
    next_life()
    try:
        found = link.arrived(total, {total * part // 100: next_life for part in (7, 29, 50, 83)})
        assert children[-1].poll() is None, (tmp_path / "log").read_text()
    finally:
        children[-1].kill()
        children[-1].wait()
    assert found == in_order(link, values)
    positions, owners = link.stored()
    assert owners == [f"life-{number}" for number in range(5)]
    assert [position.records for position in positions.values()] == [len(values) // PARTITIONS] * 2 * len(LANES)


def test_who_takes_over_goes_on_and_the_first_ends(link, steered):
    values = numbered(0, 40)
    own, started = steered("kafka.cloud", link.destination.bootstrap), threading.Event()
    own.at = {("start", 1): lambda start: (start(), started.set())}
    with link.running("first") as first:
        link.send(0, values[:20])
        link.arrived(20)
        with link.running("second", destination=own) as second:
            assert started.wait(WAIT_S)
            link.send(0, values[20:])
            link.send(1, values)
            with pytest.raises(TakenOver, match="'second' took over from 'first'") as raised:
                first.result(WAIT_S)
            found = link.arrived(2 * len(values))
    second.result()
    assert raised.value.exit_code == 5
    assert found == in_order(link, values)
    assert link.stored()[1] == ["first", "second"], "the first did not take over again"
    own.close()


def test_whoever_starts_last_goes_on_whatever_comes_between(link, make_race):
    race, values = make_race(link.destination.bootstrap), numbered(0, 1_000)
    for lane in range(len(LANES)):
        link.send(lane, values)
    total = len(values) * len(LANES)

    def until_all_have_arrived() -> None:
        with link.running("newer", destination=race.newer) as newer:
            link.arrived(total)
        newer.result()

    error = race.run(forwarder(link.source, race.older, link.site, race.stop, "older").run, until_all_have_arrived)
    assert isinstance(error, TakenOver)
    assert str(error) == f"'forward.{link.site}': 'newer' took over from 'older'"
    assert link.arrived(total) == in_order(link, values)
    owners = link.stored()[1]
    assert owners[-1] == "newer"
    assert len(owners) == len(set(owners)), "none claims twice"


def test_a_transaction_that_was_given_up_does_not_end_its_owner(link):
    def fence(write: Callable[[], None]) -> None:
        with closing(KafkaCluster.transactions(link.destination, f"forward.{link.site}")) as other:
            other.start()
        write()

    values = numbered(0, 200)
    for lane in range(len(LANES)):
        link.send(lane, values)
    link.destination.at = {("write", 2): fence, ("write", 5): fence}
    with link.running() as done:
        link.arrived(len(values) * len(LANES))
    done.result()
    assert link.destination.calls["start"] == 3
    assert link.arrived(len(values) * len(LANES)) == in_order(link, values)
    assert link.stored()[1] == ["first"]


def test_a_fenced_forwarder_reads_who_owns_before_it_fences_back(link):
    """Somebody took over while a transaction of ours was on its way: not even `start` may come after that."""
    other = KafkaCluster.transactions(link.destination, f"forward.{link.site}")
    owner = wire.encode(Owner("second", 1))

    def take_over(write: Callable[[], None]) -> None:
        other.start()
        other.write([OutRecord(link.positions_topic, owner, OWNER_KEY, 0)])
        write()

    link.send(0, numbered(0, 20))
    link.destination.at = {("write", 1): take_over}
    with link.running() as done, pytest.raises(TakenOver):
        done.result(WAIT_S)
    assert link.stored()[1] == ["first", "second"]
    assert list(link.destination.read_all(link.tos)) == []
    other.write([OutRecord(link.tos[0], b"the second goes on", partition=0)])
    other.close()


def test_without_a_position_nothing_is_guessed(bare_link):
    bare_link.send(0, numbered(0, 2))
    no_patience = ForwarderLimits(retries=0)
    with (
        bare_link.running(limits=no_patience) as done,
        pytest.raises(TransportError, match=r"has no position for .*\.high\[0\]: `tidegate topics apply` writes"),
    ):
        done.result(WAIT_S)
    assert list(bare_link.destination.read_all(bare_link.tos)) == []


def test_records_that_retention_removed_unread_end_the_forwarder(link):
    link.send(0, numbered(0, 10))
    admin = AdminClient({"bootstrap.servers": link.source.bootstrap, "log_level": 2})
    for future in admin.delete_records([TopicPartition(link.froms[0], 1, 3)]).values():
        future.result()
    hopeful = ForwarderLimits(retry_first_s=HOUR_MS, retry_most_s=HOUR_MS)
    with link.running(limits=hopeful) as done, pytest.raises(OutOfRange):
        done.result(WAIT_S)
    assert link.stored()[0][forward_key(link.froms[0], 1)] == ForwardPosition(0), "no record was passed over"
