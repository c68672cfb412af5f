"""The candidates of `benchmarks.engine`: three jobs, each as a Stage of Tidegate and as a loop written by hand.

What is made of a batch is the same code for both, so that the difference is the runtime's. The loops know nothing of
rebalances, refusals, failing items or metrics, and write at once into an open transaction.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from operator import methodcaller
from typing import Any, NamedTuple, Protocol, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.clock import Clock
from benchmarks.harness import Timed
from benchmarks.tiny_records import FACTOR, KEYS, RECORD_BYTES, WINDOW_US
from pipelines.core.engine import EngineLimits
from pipelines.runtime.stage import NOTHING, Stage, StageRunner, Step
from pipelines.transport.base import Commit, OutRecord, Partition, Record
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.ledger import Mark, MarkBatch, Outcome

BATCH_RECORDS = 500
INTERVAL_MS = 100
LIMITS = EngineLimits(
    commit_interval_us=INTERVAL_MS * 1000, batch_records=BATCH_RECORDS, pending_records=100_000, pending_bytes=32 << 20
)
"""A transaction is bounded by its interval alone, as the loops' are."""

CONSUMER = {
    "group.protocol": "consumer",
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "fetch.queue.backoff.ms": 2,
    "queued.max.messages.kbytes": 16 << 10,
}
PRODUCER = {
    "transaction.timeout.ms": 1500,
    "linger.ms": 5,
    "compression.type": "zstd",
    "compression.level": 1,
    "delivery.report.only.error": True,
}
"""Of the loops: as Tidegate has them."""

SITE = "bench"
ROW = np.dtype([("key", "<u4"), ("time_us", "<i8"), ("value", "<i8"), ("name", "V80")])
_PARTITION = methodcaller("partition")


class Topics(NamedTuple):
    """Of one run."""

    source: str
    out: str
    ledger: str


# What is made of a batch.


def by_partition(records: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Runs of one partition; a client hands out its fetches, so they are long."""
    for number, run in groupby(records, _PARTITION):
        yield number, list(run)


def rows(records: Sequence[Any]) -> NDArray[Any]:
    """The values of some records as one array."""
    return np.frombuffer(b"".join([record.value() for record in records]), ROW)


def multiplied(records: Sequence[Any]) -> list[bytes]:
    """The values with their number times FACTOR."""
    made = rows(records).copy()
    made["value"] *= FACTOR
    return cast("list[bytes]", made.view(f"V{RECORD_BYTES}").tolist())


def mark(partition: int, first: int, last: int) -> bytes:
    """Says that these offsets are done."""
    done = Mark(str(partition), 0, first, last, Outcome.ANSWERED_EDGE)
    return wire.encode(MarkBatch(wire.VERSION, SITE, [done]))


class Means:
    """One partition's open window. It is begun anew from the first record of that window: where the group stands."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        """Of the first record of the open window."""
        self._window = -1
        self._sums, self._counts = np.zeros(KEYS), np.zeros(KEYS)

    def add(self, records: Sequence[Any]) -> list[bytes]:
        """Records in order; the windows that they close."""
        made = rows(records)
        windows = made["time_us"] // WINDOW_US
        cuts = [0, *(np.flatnonzero(windows[1:] != windows[:-1]) + 1).tolist(), len(made)]
        closed: list[bytes] = []
        for start, end in pairwise(cuts):
            window = int(windows[start])
            if window != self._window:
                closed += self._closed()
                self.offset, self._window = records[start].offset(), window
            keys = made["key"][start:end]
            self._sums += np.bincount(keys, made["value"][start:end], KEYS)
            self._counts += np.bincount(keys, minlength=KEYS)
        return closed

    def _closed(self) -> list[bytes]:
        keys = np.flatnonzero(self._counts)
        means = (self._sums[keys] / self._counts[keys]).tolist()
        start_us = self._window * WINDOW_US
        self._sums, self._counts = np.zeros(KEYS), np.zeros(KEYS)
        return [
            wire.encode({"key": key, "start_us": start_us, "mean": mean})
            for key, mean in zip(keys.tolist(), means, strict=True)
        ]


# As stages.


class Multiply:
    """Stateless: one record out for each in."""

    def __init__(self, topics: Topics) -> None:
        self.topics: Sequence[str] = [topics.source]
        self._names = topics

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Nothing is kept between batches."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Nothing is kept between batches."""

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Multiply."""
        out: list[OutRecord] = []
        offsets: dict[Partition, Commit] = {}
        topic = self._names.out
        for number, run in by_partition(records):
            first, last = run[0].offset(), run[-1].offset()
            out += [OutRecord(topic, value, None, number) for value in multiplied(run)]
            out.append(OutRecord(self._names.ledger, mark(number, first, last), None, number))
            offsets[self._names.source, number] = Commit(last + 1)
        return Step(out, offsets)

    def tick(self, now_us: int) -> Step:
        """Nothing is due by the clock."""
        return NOTHING

    def close(self) -> None:
        """Nothing is held."""


class Windowed(Multiply):
    """A mean for each key and second of event time."""

    def __init__(self, topics: Topics) -> None:
        super().__init__(topics)
        self._means: dict[int, Means] = {}

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """What was open begins at the commit."""
        self._means.update({number: Means(commit.offset) for (_, number), commit in partitions.items()})

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Forget them."""
        for _, number in partitions:
            self._means.pop(number, None)

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """Count; where windows are closed, write them and go on from the open one."""
        out: list[OutRecord] = []
        offsets: dict[Partition, Commit] = {}
        for number, run in by_partition(records):
            means = self._means[number]
            begun = means.offset
            closed = means.add(run)
            if closed:
                out += [OutRecord(self._names.out, value, None, number) for value in closed]
                out.append(OutRecord(self._names.ledger, mark(number, begun, means.offset - 1), None, number))
                offsets[self._names.source, number] = Commit(means.offset)
        return Step(out, offsets)


class Answer(NamedTuple):
    """As `pipelines.runtime.inference.Inference`."""

    label: NDArray[np.intp]
    confidence: NDArray[np.float32]
    undecided: dict[int, str]


LABELS = tuple("0123456789")
MODEL = "trivial"


def answers(payloads: Sequence[bytes]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """A trivial answer: labels and confidences from the first two bytes."""
    pixels = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), -1)
    return (pixels[:, 0] % len(LABELS)).astype(np.intp), pixels[:, 1].astype(np.float32) / np.float32(255)


