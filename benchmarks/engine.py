"""What does Tidegate's runtime add to a bare loop on tiny records?

Three jobs over one embedded broker, exactly once, transactions of 100 ms: `stateless` and `window` on records of 100
bytes (`tiny_records`), with one range mark a batch or window, and `full_record` on Tidegate's own records (two headers,
results and marks) with a trivial answer. Each as a Stage and as a loop written by hand; that both wrote the same is
checked each round.

    python -m benchmarks.engine [--json] [--quick]
"""

import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Producer

from benchmarks.engine_jobs import BATCH_RECORDS, INTERVAL_MS, LIMITS, SITE, Topics, looped, staged
from benchmarks.harness import Report, Timed, by_turns, in_child, machine, main, median_ratio, say
from benchmarks.tiny_records import KEYS, PARTITIONS, RECORD_BYTES, records
from pipelines.transport.base import OutRecord, Partition
from pipelines.transport.broker import start_owned
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.headers import Header, Params, pair
from schemas.topics import SiteTopics, Tier, TopicSpec

HOUR_MS = 3_600_000
FILL_RECORDS = 5_000
STREAMS = 20
SIDE = 10
"""Pixels: a full record's payload is 100 bytes too."""
NAMES = SiteTopics(SITE)
TINY = Topics("tiny", "tiny.out", "tiny.ledger")
FULL = Topics(NAMES.items, NAMES.results, NAMES.ledger)
JOBS = {"stateless": TINY, "window": TINY, "full_record": FULL}
CANDIDATES = {"tidegate": staged, "bare loop": looped}


def measure(quick: bool) -> Report:
    """All jobs by turns on one embedded broker."""
    tiny, full, rounds = (200_000, 60_000, 3) if quick else (600_000, 200_000, 7)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as home, start_owned(Path(home), name="edge") as broker:
        cluster = KafkaCluster("edge", broker.bootstrap)
        cluster.create_topics(NAMES.specs(), PARTITIONS, HOUR_MS)
        cluster.create_topics([TopicSpec(TINY.source, Tier.EDGE)], PARTITIONS, HOUR_MS)
        say(f"writing {tiny:,} tiny and {full:,} full records")
        _fill_tiny(broker.bootstrap, tiny)
        _fill_full(cluster, full)
        for job in JOBS:
            figures |= _compare(cluster, job, full if job == "full_record" else tiny, rounds)
        cluster.close()
    setting = {
        "tiny_records": tiny,
        "full_records": full,
        "rounds": rounds,
        "record_bytes": RECORD_BYTES,
        "partitions": PARTITIONS,
        "keys": KEYS,
        "interval_ms": INTERVAL_MS,
        "batch_records": BATCH_RECORDS,
        "pending_records": LIMITS.pending_records,
        **machine(),
    }
    return Report("engine", figures, setting)


def _compare(cluster: KafkaCluster, job: str, items: int, rounds: int) -> dict[str, float]:
    say(job)
    runs = by_turns(
        rounds,
        {name: partial(_run, cluster, name.replace(" ", "-"), run, job, items) for name, run in CANDIDATES.items()},
    )
    ours, bare = runs["tidegate"], runs["bare loop"]
    if len({run.digest for run in ours + bare}) != 1:
        raise SystemExit(f"{job}: the candidates did not write the same: the comparison means nothing")
    return {
        f"{job}_per_s": float(np.median([run.per_s for run in ours])),
        f"{job}_per_cpu_s": float(np.median([run.per_cpu_s for run in ours])),
        f"{job}_bare_per_s": float(np.median([run.per_s for run in bare])),
        f"{job}_bare_per_cpu_s": float(np.median([run.per_cpu_s for run in bare])),
        f"{job}_ratio": median_ratio([run.per_s for run in ours], [run.per_s for run in bare]),
        f"{job}_cpu_ratio": median_ratio([run.per_cpu_s for run in ours], [run.per_cpu_s for run in bare]),
    }


