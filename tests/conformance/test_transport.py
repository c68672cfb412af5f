"""What every `Cluster` must do. An implementation is added to `IMPLEMENTATIONS`."""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipelines.errors import BrokerError, Fenced, TransportError
from pipelines.transport.base import Aborted, Cluster, Commit, OutOfRange, OutRecord, Partition
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier, TopicSpec

PARTITIONS = 2
DAY_MS = 86_400_000


@pytest.fixture(params=["kafka"])
def cluster(request, broker):
    one = KafkaCluster("kafka.edge", broker.bootstrap)
    yield one
    one.close()


@pytest.fixture
def topic(cluster, site):
    cluster.create_topics([TopicSpec(site, Tier.EDGE, media=True)], PARTITIONS, DAY_MS)
    return site


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.held: dict[Partition, Commit] = {}
        self.told: list[str] = []

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        self.held.update(partitions)
        self.told.append("assigned")

    def revoked(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self.held.pop(partition, None)
        self.told.append("revoked")

    def lost(self, partitions: Sequence[Partition]) -> None:
        self.revoked(partitions)


def writer(cluster: Cluster, name: str):
    one = cluster.transactions(name)
    one.start()
    return one


def values(cluster: Cluster, topic: str) -> list[bytes | None]:
    return [record.value() for record in sorted(cluster.read_all([topic]), key=lambda r: (r.partition(), r.offset()))]


def settled(cluster: Cluster, topic: str) -> None:
    """Markers reach partitions one after the other: wait until all that was written is decided."""
    turn = threading.Event()
    for _ in range(200):
        if cluster.end_offsets([topic]) == cluster.end_offsets([topic], stable=False):
            return
        turn.wait(0.05)
    raise AssertionError("a transaction never ended")


def read_until(reader, count: int, also: Callable[[], bool] = lambda: True) -> list:
    found: list = []
    for _ in range(300):
        found += reader.poll(100, 0.1)
        if len(found) >= count and also():
            return found
    raise AssertionError(f"only {len(found)} of {count} came")


def test_a_write_is_seen_whole_and_in_order(cluster, topic):
    one = writer(cluster, f"{topic}.w")
    one.write([OutRecord(topic, b"%d" % n, partition=n % 2) for n in range(10)])
    settled(cluster, topic)
    assert values(cluster, topic) == [b"0", b"2", b"4", b"6", b"8", b"1", b"3", b"5", b"7", b"9"]


def test_records_of_all_kinds_keep_their_order_within_a_partition(cluster, topic):
    key_of_1 = b"abc"
    kinds = [
        lambda value: OutRecord(topic, value, partition=1),
        lambda value: OutRecord(topic, value, key_of_1, partition=1),
        lambda value: OutRecord(topic, value, key_of_1, headers=[("name", b"content")]),
        lambda value: OutRecord(topic, value, partition=1, headers=[("name", b"content")]),
        lambda value: OutRecord(topic, value, key_of_1),
    ]
    # Each kind before and behind each other, alone and in runs longer than what is handed over at once.
    order = [first for pair in itertools.product(range(5), repeat=2) for first in pair] + [0] * 1_200 + [3, 0, 1]
    one = writer(cluster, f"{topic}.w")
    one.write(
        made for n, kind in enumerate(order) for made in (kinds[kind](b"%d" % n), OutRecord(topic, b"", partition=0))
    )
    settled(cluster, topic)
    found = [record for record in cluster.read_all([topic]) if record.partition() == 1]
    assert [record.value() for record in found] == [b"%d" % n for n in range(len(order))]
    assert [record.key() for record in found] == [None if kind in (0, 3) else key_of_1 for kind in order]
    assert [bool(record.headers()) for record in found] == [kind in (2, 3) for kind in order]


def test_a_write_larger_than_the_client_s_queue_goes_in_parts(broker, topic):
    with closing(KafkaCluster("kafka.edge", broker.bootstrap, {"queue.buffering.max.messages": 100})) as cluster:
        one = writer(cluster, f"{topic}.w")
        one.write([OutRecord(topic, b"%d" % n, partition=0) for n in range(2_000)])
        settled(cluster, topic)
        assert values(cluster, topic) == [b"%d" % n for n in range(2_000)]


def test_a_refused_write_leaves_nothing_and_the_writer_goes_on(cluster, topic):
    one = writer(cluster, f"{topic}.w")
    for number in (-1, 0):
        with pytest.raises(Aborted):
            one.write([OutRecord(topic, b"never", partition=number), OutRecord(topic, b"x" * (20 << 20), None, number)])
        one.start()
        one.write([OutRecord(topic, b"after", partition=0)])
    settled(cluster, topic)
    assert values(cluster, topic) == [b"after"] * 2


def test_records_and_group_offsets_are_one(cluster, topic):
    writer(cluster, f"{topic}.in").write([OutRecord(topic, b"%d" % n, partition=0) for n in range(4)])
    cluster.write_first_positions(f"{topic}.g", [topic])
    listener = Listener()
    reader = cluster.group_reader(f"{topic}.g", [topic], listener)
    read_until(reader, 4)
    one = writer(cluster, f"{topic}.w")
    with pytest.raises(Aborted):
        one.write([OutRecord(topic, b"x" * (20 << 20))], {(topic, 0): Commit(4)}, reader)
    assert cluster.committed(f"{topic}.g", [topic])[topic, 0] == Commit(0)
    one.start()
    assert reader.rewind()[topic, 0] == Commit(0)
    assert [record.value() for record in read_until(reader, 4)] == [b"0", b"1", b"2", b"3"]
    one.write([OutRecord(topic, b"out", partition=1)], {(topic, 0): Commit(4, "kept beside")}, reader)
    reader.close()
    settled(cluster, topic)
    assert cluster.committed(f"{topic}.g", [topic])[topic, 0] == Commit(4, "kept beside")
    assert listener.told[-1] == "revoked"


def test_a_second_holder_of_an_id_fences_the_first(cluster, topic):
    first = writer(cluster, f"{topic}.w")
    first.write([OutRecord(topic, b"1", partition=0)])
    second = writer(cluster, f"{topic}.w")
    with pytest.raises(Fenced):
        first.write([OutRecord(topic, b"zombie", partition=0)])
    second.write([OutRecord(topic, b"2", partition=0)])
    settled(cluster, topic)
    assert values(cluster, topic) == [b"1", b"2"]


def holder_of_an_open_transaction(broker, topic: str) -> Producer:
    """Stands between its record in partition 0 and its commit, where no writer of ours stops."""
    id_and_address = {"transactional.id": f"{topic}.w", "bootstrap.servers": broker.bootstrap}
    holder = Producer({**id_and_address, "log_level": 2})
    holder.init_transactions(10)
    holder.begin_transaction()
    holder.produce(topic, b"open", partition=0)
    assert holder.flush(10) == 0
    return holder


def test_what_a_dead_holder_had_open_is_hidden_and_then_rolled_back(cluster, topic, broker):
    dead = holder_of_an_open_transaction(broker, topic)
    assert cluster.end_offsets([topic]) == {(topic, 0): 0, (topic, 1): 0}
    assert cluster.end_offsets([topic], stable=False) == {(topic, 0): 1, (topic, 1): 0}
    with closing(cluster.reader({(topic, 0): 0})) as reader:
        assert reader.poll(10, 1.0) == []

    one = writer(cluster, f"{topic}.w")
    one.write([OutRecord(topic, b"after", partition=0)])
    settled(cluster, topic)
    with pytest.raises(KafkaException):
        dead.commit_transaction(10)
    assert cluster.end_offsets([topic])[topic, 0] > 2, "the open record and its end take offsets"
    assert values(cluster, topic) == [b"after"]


def test_reading_all_waits_for_what_is_being_committed(cluster, topic, broker, monkeypatch):
    holder = holder_of_an_open_transaction(broker, topic)
    look, looks = cluster.end_offsets, []

    def commit_after_the_first(topics, *, stable=True):
        ends = look(topics, stable=stable)
        if stable and not looks:
            looks.append(ends)
            holder.commit_transaction(10)
        return ends

    monkeypatch.setattr(cluster, "end_offsets", commit_after_the_first)
    assert values(cluster, topic) == [b"open"]
    assert looks == [{(topic, 0): 0, (topic, 1): 0}]


def test_keys_choose_partitions_as_in_java(cluster, topic):
    # From Kafka's own test of murmur2: -973932308, -790332482, 479470107; made positive, modulo 2.
    one = writer(cluster, f"{topic}.w")
    one.write([OutRecord(topic, None, key) for key in (b"21", b"foobar", b"abc")])
    settled(cluster, topic)
    where = {record.key(): record.partition() for record in cluster.read_all([topic])}
    assert where == {b"21": 0, b"foobar": 0, b"abc": 1}


def test_reading_all_ends_where_the_log_ended_and_begins_where_told(cluster, topic, monkeypatch):
    one = writer(cluster, f"{topic}.w")
    one.write([OutRecord(topic, b"%d" % n, partition=n % 2) for n in range(8)])
    settled(cluster, topic)
    ends = cluster.end_offsets([topic])
    one.write([OutRecord(topic, b"later", partition=p) for p in (0, 1)])
    settled(cluster, topic)
    # As if these came between the look at the ends and the reading.
    monkeypatch.setattr(cluster, "end_offsets", lambda topics, **_: ends)
    assert sorted(record.value() for record in cluster.read_all([topic], {(topic, 1): 3})) == [
        b"0",
        b"2",
        b"4",
        b"6",
        b"7",
    ]


def test_a_writer_that_was_not_started_refuses(cluster, topic):
    with pytest.raises(Aborted, match="must be started"):
        cluster.transactions(f"{topic}.w").write([OutRecord(topic, b"1")])


def test_partitions_move_between_members_without_a_record_twice(cluster, topic):
    cluster.write_first_positions(f"{topic}.g", [topic])
    first, second = Listener(), Listener()
    one = cluster.group_reader(f"{topic}.g", [topic], first)
    for _ in range(300):
        one.poll(10, 0.1)
        if len(first.held) == PARTITIONS:
            break
    two = cluster.group_reader(f"{topic}.g", [topic], second)
    for _ in range(300):
        one.poll(10, 0.05)
        two.poll(10, 0.05)
        assert not first.held.keys() & second.held.keys()
        if len(first.held) == len(second.held) == 1:
            break
    assert len(first.held) == len(second.held) == 1
    two.abandon()
    for _ in range(300):
        one.poll(10, 0.1)
        if len(first.held) == PARTITIONS:
            break
    assert len(first.held) == PARTITIONS
    assert second.told == ["assigned"], "an abandoned member tells nothing more"
    one.close()


def test_a_position_that_retention_overtook_is_an_error(cluster, topic, broker):
    writer(cluster, f"{topic}.in").write([OutRecord(topic, b"%d" % n, partition=0) for n in range(4)])
    cluster.write_first_positions(f"{topic}.g", [topic])
    settled(cluster, topic)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 2})
    for future in admin.delete_records([TopicPartition(topic, 0, 2)]).values():
        future.result()
    assert cluster.start_offsets([topic])[topic, 0] == 2
    reader = cluster.group_reader(f"{topic}.g", [topic], Listener())
    with pytest.raises(OutOfRange):
        read_until(reader, 1)
    reader.close()


