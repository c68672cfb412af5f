"""The embedded Kafka itself: who it dies with, what a `kill -9` leaves, and how it refuses."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from pipelines.errors import BrokerError, Fenced, TransportError
from pipelines.transport.base import OutRecord
from pipelines.transport.broker import Broker, prefetch, start_detached, start_many_owned, start_owned, stop_detached
from pipelines.transport.broker.limits import group_limits, take_over_s
from pipelines.transport.broker.node import HOST, prepare
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier, TopicSpec

pytestmark = pytest.mark.kafka

END_TIMEOUT_MS = 30_000
OWNER = """
import sys
from pathlib import Path
from pipelines.transport.broker import start_owned
with start_owned(Path(sys.argv[1]), name="owned") as broker:
    print(broker.pid, broker._keeper.pid, flush=True)
    sys.stdin.read()
"""


def ended(handle: int) -> bool:
    """Whether the process behind a pidfd ends within half a minute."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(END_TIMEOUT_MS))


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Another process that owns a broker: it, and the pidfds of its broker and keeper."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "node")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        broker, keeper = (os.pidfd_open(int(word)) for word in process.stdout.readline().split())
        yield process, broker, keeper
        process.kill()
        for handle in (broker, keeper):
            assert ended(handle)
            os.close(handle)


def test_a_broker_dies_with_its_owner(owner: tuple[subprocess.Popen[bytes], int, int]) -> None:
    process, broker, keeper = owner
    process.kill()
    assert ended(broker)
    assert ended(keeper)


def test_a_broker_dies_with_its_keeper(owner: tuple[subprocess.Popen[bytes], int, int]) -> None:
    _, broker, keeper = owner
    signal.pidfd_send_signal(keeper, signal.SIGKILL)
    assert ended(broker)


def produce(bootstrap: str, topic: str, values: range) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    if topic not in admin.list_topics(timeout=30).topics:
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=30)
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "compression.type": "zstd"})
    for value in values:
        producer.produce(topic, str(value).encode())
    assert producer.flush(30) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[int]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    found: list[int] = []
    while len(found) < count:
        records = consumer.consume(count, timeout=30)
        assert records
        found += [int(record.value() or b"") for record in records]
    consumer.close()
    return found


def test_a_killed_broker_comes_back_with_its_data_at_its_address(tmp_path: Path) -> None:
    with start_owned(tmp_path, name="killed") as broker:
        address, first = broker.bootstrap, broker.pid
        produce(address, "numbers", range(500))
        os.kill(first, signal.SIGKILL)
        broker.start_again()
        assert (broker.bootstrap, broker.running) == (address, True)
        assert broker.pid != first
        produce(address, "numbers", range(500, 600))
        assert consume(address, "numbers", 600) == list(range(600))
    assert not broker.running


ENDS, WRITERS, PARTITIONS = 3, 6, 8


def write_until(stop: threading.Event, cluster: KafkaCluster, name: str, committed: "Counter[str]") -> None:
    """Transactions over all partitions, each number again until it is known to be committed or not."""
    writer = cluster.transactions(name)
    with closing(writer):
        while not stop.is_set():
            try:
                writer.start()
                while not stop.is_set():
                    value = str(committed[name]).encode()
                    writer.write([OutRecord("many", value, name.encode(), number) for number in range(PARTITIONS)])
                    committed[name] += 1
            except (TransportError, Fenced):
                stop.wait(0.05)