def _run(cluster: KafkaCluster, name: str, candidate: Any, job: str, items: int, turn: int) -> Timed:
    """One candidate, in a group and with topics of its own."""
    group = f"{job}-{name}-{turn}"
    topics = JOBS[job]
    if topics is TINY:
        topics = Topics(TINY.source, f"{group}.out", f"{group}.ledger")
        cluster.create_topics([TopicSpec(one, Tier.EDGE) for one in topics[1:]], PARTITIONS, HOUR_MS)
    cluster.write_first_positions(group, [topics.source])
    begins = cluster.end_offsets(topics[1:])
    timed: Timed = in_child(candidate, job, cluster.bootstrap, group, topics, items)
    digest = (_digest_full if topics is FULL else _digest_tiny)(cluster, topics, begins)
    if topics is not FULL:
        cluster.ask(lambda admin: admin.delete_topics(list(topics[1:])))
    return msgspec.structs.replace(timed, digest=digest)


def _digest_tiny(cluster: KafkaCluster, topics: Topics, begins: Mapping[Partition, int]) -> str:
    """Of every record written, in order within each partition, and of the offsets marked."""
    written = {number: hashlib.sha256() for number in range(PARTITIONS)}
    count: Counter[int] = Counter()
    for record in cluster.read_all([topics.out], begins):
        written[record.partition()].update(record.value() or b"")
        count[record.partition()] += 1
    digests = {number: digest.hexdigest() for number, digest in written.items()}
    return repr((digests, sorted(count.items()), _marked(cluster, topics, begins)))


def _digest_full(cluster: KafkaCluster, topics: Topics, begins: Mapping[Partition, int]) -> str:
    """Of every answer and every item marked, in order of items; times, which differ, left out."""
    answers = [
        (result.stream, result.seq, result.label, round(result.confidence or 0, 4), result.outcome)
        for record in cluster.read_all([topics.out], begins)
        for result in wire.decode_results(record.value()).results
    ]
    answers.sort()
    return hashlib.sha256(repr(answers).encode()).hexdigest() + repr(_marked(cluster, topics, begins))


def _marked(cluster: KafkaCluster, topics: Topics, begins: Mapping[Partition, int]) -> list[tuple[str, int, int]]:
    """What is marked, by stream: adjacent ranges as one. What is marked twice stays in two."""
    marks = sorted(
        (mark.stream, mark.first_seq, mark.last_seq)
        for record in cluster.read_all([topics.ledger], begins)
        for mark in wire.decode_marks(record.value()).marks
    )
    joined: list[tuple[str, int, int]] = []
    for stream, first, last in marks:
        if joined and joined[-1][0] == stream and joined[-1][2] + 1 == first:
            joined[-1] = (stream, joined[-1][1], last)
        else:
            joined.append((stream, first, last))
    return joined


def _fill_tiny(bootstrap: str, count: int) -> None:
    """Without transactions, whose markers would take offsets: a seq is an offset."""
    settings = {"linger.ms": 20, "enable.idempotence": True}
    writer = Producer({**settings, "bootstrap.servers": bootstrap})
    for number in range(PARTITIONS):
        made = records(number, count // PARTITIONS)
        while few := list(itertools.islice(made, FILL_RECORDS)):
            writer.produce_batch(TINY.source, [{"key": key, "value": value} for key, value in few], number)
            if writer.flush(60):
                raise SystemExit("the broker does not take the records")


def _fill_full(cluster: KafkaCluster, count: int) -> None:
    writer = cluster.transactions("bench.fill", "none")
    writer.start()
    made = _items(count)
    while few := list(itertools.islice(made, FILL_RECORDS)):
        writer.write(few)
    writer.close()


def _items(count: int) -> Iterable[OutRecord]:
    payloads = np.random.default_rng(100).integers(0, 256, (count, SIDE * SIDE), np.uint8)
    for index, payload in enumerate(payloads):
        camera, seq = index % STREAMS, index // STREAMS
        header = Header(
            version=1,
            stream=f"camera-{camera:02}",
            epoch=0,
            first_seq=seq,
            count=1,
            capture_us=1_700_000_000_000_000 + index,
            deadline_us=1_900_000_000_000_000,
            priority=1,
            codec="raw",
            params=Params(shape=(SIDE, SIDE)),
            source_position=index,
        )
        headers = pair("application/octet-stream", header)
        yield OutRecord(NAMES.items, payload.tobytes(), header.stream.encode(), camera % PARTITIONS, headers)


if __name__ == "__main__":
    main("engine", "what the runtime adds to a bare loop on tiny records", measure)