def test_a_reader_takes_what_it_was_given_from_where_it_was_told(cluster, topic):
    writer(cluster, f"{topic}.w").write([OutRecord(topic, b"%d" % n, partition=n % 2) for n in range(6)])
    reader = cluster.reader({(topic, 0): 1})
    assert [record.value() for record in read_until(reader, 2)] == [b"2", b"4"]
    reader.close()


def test_first_positions_are_written_once(cluster, topic):
    cluster.write_first_positions(f"{topic}.g", [topic])
    listener = Listener()
    reader = cluster.group_reader(f"{topic}.g", [topic], listener)
    writer(cluster, f"{topic}.in").write([OutRecord(topic, b"0", partition=0)])
    read_until(reader, 1)
    writer(cluster, f"{topic}.w").write([], {(topic, 0): Commit(1)}, reader)
    cluster.write_first_positions(f"{topic}.g", [topic])
    assert {p: c.offset for p, c in cluster.committed(f"{topic}.g", [topic]).items()} == {(topic, 0): 1, (topic, 1): 0}
    reader.close()


def test_a_group_without_a_position_never_guesses(cluster, topic):
    assert cluster.committed(f"{topic}.g", [topic]) == {}
    reader = cluster.group_reader(f"{topic}.g", [topic], Listener())
    with pytest.raises(OutOfRange):
        read_until(reader, 1)
    reader.close()