class Trivial:
    """Stands where the edge's model does."""

    name = MODEL
    labels = LABELS
    model_s = 0.0

    def infer(self, items: Sequence[tuple[Any, bytes]]) -> Answer:
        """Of the payloads."""
        return Answer(*answers([payload for _, payload in items]), {})


class Counted:
    """Measures a stage from its first record to the commit of the last of `records`, and stops it then."""

    def __init__(self, stage: Stage, records: int, stop: threading.Event) -> None:
        self.topics = stage.topics
        self.clock = Clock()
        self._stage, self._left, self._stop = stage, records, stop
        self.assigned, self.tick, self.close = stage.assigned, stage.tick, stage.close

    def process(self, records: Sequence[Record], now_us: int) -> Step:
        """One batch more."""
        self.clock.begin()
        self._left -= len(records)
        if self._left <= 0:
            self._stop.set()
        return self._stage.process(records, now_us)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """On its way out the runner gives its partitions back right after the last commit."""
        self.clock.committed()
        self._stage.revoked(partitions)


def staged(job: str, bootstrap: str, group: str, topics: Topics, records: int) -> Timed:
    """A job as a stage."""
    cluster = KafkaCluster("edge", bootstrap)
    stop = threading.Event()
    counted = Counted(_stage(job, topics, cluster), records, stop)
    StageRunner(counted, cluster, group=group, transactional_id=group, stop=stop, limits=LIMITS).run()
    cluster.close()
    return Timed(records, counted.clock.wall_s, counted.clock.cpu_s)


def _stage(job: str, topics: Topics, cluster: KafkaCluster) -> Stage:
    if job == "full_record":
        from edge_workers.inference import EdgeStage
        from pipelines.routing.find import build_policy

        return EdgeStage(SITE, cast("Any", Trivial()), build_policy("edge_only"), cluster)
    return Multiply(topics) if job == "stateless" else Windowed(topics)


# As loops.


class Loop(Protocol):
    """What a loop makes of a batch: records written, and the offsets behind them."""

    def __call__(self, messages: list[Any], ends: dict[int, int]) -> None:
        """Write what is made of `messages`; note in `ends` where to go on."""
        ...


Write = Callable[..., object]
"""The producer's `produce_batch`: topic, messages, partition."""