def kill(broker: Broker) -> None:
    os.kill(broker.pid, signal.SIGKILL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", [kill, Broker.stop], ids=["killed", "stopped"])
def test_no_transaction_is_torn_or_stays_open_when_a_broker_ends_while_many_commit(tmp_path: Path, end) -> None:
    committed: Counter[str] = Counter()
    stop = threading.Event()
    with start_owned(tmp_path, name="torn") as broker, closing(KafkaCluster("kafka.edge", broker.bootstrap)) as cluster:
        cluster.create_topics([TopicSpec("many", Tier.EDGE)], PARTITIONS, retention_ms=3_600_000)
        with ThreadPoolExecutor(WRITERS) as pool:
            for number in range(WRITERS):
                pool.submit(write_until, stop, cluster, f"writer-{number}", committed)
            try:
                for _ in range(ENDS):
                    wanted = committed.total() + 10 * WRITERS
                    while committed.total() < wanted:
                        assert not stop.wait(0.01)
                    end(broker)
                    broker.start_again()
            finally:
                stop.set()
        for number in range(WRITERS):
            with closing(cluster.transactions(f"writer-{number}")) as heir:
                heir.start()  # Ends what the writer had open.
        seen = Counter((record.key(), record.value(), record.partition()) for record in cluster.read_all(["many"]))
        assert cluster.end_offsets(["many"]) == cluster.end_offsets(["many"], stable=False)
        log = broker.log_path.read_text("utf-8", "replace")
    assert "can be skipped" not in log
    transactions = Counter((key, value) for key, value, _ in seen)
    assert set(transactions.values()) == {PARTITIONS}, "a transaction was written to some of its partitions only"
    for number in range(WRITERS):
        name = f"writer-{number}"
        values = sorted(int(value or b"") for key, value in transactions if key == name.encode())
        # A commit whose end was unknown is done again: at most one more a kill, never one less.
        assert set(values) >= set(range(committed[name]))
        assert max(values) <= committed[name]


def test_a_stopped_broker_starts_again_and_a_running_one_refuses(tmp_path: Path) -> None:
    broker = start_owned(tmp_path, name="stopped")
    address = broker.bootstrap
    broker.stop()
    broker.stop()
    broker.start_again()
    assert broker.bootstrap == address
    broker.stop(grace_s=0.0)
    with socket.socket() as other:
        other.bind((HOST, int(address.rpartition(":")[2])))
        with pytest.raises(BrokerError, match="is taken by another process"):
            broker.start_again()


def test_two_at_once_are_two_clusters(tmp_path: Path) -> None:
    edge, cloud = start_many_owned([(tmp_path / "edge", "edge"), (tmp_path / "cloud", "cloud")])
    with edge, cloud:
        ids = {
            AdminClient({"bootstrap.servers": each.bootstrap}).list_topics(timeout=30).cluster_id
            for each in (edge, cloud)
        }
        assert len(ids) == 2


def test_a_data_directory_has_one_broker(broker: Broker) -> None:
    with pytest.raises(BrokerError, match="is in use by another broker"):
        start_owned(broker.data_dir, name="second")
    assert group_limits(broker.bootstrap).session_timeout_ms == 3000


def test_kafkas_own_last_words_are_told(tmp_path: Path) -> None:
    os.close(prepare(tmp_path, prefetch()).lock)
    (tmp_path / "data" / "meta.properties").write_text("version=1\nnode.id=7\n")
    with pytest.raises(BrokerError, match=r"Kafka ended while it started: .*cluster\.id was not found"):
        start_owned(tmp_path, name="broken")


def test_its_limits_promise_a_quick_take_over(broker: Broker) -> None:
    limits = group_limits(broker.bootstrap)
    assert take_over_s(limits) == pytest.approx(3.3)


def tidegate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tidegate", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_detached_broker_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefetched = prefetch()
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("TIDEGATE_HOME", str(home))
    (home / prefetched.checkpoint.parent.name).symlink_to(prefetched.checkpoint.parent)
    started = tidegate("broker", "start", "--data", str(tmp_path / "data"), "--json")
    assert started.returncode == 0, started.stderr
    report = msgspec.json.decode(started.stdout)
    try:
        produce(report["bootstrap"], "numbers", range(10))
        status = msgspec.json.decode(tidegate("broker", "status", "--json").stdout)
        assert status.pop("free_bytes") > 0
        assert status.items() <= report.items()
        assert "Kafka Server started" in tidegate("broker", "logs", "--lines", "1000").stdout
        refused = tidegate("broker", "start", "--data", str(tmp_path / "other"))
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        told = msgspec.json.decode(tidegate("doctor", "--json").stdout)
        assert any(report["bootstrap"] in check["found"] and check["state"] == "ok" for check in told["checks"])
    finally:
        assert "is stopped" in tidegate("broker", "stop").stdout
    assert tidegate("broker", "status").returncode == 1
    again = start_detached(None, "default")
    try:
        assert start_detached(None, "default") == again
        assert again.bootstrap == report["bootstrap"]
        assert consume(again.bootstrap, "numbers", 10) == list(range(10))
    finally:
        assert stop_detached("default")
