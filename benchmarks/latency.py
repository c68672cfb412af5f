"""How long does a record take through a worker, beside a hand-written loop with the same transactions?

2,000 records a second of 1 KB over 4 partitions are echoed exactly once, with a commit every 20 ms; a read_committed
reader notes when each arrives. Both candidates see the same stream, by turns, each worker in a process of its own. The
worker is the runtime of all of Tidegate's workers with a stage that does nothing.

    python -m benchmarks.latency [--json] [--quick]
"""

import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.harness import Report, by_turns, machine, main
from pipelines.core.engine import EngineLimits
from pipelines.runtime.stage import NOTHING, StageRunner, Step, offsets_after
from pipelines.transport.base import Commit, OutRecord, Partition, Record
from pipelines.transport.broker import start_owned
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier, TopicSpec

PARTITIONS = 4
RATE_PER_S = 2_000
RECORD_BYTES = 1_024
COMMIT_MS = 20
WARM_S = 3.0
"""Left out: joining the group, first metadata."""
LATEST_S = 60.0
TURN_S = 0.001
"""Records are sent in rows of two, a row a millisecond."""

_STAMP = struct.Struct("<d")


class Waits(msgspec.Struct, frozen=True):
    """Of one run, in milliseconds."""

    p50_ms: float
    p99_ms: float
    records: int

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"


class Echo:
    """Writes what it reads."""

    def __init__(self, source: str, destination: str) -> None:
        self.topics: Sequence[str] = [source]
        self._destination = destination

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Nothing is kept."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Nothing is kept."""

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """The same bytes, in the same partition."""
        out = [OutRecord(self._destination, record.value(), partition=record.partition()) for record in records]
        return Step(out, offsets_after(records))

    def tick(self, now_us: int) -> Step:
        """Nothing is due."""
        return NOTHING

    def close(self) -> None:
        """Nothing is held."""


def tidegate(bootstrap: str, group: str) -> None:
    """The runtime, until it is ended."""
    with closing(KafkaCluster("edge", bootstrap)) as cluster:
        limits = EngineLimits(commit_interval_us=COMMIT_MS * 1000)
        stage = Echo(f"{group}.in", f"{group}.out")
        StageRunner(stage, cluster, group=group, transactional_id=group, stop=threading.Event(), limits=limits).run()


def bare_loop(bootstrap: str, group: str) -> None:
    """What one would write by hand, until it is ended."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "group.protocol": "consumer",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 2,
        }
    )
    producer = Producer(
        {"bootstrap.servers": bootstrap, "transactional.id": group, "transaction.timeout.ms": 1500, "linger.ms": 5}
    )
    producer.init_transactions()
    consumer.subscribe([f"{group}.in"])
    pending: list[tuple[int, bytes]] = []
    ends: dict[int, int] = {}
    since_s = 0.0
    while True:
        first = consumer.poll(0.001 if pending else 0.01)
        if first is not None:
            since_s = since_s if pending else time.monotonic()
            for message in [first, *consumer.consume(499, 0)]:
                pending.append((message.partition() or 0, message.value() or b""))
                ends[message.partition() or 0] = (message.offset() or 0) + 1
        if pending and (time.monotonic() - since_s) * 1000 >= COMMIT_MS:
            producer.begin_transaction()
            for number, value in pending:
                producer.produce(f"{group}.out", value, partition=number)
            positions = [TopicPartition(f"{group}.in", number, end) for number, end in ends.items()]
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
            producer.commit_transaction()
            pending.clear()


def measure(quick: bool) -> Report:
    """Both by turns, on one embedded broker."""
    rounds, run_s = (3, 8.0) if quick else (5, 20.0)
    with (
        tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home,
        start_owned(Path(home), name="edge") as broker,
        closing(KafkaCluster("edge", broker.bootstrap)) as cluster,
    ):
        runs = by_turns(
            rounds,
            {
                "tidegate": lambda turn: _run(cluster, tidegate, turn, run_s),
                "bare loop": lambda turn: _run(cluster, bare_loop, turn, run_s),
            },
        )
    ours, bare = runs["tidegate"], runs["bare loop"]
    figures = {
        "p50_exactly_once_ms": float(np.median([run.p50_ms for run in ours])),
        "p99_exactly_once_ms": float(np.median([run.p99_ms for run in ours])),
        "bare_p50_exactly_once_ms": float(np.median([run.p50_ms for run in bare])),
        "bare_p99_exactly_once_ms": float(np.median([run.p99_ms for run in bare])),
    }
    setting = {
        "rate_per_s": RATE_PER_S,
        "record_bytes": RECORD_BYTES,
        "commit_ms": COMMIT_MS,
        "rounds": rounds,
        "run_s": run_s,
        **machine(),
    }
    return Report("latency", figures, setting)


def _run(cluster: KafkaCluster, candidate: Callable[[str, str], None], turn: int, run_s: float) -> Waits:
    group = f"{candidate.__name__}-{turn}"
    source, echo = f"{group}.in", f"{group}.out"
    cluster.create_topics([TopicSpec(name, Tier.EDGE) for name in (source, echo)], PARTITIONS, 3_600_000)
    cluster.write_first_positions(group, [source])
    worker = get_context("spawn").Process(target=candidate, args=(cluster.bootstrap, group), daemon=True)
    worker.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            count = pool.submit(_send, cluster.bootstrap, source, run_s)
            return _read(cluster, echo, count)
    finally:
        worker.kill()
        worker.join()


def _send(bootstrap: str, topic: str, run_s: float) -> int:
    """At the rate, each with the moment it was sent; how many."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 0})
    padding = bytes(RECORD_BYTES - _STAMP.size)
    began_s, sent = time.perf_counter(), 0
    pause = threading.Event()
    while (at_s := time.perf_counter() - began_s) < run_s:
        while sent < at_s * RATE_PER_S:
            producer.produce(topic, _STAMP.pack(time.perf_counter()) + padding, partition=sent % PARTITIONS)
            sent += 1
        producer.poll(0)
        pause.wait(TURN_S)
    producer.flush(LATEST_S)
    return sent


def _read(cluster: KafkaCluster, topic: str, count: Future[int]) -> Waits:
    """How long each took, those of the first moments left out."""
    waits_ms: list[float] = []
    seen, from_s, until_s = 0, time.perf_counter() + WARM_S, time.perf_counter() + LATEST_S
    with closing(cluster.reader({(topic, number): 0 for number in range(PARTITIONS)})) as reader:
        while not count.done() or seen < count.result():
            if time.perf_counter() > until_s:
                raise SystemExit(f"only {seen} records came back")
            for record in reader.poll(500, 0.1):
                now_s, (sent_s,) = time.perf_counter(), _STAMP.unpack_from(record.value() or b"")
                seen += 1
                if sent_s >= from_s:
                    waits_ms.append((now_s - sent_s) * 1000)
    p50_ms, p99_ms = np.percentile(waits_ms, [50, 99])
    return Waits(float(p50_ms), float(p99_ms), len(waits_ms))


if __name__ == "__main__":
    main("latency", "how long a record takes through a worker", measure)
