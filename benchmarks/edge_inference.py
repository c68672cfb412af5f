"""What does the edge worker cost beside a hand-written loop that does the same and nothing else?

Both read the same records from the same partitions (28x28 raw frames, 20 streams), answer them with the same model in
chunks of 64, write the same results and marks, and commit offsets with them in one transaction every 100 ms. The loop
knows nothing of routing, codecs, bad records, rebalances or refusals. That both wrote the same is checked each round.
"""

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.clock import Clock
from benchmarks.harness import Report, Timed, by_turns, digit_frames, in_child, machine, main, median_ratio, say
from pipelines.core.engine import EngineLimits
from pipelines.models.release import load_release
from pipelines.runtime.stage import StageRunner
from pipelines.transport.base import OutRecord, Partition, Record
from pipelines.transport.broker import start_owned
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.headers import Header, Params, pair
from schemas.topics import SiteTopics

MODEL = "builtin:digits-small"
TOPICS = SiteTopics("bench")
OUTPUTS = [TOPICS.results, TOPICS.ledger]
STREAMS = 20
PARTITIONS = 4
BATCH_RECORDS = 500
INTERVAL_MS = 100
CHUNK_ITEMS = 64
MARKER_TRIES = 1000
FILL_RECORDS = 5000
"""A transaction, when the topic is filled."""


def measure(quick: bool) -> Report:
    """Both candidates by turns on one embedded broker."""
    records, rounds = (40_000, 3) if quick else (200_000, 7)
    frames, what = digit_frames(records)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home, start_owned(Path(home), name="edge") as broker:
        cluster = KafkaCluster("edge", broker.bootstrap)
        cluster.create_topics(TOPICS.specs(), PARTITIONS, retention_ms=3_600_000)
        say(f"writing {records:,} records")
        _fill(cluster, frames)
        runs = by_turns(
            rounds,
            {
                "tidegate": lambda turn: _run(cluster, _tidegate, turn, records),
                "bare loop": lambda turn: _run(cluster, _bare_loop, turn, records),
            },
        )
        cluster.close()
    ours, bare = runs["tidegate"], runs["bare loop"]
    if len({run.digest for run in ours + bare}) != 1:
        raise SystemExit("the candidates wrote different answers: the comparison means nothing")
    figures = {
        "records_per_s": float(np.median([run.per_s for run in ours])),
        "records_per_cpu_s": float(np.median([run.per_cpu_s for run in ours])),
        "bare_records_per_s": float(np.median([run.per_s for run in bare])),
        "bare_records_per_cpu_s": float(np.median([run.per_cpu_s for run in bare])),
        "ratio_to_bare_loop": median_ratio([run.per_s for run in ours], [run.per_s for run in bare]),
        "cpu_ratio_to_bare_loop": median_ratio([run.per_cpu_s for run in ours], [run.per_cpu_s for run in bare]),
    }
    setting = {
        "records": records,
        "rounds": rounds,
        "frames": what,
        "partitions": PARTITIONS,
        "interval_ms": INTERVAL_MS,
        "model": load_release(MODEL).model_id,
        **machine(),
    }
    return Report("edge_inference", figures, setting)


def _fill(cluster: KafkaCluster, frames: np.ndarray[Any, Any]) -> None:
    writer = cluster.transactions("bench.fill", "none")
    writer.start()
    begun_us = time.time_ns() // 1000
    for start in range(0, len(frames), FILL_RECORDS):
        few = frames[start : start + FILL_RECORDS]
        writer.write(_item(index, frame.tobytes(), begun_us) for index, frame in enumerate(few, start))
    writer.close()


def _item(index: int, payload: bytes, begun_us: int) -> OutRecord:
    camera, seq = index % STREAMS, index // STREAMS
    capture_us = begun_us + index
    header = Header(
        version=1,
        stream=f"camera-{camera:02}",
        epoch=0,
        first_seq=seq,
        count=1,
        capture_us=capture_us,
        deadline_us=capture_us + 3_600_000_000,
        priority=1,
        codec="raw",
        params=Params(shape=(28, 28)),
        source_position=index,
    )
    headers = pair("application/octet-stream", header)
    return OutRecord(TOPICS.items, payload, header.stream.encode(), camera % PARTITIONS, headers)


def _run(cluster: KafkaCluster, candidate: Any, turn: int, records: int) -> Timed:
    name = f"{candidate.__name__.strip('_')}-{turn}"
    cluster.write_first_positions(name, [TOPICS.items])
    begins = cluster.end_offsets(OUTPUTS)
    timed: Timed = in_child(_on_one_core, candidate, cluster.bootstrap, name, records)
    return msgspec.structs.replace(timed, digest=_digest(cluster, begins))