def test_how_much_of_a_group_is_held_and_what_it_keeps_beside(cluster, topic):
    cluster.write_first_positions(f"{topic}.g", [topic])
    assert cluster.assigned_partitions(f"{topic}.g") == 0
    listener = Listener()
    reader = cluster.group_reader(f"{topic}.g", [topic], listener)
    assert reader.rewind() == {}, "it holds nothing yet"
    writer(cluster, f"{topic}.in").write([OutRecord(topic, b"0", partition=0)])
    read_until(reader, 1, lambda: len(listener.held) == PARTITIONS)
    assert cluster.assigned_partitions(f"{topic}.g") == PARTITIONS
    kept = Commit(1, "k" * 4_000)
    writer(cluster, f"{topic}.w").write([], {(topic, 0): kept}, reader)
    reader.close()
    assert cluster.assigned_partitions(f"{topic}.g") == 0
    after = Listener()
    again = cluster.group_reader(f"{topic}.g", [topic], after)
    for _ in range(300):
        again.poll(10, 0.1)
        if len(after.held) == PARTITIONS:
            break
    assert after.held == {(topic, 0): kept, (topic, 1): Commit(0)}
    again.close()


def test_large_media_travel(cluster, topic):
    payload = bytes(range(256)) * 8192
    writer(cluster, f"{topic}.w").write([OutRecord(topic, payload, partition=0)])
    settled(cluster, topic)
    assert values(cluster, topic) == [payload]


