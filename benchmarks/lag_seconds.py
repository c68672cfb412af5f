"""Does `tidegate lag` say how old the oldest unprocessed item is? `python -m benchmarks.lag_seconds [--json] [--quick]`

Items with known capture times flow into three partitions: nobody works on the first, a slow worker on the second, one
that keeps up on the third. A reading a second is compared with the truth at that moment, which this process knows: it
captured the items, and it is told each commit. The bar for the error is 0.3 s or a tenth, the larger.
"""

import bisect
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import Report, machine, main, say
from pipelines.config.clusters import Clusters
from pipelines.config.pipeline import Pipeline, Source
from pipelines.core.lag import PartitionLag
from pipelines.errors import TidegateError
from pipelines.observe.lag import LagReader
from pipelines.runtime.stage import offsets_after
from pipelines.transport.base import Commit, OutRecord, Partition, Record
from pipelines.transport.broker import start_owned
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas import headers
from schemas.topics import Tier

NAMES = ("stopped", "slow", "running")
BURST = 20
"""Items a transaction and partition."""
BURST_S = 0.05
SLOW_SHARE = 0.5
"""Of what comes in, the slow worker does so much."""
RATIO_BAR, SECONDS_BAR = 0.1, 0.3


class Truth:
    """What was captured and what was done, by partition number."""

    def __init__(self) -> None:
        self.captures_us: defaultdict[int, list[int]] = defaultdict(list)
        self._done: defaultdict[int, list[tuple[int, int]]] = defaultdict(lambda: [(0, 0)])
        self._lock = threading.Lock()

    def captured(self, number: int, capture_us: int) -> None:
        """An item was captured then."""
        with self._lock:
            self.captures_us[number].append(capture_us)

    def done(self, number: int, items: int) -> None:
        """So many items in all are done, as of now."""
        with self._lock:
            self._done[number].append((time.time_ns() // 1000, items))

    def seconds_behind(self, number: int, at_us: int) -> float:
        """Age of the oldest item that was not done at `at_us`."""
        with self._lock:
            done = self._done[number]
            items = done[bisect.bisect(done, at_us, key=lambda one: one[0]) - 1][1]
            captures = self.captures_us[number]
            waiting_us = captures[items] if items < len(captures) else at_us
        return max(at_us - waiting_us, 0) / 1e6


class Workers:
    """Produces, and works on two of the three partitions, in threads."""

    def __init__(self, cluster: KafkaCluster, site: str, topic: str, group: str, truth: Truth) -> None:
        self._cluster, self._topic, self._truth = cluster, topic, truth
        self._stop = threading.Event()
        self.failed: list[TidegateError] = []
        self._writers = [cluster.transactions(f"{name}.{site}") for name in ("produce", "work")]
        for writer in self._writers:
            writer.start()
        self._reader = cluster.group_reader(group, [topic], self, "worker-0")
        self._threads = [threading.Thread(target=self._noting, args=(task,)) for task in (self._produce, self._work)]

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """One member: all are ours, once."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """At the end."""

    lost = revoked

    def start(self) -> None:
        """Begin to capture and to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._reader.close()

    def _noting(self, task: Callable[[], None]) -> None:
        try:
            task()
        except TidegateError as error:
            self.failed.append(error)

    def _produce(self) -> None:
        while not self._stop.wait(BURST_S):
            out = []
            for number in range(len(NAMES)):
                for _ in range(BURST):
                    now_us = time.time_ns() // 1000
                    self._truth.captured(number, now_us)
                    out.append(_item(self._topic, number, len(self._truth.captures_us[number]) - 1, now_us))
            self._writers[0].write(out)

    def _work(self) -> None:
        done = [0] * len(NAMES)
        held: list[list[Record]] = [[] for _ in NAMES]
        while not self._stop.is_set():
            for record in self._reader.poll(500, 0.02):
                held[record.partition()].append(record)
            offsets: dict[Partition, Commit] = {}
            slow = int(len(self._truth.captures_us[1]) * SLOW_SHARE) - done[1]
            for number, share in ((1, max(slow, 0)), (2, len(held[2]))):
                taken, held[number] = held[number][:share], held[number][share:]
                if taken:
                    done[number] += len(taken)
                    offsets |= offsets_after(taken)
            if offsets:
                self._writers[1].write([], offsets, self._reader)
                for number in (1, 2):
                    self._truth.done(number, done[number])


def _item(topic: str, number: int, seq: int, now_us: int) -> OutRecord:
    stream = f"cam-{number}"
    header = headers.Header(headers.VERSION, stream, 0, seq, 1, now_us, now_us + 10_000_000, 1, "raw")
    return OutRecord(topic, b"\0" * 784, stream.encode(), number, headers.pair("application/octet-stream", header))


def measure(quick: bool) -> Report:
    """The largest error of each kind of worker."""
    readings = 12 if quick else 40
    truth = Truth()
    errors: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    read_ms = []
    with tempfile.TemporaryDirectory() as folder, start_owned(Path(folder), name="lag") as broker:
        both = Clusters(KafkaCluster("kafka.edge", broker.bootstrap), KafkaCluster("kafka.cloud", broker.bootstrap))
        pipeline = Pipeline(name="lag", site="lag", source=Source(path="."), partitions=len(NAMES))
        apply(Layout("lag", len(NAMES), 3_600_000), *both)
        topics = pipeline.topics
        workers = Workers(both.edge, "lag", topics.items, topics.edge_group, truth)
        reader = LagReader(both, pipeline, [Tier.EDGE])
        workers.start()
        try:
            for _ in range(readings):
                time.sleep(1)
                began_s = time.monotonic()
                reading = reader.read()
                read_ms.append((time.monotonic() - began_s) * 1000)
                for one in next(group for group in reading.groups if group.kind == "edge").partitions:
                    true_s = truth.seconds_behind(one.partition, reading.at_us)
                    errors[NAMES[one.partition]].append((true_s, abs(one.seconds_behind - true_s)))
                    say(_line(one, true_s))
        finally:
            workers.stop()
            reader.close()
    if workers.failed:
        raise workers.failed[0]
    figures = {f"{name}_error_most_s": max(error for _, error in errors[name]) for name in NAMES}
    figures |= {f"{name}_behind_most_s": max(true_s for true_s, _ in errors[name]) for name in NAMES}
    within = [error <= max(RATIO_BAR * true_s, SECONDS_BAR) for name in NAMES for true_s, error in errors[name]]
    figures["within_bar_share"] = sum(within) / len(within)
    figures["read_median_ms"] = sorted(read_ms)[len(read_ms) // 2]
    setting = {**machine(), "readings": readings, "items_per_s": len(NAMES) * BURST / BURST_S}
    return Report("lag_seconds", figures, setting)


def _line(one: PartitionLag, true_s: float) -> str:
    return f"{NAMES[one.partition]}: {one.seconds_behind:.3f} s behind, in truth {true_s:.3f} s, {one.state}"


if __name__ == "__main__":
    main("lag_seconds", "is lag in seconds the age of the oldest unprocessed item?", measure)