def multiply_loop(topics: Topics, write: Write) -> Loop:
    """As `Multiply`."""

    def multiply(messages: list[Any], ends: dict[int, int]) -> None:
        for number, run in by_partition(messages):
            first, last = run[0].offset(), run[-1].offset()
            write(topics.out, [{"value": value} for value in multiplied(run)], number)
            write(topics.ledger, [{"value": mark(number, first, last)}], number)
            ends[number] = last + 1

    return multiply


def windowed_loop(topics: Topics, write: Write) -> Loop:
    """As `Windowed`. The loop keeps its partitions to the end, so every window begins at offset 0."""
    open_windows: dict[int, Means] = {}

    def window(messages: list[Any], ends: dict[int, int]) -> None:
        for number, run in by_partition(messages):
            means = open_windows.get(number) or open_windows.setdefault(number, Means(0))
            begun = means.offset
            closed = means.add(run)
            if closed:
                write(topics.out, [{"value": value} for value in closed], number)
                write(topics.ledger, [{"value": mark(number, begun, means.offset - 1)}], number)
                ends[number] = means.offset

    return window


def answer_loop(topics: Topics, write: Write) -> Loop:
    """As the edge worker with the policy that does the least."""
    read_header = msgspec.msgpack.Decoder().decode
    write_json = msgspec.json.Encoder().encode

    def answer(messages: list[Any], ends: dict[int, int]) -> None:
        label, confidence = answers([message.value() for message in messages])
        confidences = np.round(confidence.astype(np.float64), 6).tolist()
        now_us = time.time_ns() // 1000
        results: dict[int, list[dict[str, Any]]] = {}
        seqs: dict[tuple[int, str, int], list[int]] = {}
        for message, index, value in zip(messages, label.tolist(), confidences, strict=True):
            header = read_header(dict(message.headers())["tg"])
            partition = message.partition()
            result = {
                "stream": header[1],
                "epoch": header[2],
                "seq": header[3],
                "capture_us": header[5],
                "settled_us": now_us,
                "outcome": "answered_edge",
                "label": LABELS[index],
                "confidence": value,
                "model": MODEL,
                "reason": "policy_edge_only",
            }
            results.setdefault(partition, []).append(result)
            seqs.setdefault((partition, header[1], header[2]), []).append(header[3])
            ends[partition] = message.offset() + 1
        marks: dict[int, list[dict[str, Any]]] = {}
        for (partition, stream, epoch), run in seqs.items():
            # In one partition a stream's seqs are dense.
            span = {"first_seq": run[0], "last_seq": run[-1]}
            marks.setdefault(partition, []).append(
                {"stream": stream, "epoch": epoch, **span, "outcome": "answered_edge"}
            )
        for partition, made in results.items():
            value = write_json({"version": 1, "site": SITE, "results": made})
            write(topics.out, [{"value": value}], partition)
            value = write_json({"version": 1, "site": SITE, "marks": marks[partition]})
            write(topics.ledger, [{"value": value}], partition)

    return answer


LOOPS = {"stateless": multiply_loop, "window": windowed_loop, "full_record": answer_loop}


def looped(job: str, bootstrap: str, group: str, topics: Topics, records: int) -> Timed:
    """A job as one would write it by hand for just this, with the client settings that serve it best."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    consumer = Consumer({**CONSUMER, "bootstrap.servers": bootstrap, "group.id": group})
    producer = Producer({**PRODUCER, "bootstrap.servers": bootstrap, "transactional.id": group})
    producer.init_transactions()
    consumer.subscribe([topics.source])
    make = LOOPS[job](topics, producer.produce_batch)
    clock, ends = Clock(), dict[int, int]()
    left, since_s = records, 0.0
    while left > 0:
        first = consumer.poll(0.01)
        if first is not None:
            clock.begin()
            messages = [first, *consumer.consume(BATCH_RECORDS - 1, 0)]
            left -= len(messages)
            if not since_s:
                since_s = time.monotonic()
                producer.begin_transaction()
            make(messages, ends)
        if since_s and (left <= 0 or (time.monotonic() - since_s) * 1000 >= INTERVAL_MS):
            if ends:
                positions = [TopicPartition(topics.source, number, end) for number, end in ends.items()]
                producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
                ends.clear()
            producer.commit_transaction()
            clock.committed()
            since_s = 0.0
    consumer.close()
    return Timed(records, clock.wall_s, clock.cpu_s)