def test_topics_are_created_once_and_missing_ones_are_named(cluster, site):
    spec = TopicSpec(site, Tier.EDGE)
    assert cluster.create_topics([spec], 3, DAY_MS) == [site]
    assert cluster.create_topics([spec], 3, DAY_MS) == []
    assert cluster.partitions([site]) == [(site, 0), (site, 1), (site, 2)]
    with pytest.raises(BrokerError, match=rf"topic '{site}-none' is not there.*tidegate topics apply"):
        cluster.partitions([f"{site}-none"])


def test_nobody_there_is_one_line():
    with pytest.raises(
        BrokerError, match=r"kafka.edge: no Kafka answers at 127.0.0.1:9 .*start it, or correct the address"
    ):
        KafkaCluster("kafka.edge", "127.0.0.1:9").check(timeout_s=1.0)


def test_errors_of_transport_are_ours():
    assert issubclass(Aborted, TransportError)
    assert issubclass(OutOfRange, TransportError)


# -- looking at groups from outside ------------------------------------------------------------------------------------


def test_a_look_finds_the_first_record_at_an_offset_and_none_in_markers(cluster, topic):
    one = writer(cluster, f"{topic}.w")
    one.write([OutRecord(topic, b"0", partition=0), OutRecord(topic, b"1", partition=0)])  # Offset 2 is the marker.
    with pytest.raises(Aborted):
        one.write([OutRecord(topic, b"never", partition=0), OutRecord(topic, b"x" * (20 << 20))])
    one.start()
    one.write([OutRecord(topic, b"last", partition=0)])
    settled(cluster, topic)
    with closing(cluster.look(5.0)) as look:
        assert look.known().partitions[topic] == PARTITIONS
        places = [(topic, 0), (topic, 1)]
        ends = look.ends(places)
        assert {place: end for place, (end, _) in ends.items()} == cluster.end_offsets([topic])
        last = ends[topic, 0][0] - 2
        for start, expected in ((0, b"0"), (1, b"1"), (2, b"last"), (last, b"last")):
            found = look.records_at({(topic, 0): start, (topic, 1): 0})
            assert found[topic, 0].value() == expected
            assert found[topic, 1] is None
        assert look.records_at({(topic, 0): last + 1}) == {(topic, 0): None}


def test_a_look_follows_on_from_where_it_ended(cluster, topic):
    one = writer(cluster, f"{topic}.w")
    with closing(cluster.look(5.0)) as look:
        seen = []
        for values_now in ([b"0", b"1"], [b"2"], []):
            if values_now:
                one.write([OutRecord(topic, value, partition=0) for value in values_now])
            settled(cluster, topic)
            ends = {place: end for place, (end, _) in look.ends([(topic, 0), (topic, 1)]).items()}
            assert [record.value() for record in look.follow(ends)] == values_now
            assert all(look.followed(place) >= end for place, end in ends.items())
            seen += values_now
            if values_now == [b"2"]:
                look.renew()
        assert seen == [b"0", b"1", b"2"]


def test_a_look_names_members_and_what_they_hold(cluster, topic):
    cluster.write_first_positions(f"{topic}.g", [topic])
    with closing(cluster.look(5.0)) as look:
        assert look.members([f"{topic}.g", f"{topic}.nobody"]) == {f"{topic}.g": [], f"{topic}.nobody": []}
        assert look.committed(f"{topic}.g", [(topic, 0)]) == {(topic, 0): Commit(0)}
        assert look.committed(f"{topic}.nobody", [(topic, 0)]) == {}
        listener = Listener()
        reader = cluster.group_reader(f"{topic}.g", [topic], listener, "worker-7")
        read_until(reader, 0, lambda: len(listener.held) == PARTITIONS)
        (member,) = look.members([f"{topic}.g"])[f"{topic}.g"]
        assert (member.name, member.partitions) == ("worker-7", [(topic, 0), (topic, 1)])
        assert member.host
        reader.close()