def _on_one_core(candidate: Any, *arguments: Any) -> Timed:
    """The broker has the others: what a second thread gains must not pass for a cheaper loop."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    timed: Timed = candidate(*arguments)
    return timed


def _digest(cluster: KafkaCluster, begins: Mapping[Partition, int]) -> str:
    """Of every answer and every item marked, in order of items: what differs between runs (times, cuts) left out."""
    answers: list[tuple[object, ...]] = []
    marked = 0
    for _ in range(MARKER_TRIES):
        # A commit's markers reach its partitions one after the other.
        if cluster.end_offsets(OUTPUTS) == cluster.end_offsets(OUTPUTS, stable=False):
            break
    for record in cluster.read_all([TOPICS.results], begins):
        for result in wire.decode_results(record.value()).results:
            answers.append((result.stream, result.seq, result.label, round(result.confidence, 4), result.outcome))
    for record in cluster.read_all([TOPICS.ledger], begins):
        marked += sum(mark.last_seq - mark.first_seq + 1 for mark in wire.decode_marks(record.value()).marks)
    answers.sort()
    return hashlib.sha256(repr((marked, answers)).encode()).hexdigest()


def _tidegate(bootstrap: str, group: str, records: int) -> Timed:
    """The edge worker as `tidegate edge` runs it, with the policy that does the least."""
    from edge_workers.inference import EdgeStage
    from pipelines.routing.find import build_policy
    from pipelines.runtime.inference import ModelRunner
    from pipelines.runtime.stage import Step

    clock, stop = Clock(), threading.Event()

    class Counted(EdgeStage):
        left = records

        def process(self, records: Sequence[Record], now_us: int) -> Step:
            clock.begin()
            self.left -= len(records)
            if self.left <= 0:
                stop.set()
            return super().process(records, now_us)

        def revoked(self, partitions: Sequence[Partition]) -> None:
            # On its way out the runner gives its partitions back right after the last commit.
            clock.committed()

    cluster = KafkaCluster("edge", bootstrap)
    stage = Counted(TOPICS.site, ModelRunner(load_release(MODEL)), build_policy("edge_only"), cluster)
    limits = EngineLimits(commit_interval_us=INTERVAL_MS * 1000, batch_records=BATCH_RECORDS)
    StageRunner(stage, cluster, group=group, transactional_id=group, stop=stop, limits=limits).run()
    stage.close()
    return Timed(records, clock.wall_s, clock.cpu_s)


def _bare_loop(bootstrap: str, group: str, records: int) -> Timed:
    """What one would write by hand for just this, with the client settings that serve it best."""
    import onnxruntime
    from confluent_kafka import Consumer, Producer, TopicPartition

    release = load_release(MODEL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(release.path), options, providers=["CPUExecutionProvider"])
    model_input = session.get_inputs()[0].name
    labels, temperature, model = release.card.labels, release.card.temperature, release.model_id
    read_header = msgspec.msgpack.Decoder().decode
    write_json = msgspec.json.Encoder().encode
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "group.protocol": "consumer",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 2,
            "queued.max.messages.kbytes": 16 << 10,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": group,
            "transaction.timeout.ms": 1500,
            "linger.ms": 5,
            "compression.type": "zstd",
            "compression.level": 1,
            "delivery.report.only.error": True,
        }
    )
    producer.init_transactions()
    consumer.subscribe([TOPICS.items])
    clock = Clock()
    ends: dict[int, int] = {}
    pending: list[tuple[str, bytes, int]] = []
    left, since = records, 0.0
    while left > 0 or pending:
        first = consumer.poll(0.01) if left > 0 else None
        if first is not None:
            clock.begin()
            since = since if pending else time.monotonic()
            messages = [first, *consumer.consume(BATCH_RECORDS - 1, 0)]
            left -= len(messages)
            frames = np.frombuffer(b"".join([message.value() for message in messages]), np.uint8).reshape(-1, 28, 28)
            chunks = [frames[start : start + CHUNK_ITEMS] for start in range(0, len(frames), CHUNK_ITEMS)]
            logits = np.concatenate([session.run(None, {model_input: chunk})[0] for chunk in chunks])
            best = logits.argmax(axis=1).tolist()
            scaled = (logits - logits.max(axis=1, keepdims=True)) / temperature
            confidences = np.round((1 / np.exp(scaled).sum(axis=1)).astype(np.float64), 6).tolist()
            now_us = time.time_ns() // 1000
            results: dict[int, list[dict[str, Any]]] = {}
            seqs: dict[tuple[int, str, int], list[int]] = {}
            for message, index, confidence in zip(messages, best, confidences, strict=True):
                header = read_header(dict(message.headers())["tg"])
                partition = message.partition()
                result = {
                    "stream": header[1],
                    "epoch": header[2],
                    "seq": header[3],
                    "capture_us": header[5],
                    "settled_us": now_us,
                    "outcome": "answered_edge",
                    "label": labels[index],
                    "confidence": confidence,
                    "model": model,
                    "reason": "policy_edge_only",
                }
                results.setdefault(partition, []).append(result)
                seqs.setdefault((partition, header[1], header[2]), []).append(header[3])
                ends[partition] = message.offset() + 1
            marks: dict[int, list[dict[str, Any]]] = {}
            for (partition, stream, epoch), run in seqs.items():
                # In one partition a stream's seqs are dense.
                span = {"first_seq": run[0], "last_seq": run[-1]}
                mark = {"stream": stream, "epoch": epoch, **span, "outcome": "answered_edge"}
                marks.setdefault(partition, []).append(mark)
            for partition, rows in results.items():
                value = write_json({"version": 1, "site": TOPICS.site, "results": rows})
                pending.append((TOPICS.results, value, partition))
                value = write_json({"version": 1, "site": TOPICS.site, "marks": marks[partition]})
                pending.append((TOPICS.ledger, value, partition))
        if pending and (left <= 0 or (time.monotonic() - since) * 1000 >= INTERVAL_MS):
            producer.begin_transaction()
            for topic, value, partition in pending:
                producer.produce(topic, value, partition=partition)
            positions = [TopicPartition(TOPICS.items, partition, end) for partition, end in ends.items()]
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
            producer.commit_transaction()
            clock.committed()
            pending.clear()
    consumer.close()
    return Timed(records, clock.wall_s, clock.cpu_s)


if __name__ == "__main__":
    main("edge_inference", "what the edge worker costs beside a hand-written loop", measure)
