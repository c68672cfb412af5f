"""The edge worker on a real broker: what lies in the topics afterwards, through credit, bad records and a restart."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from confluent_kafka import Producer

from edge_workers.inference import EdgeStage
from pipelines.core.engine import EngineLimits
from pipelines.models.release import load_release
from pipelines.routing.find import build_policy
from pipelines.runtime.inference import ModelRunner
from pipelines.runtime.stage import StageRunner
from pipelines.transport.base import Commit, OutRecord
from pipelines.transport.kafka import KafkaCluster
from schemas import headers, wire
from schemas.control import CREDIT_KEY, Credit
from schemas.headers import Header, Params
from schemas.ledger import Outcome
from schemas.topics import SiteTopics

PARTITIONS = 2
FAR_US = 4_000_000_000_000_000
WAIT_S = 60.0


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner(load_release("builtin:digits-small"))


@pytest.fixture
def cluster(broker, site):
    cluster = KafkaCluster("edge", broker.bootstrap)
    names = SiteTopics(site)
    cluster.create_topics(names.specs(), PARTITIONS, retention_ms=3_600_000)
    cluster.write_first_positions(names.edge_group, [names.items])
    yield cluster
    cluster.close()


class Until(EdgeStage):
    """Stops its runner once it has seen as many records as it was told."""

    left = 0
    stop: threading.Event

    def process(self, records, now_us):
        self.left -= len(records)
        if self.left <= 0:
            self.stop.set()
        return super().process(records, now_us)


def write(cluster: KafkaCluster, records: list[OutRecord]) -> None:
    writer = cluster.transactions("test.fill", "none")
    writer.start()
    writer.write(records)
    writer.close()


def item(names: SiteTopics, seq: int, payload: bytes) -> OutRecord:
    stream = f"camera-{seq % PARTITIONS}"
    header = Header(1, stream, 0, seq // PARTITIONS, 1, seq, FAR_US, seq % 3, "raw", Params(shape=(28, 28)))
    found = headers.pair("application/octet-stream", header)
    return OutRecord(names.items, payload, stream.encode(), seq % PARTITIONS, found)


def frames(count: int) -> list[bytes]:
    return [frame.tobytes() for frame in np.random.default_rng(5).integers(0, 256, (count, 28, 28), np.uint8)]


def work(stage: Until, cluster: KafkaCluster, names: SiteTopics, records: int, limits: EngineLimits) -> None:
    """Run the stage until it has seen `records`, or too long a time."""
    stage.left, stage.stop = records, threading.Event()
    late = threading.Timer(WAIT_S, stage.stop.set)
    late.start()
    StageRunner(
        stage,
        cluster,
        group=names.edge_group,
        transactional_id=f"edge.{names.site}",
        stop=stage.stop,
        limits=limits,
    ).run()
    late.cancel()
    assert stage.left <= 0, f"{stage.left} records were not read within {WAIT_S:.0f} s"


def read(cluster: KafkaCluster, topics: list[str]):
    """Every record, once the markers of the transactions committed so far have reached every partition."""
    give_up_s = time.monotonic() + WAIT_S
    while cluster.end_offsets(topics) != cluster.end_offsets(topics, stable=False) and time.monotonic() < give_up_s:
        continue
    return cluster.read_all(topics)


def marked(cluster: KafkaCluster, names: SiteTopics) -> Counter:
    found: Counter = Counter()
    for record in read(cluster, [names.ledger]):
        for mark in wire.decode_marks(record.value()).marks:
            assert mark.stream == f"camera-{record.partition()}"
            for seq in range(mark.first_seq, mark.last_seq + 1):
                found[mark.stream, seq, mark.outcome] += 1
    return found


def test_every_record_is_answered_once_over_a_restart(cluster, site, runner):
    names, payloads = SiteTopics(site), frames(1200)
    write(cluster, [item(names, seq, payload) for seq, payload in enumerate(payloads)])
    limits = EngineLimits(commit_interval_us=20_000, batch_records=100)
    # Batches of 100: the first life ends half way, the second at once, the third when all is done.
    for records in (600, 1, None):
        stage = Until(site, runner, build_policy("edge_only"), cluster)
        left = len(payloads) - sum(marked(cluster, names).values())
        work(stage, cluster, names, records or left, limits)
        stage.close()
    every = {(f"camera-{seq % PARTITIONS}", seq // PARTITIONS, Outcome.ANSWERED_EDGE) for seq in range(len(payloads))}
    assert marked(cluster, names) == Counter(every)
    answers = {}
    for record in read(cluster, [names.results]):
        for result in wire.decode_results(record.value()).results:
            answers[result.stream, result.seq] = result.label
    known = Header(1, "x", 0, 0, 1, 0, FAR_US, 0, "raw", Params(shape=(28, 28)))
    expected = runner.answer([(known, payload) for payload in payloads])
    assert answers == {
        (f"camera-{seq % PARTITIONS}", seq // PARTITIONS): answer.label for seq, answer in enumerate(expected)
    }


def test_bad_records_do_not_stop_the_rest(cluster, site, runner):
    names, payloads = SiteTopics(site), frames(6)
    records = [item(names, seq, payload) for seq, payload in enumerate(payloads)]
    records[2] = item(names, 2, b"short")
    foreign = OutRecord(names.items, b"hello", b"who", 0, [("who", b"knows")])
    write(cluster, [*records, foreign])
    stage = Until(site, runner, build_policy("edge_only"), cluster)
    work(stage, cluster, names, 7, EngineLimits(commit_interval_us=20_000))
    stage.close()
    outcomes = Counter(outcome for _, _, outcome in marked(cluster, names).elements())
    assert outcomes == {Outcome.ANSWERED_EDGE: 5, Outcome.DEAD_LETTERED: 1}
    letters = {record.value(): dict(record.headers()) for record in read(cluster, [names.dead_letters])}
    assert letters[b"short"]["tidegate-reason"] == b"undecodable"
    assert letters[b"hello"]["tidegate-reason"] == b"foreign"
    commits = cluster.committed(names.edge_group, [names.items])
    assert {partition[1]: commit.offset for partition, commit in commits.items()} == {0: 4, 1: 3}


def test_credit_in_the_control_topic_opens_the_way_to_the_cloud(cluster, site, runner):
    names, payloads = SiteTopics(site), frames(60)
    stage = Until(site, runner, build_policy("cloud_only"), cluster)
    # Credit counts by the time at which it came, and must have kept coming for a third of its ttl.
    value = wire.encode(Credit(site=site, issued_us=0, ttl_ms=600_000, worker="w"))
    producer = Producer({"bootstrap.servers": cluster.bootstrap})
    now_ms = time.time_ns() // 1_000_000
    for ago_ms in (250_000, 0):
        producer.produce(names.control, value, CREDIT_KEY, 0, timestamp=now_ms - ago_ms)
    assert producer.flush(WAIT_S) == 0
    give_up_s = time.monotonic() + WAIT_S
    while stage.cloud.last_us < now_ms * 1000 and time.monotonic() < give_up_s:
        stage.tick(time.time_ns() // 1000)
    assert stage.cloud.reachable(time.time_ns() // 1000)
    write(cluster, [item(names, seq, payload) for seq, payload in enumerate(payloads)])
    work(stage, cluster, names, 60, EngineLimits(commit_interval_us=20_000))
    stage.close()
    sent = {}
    for record in read(cluster, names.uplinks):
        header = headers.find(record.headers())
        assert record.topic() == names.uplink(header.priority)
        assert header.extra.reason == "policy_cloud_only"
        sent[header.stream, header.first_seq] = (record.partition(), record.value())
    assert sent == {
        (f"camera-{seq % PARTITIONS}", seq // PARTITIONS): (seq % PARTITIONS, payload)
        for seq, payload in enumerate(payloads)
    }
    assert not marked(cluster, names)
    assert Commit(30) in cluster.committed(names.edge_group, [names.items]).values()
