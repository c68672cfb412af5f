"""How long are a worker's partitions silent after it died? The embedded Kafka with the settings of the design.

Two workers of one group (KIP-848) copy records from one topic to another, each batch with its offsets in a transaction.
One is ended in three ways: `kill -9`; `kill -9` inside an open transaction; SIGSTOP, with SIGCONT after the take-over.
Measured is the longest silence, for a read_committed reader, of the partitions that were its own; and how many records
came twice in the end.

    python -m benchmarks.takeover [--json] [--quick]
"""

import contextlib
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.harness import Report, by_turns, machine, main
from pipelines.transport.broker import start_owned
from pipelines.transport.broker.limits import TRANSACTION_TIMEOUT_MS, group_limits, take_over_s

PARTITIONS = 4
SOURCE, COPY = "source", "copy"
EVERY_S = 0.01
BATCH_S = 0.05
CAP_S = 30.0
WAYS = ("kill", "kill_in_transaction", "stop")


def transactional(bootstrap: str, name: str) -> Producer:
    """A producer with the clients' time-out of the design."""
    settings = {"bootstrap.servers": bootstrap, "transactional.id": name, "linger.ms": 0}
    producer = Producer({**settings, "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS, "log_level": 0})
    producer.init_transactions(CAP_S)
    return producer


def work(bootstrap: str, name: str) -> None:
    """One worker, a process of its own. SIGUSR1 makes it say `open` inside a transaction and stay there."""
    hold = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: hold.set())
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "workers",
            "group.protocol": "consumer",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "log_level": 0,
        }
    )
    consumer.subscribe(
        [SOURCE],
        on_assign=lambda _, got: print("assigned", *(part.partition for part in got), flush=True),
    )
    producer = transactional(bootstrap, name)
    while True:
        records = [record for record in consumer.consume(500, BATCH_S) if record.error() is None]
        if records:
            copy_in_transaction(consumer, producer, records, hold)


def copy_in_transaction(consumer: Consumer, producer: Producer, records: list[Message], hold: threading.Event) -> None:
    """Copy a batch, partition for partition, with its offsets."""
    ends = {record.partition(): (record.offset() or 0) + 1 for record in records}
    producer.begin_transaction()
    for record in records:
        producer.produce(COPY, record.value(), partition=record.partition() or 0)
    if hold.is_set():
        producer.flush(CAP_S)
        print("open", flush=True)
        signal.pause()
    positions = [TopicPartition(SOURCE, part or 0, end) for part, end in ends.items()]
    producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), CAP_S)
    producer.commit_transaction(CAP_S)


class Worker:
    """A worker process and what it says."""

    def __init__(self, bootstrap: str, name: str) -> None:
        program = "import sys; from benchmarks.takeover import work; work(*sys.argv[1:])"
        command = [sys.executable, "-c", program, bootstrap, name]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.partitions: frozenset[int] = frozenset()
        self.changed = threading.Condition()
        self.in_transaction = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            words = line.split()
            with self.changed:
                if words[0] == "assigned":
                    self.partitions |= {int(word) for word in words[1:]}
                self.in_transaction = words[0] == "open"
                self.changed.notify_all()

    def end(self) -> None:
        """Kill it, stopped or not, and collect it."""
        self.process.kill()
        self.process.wait()


class Arrivals(threading.Thread):
    """Reads the copies and notes when each arrived, by partition."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self.at: dict[int, list[float]] = {part: [] for part in range(PARTITIONS)}
        self.values: Counter[bytes] = Counter()
        self.changed = threading.Condition()
        self.done = threading.Event()
        self.consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "reader", "isolation.level": "read_committed", "log_level": 0}
        )
        self.consumer.assign([TopicPartition(COPY, part, 0) for part in range(PARTITIONS)])

    def run(self) -> None:
        """Read until told to end."""
        while not self.done.is_set():
            for record in self.consumer.consume(500, BATCH_S):
                if record.error() is None:
                    with self.changed:
                        self.at[record.partition() or 0].append(time.monotonic())
                        self.values[record.value() or b""] += 1
                        self.changed.notify_all()
        self.consumer.close()

    def wait_for_each(self, partitions: frozenset[int] | range, after: float) -> None:
        """Wait until each of the partitions had a record after that time."""
        with self.changed:
            came = self.changed.wait_for(
                lambda: all(self.at[part] and self.at[part][-1] > after for part in partitions), CAP_S
            )
        if not came:
            raise TimeoutError(f"no record in partitions {sorted(partitions)} within {CAP_S:.0f} s")

    def wait_for_values(self, count: int) -> None:
        """Wait until so many different records arrived."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.values) >= count, CAP_S):
                raise TimeoutError(f"{count - len(self.values)} of {count} records did not arrive")

    def longest_silence_s(self, partitions: frozenset[int], since: float) -> float:
        """Longest gap between two arrivals of one partition, of those that end after `since`."""
        pairs = (
            (before, after)
            for part in partitions
            for before, after in zip(self.at[part], self.at[part][1:], strict=False)
            if after > since
        )
        return max(after - before for before, after in pairs)


class Feed(threading.Thread):
    """Writes one record a partition every 10 ms."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self.producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0, "log_level": 0}
        )
        self.done = threading.Event()
        self.count = 0

    def run(self) -> None:
        """Write until told to end."""
        while not self.done.wait(EVERY_S):
            for part in range(PARTITIONS):
                self.producer.produce(SOURCE, str(self.count).encode(), partition=part)
                self.count += 1
            self.producer.poll(0)
        self.producer.flush(CAP_S)


def fresh_topics(bootstrap: str) -> None:
    """Empty topics, and no group, for a round."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    with contextlib.suppress(KafkaException):  # the first round has no group to remove
        admin.delete_consumer_groups(["workers"])["workers"].result(CAP_S)
    known = set(admin.list_topics(timeout=CAP_S).topics) & {SOURCE, COPY}
    if known:
        for future in admin.delete_topics(list(known)).values():
            future.result(CAP_S)
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in (SOURCE, COPY)]).values():
        future.result(CAP_S)


@contextlib.contextmanager
def workers(bootstrap: str, tag: str) -> Iterator[tuple[Worker, Worker]]:
    """Two workers that share the partitions."""
    with contextlib.ExitStack() as stack:
        pair = []
        for name in ("first", "second"):
            pair.append(Worker(bootstrap, f"{tag}-{name}"))
            stack.callback(pair[-1].end)
        with pair[1].changed:
            pair[1].changed.wait_for(lambda: len(pair[1].partitions) == PARTITIONS // 2, CAP_S)
        yield pair[0], pair[1]


def strike(victim: Worker, way: str) -> float:
    """End a worker in that way; the time just before, in monotonic seconds."""
    if way == "kill_in_transaction":
        victim.process.send_signal(signal.SIGUSR1)
        with victim.changed:
            victim.changed.wait_for(lambda: victim.in_transaction, CAP_S)
    struck = time.monotonic()
    victim.process.send_signal(signal.SIGSTOP if way == "stop" else signal.SIGKILL)
    return struck


def round_of(bootstrap: str, way: str, number: int) -> tuple[float, int]:
    """One take-over: the longest silence in seconds, and how many records came more than once."""
    fresh_topics(bootstrap)
    feed, arrivals = Feed(bootstrap), Arrivals(bootstrap)
    feed.start()
    arrivals.start()
    with workers(bootstrap, f"{way}-{number}") as (_, victim):
        arrivals.wait_for_each(range(PARTITIONS), time.monotonic())
        own = victim.partitions
        struck = strike(victim, way)
        # The last records of the dead may still be on their way; what comes a session later is its heir's.
        arrivals.wait_for_each(own, struck + 1.0)
        if way == "stop":
            victim.process.send_signal(signal.SIGCONT)
            arrivals.wait_for_each(range(PARTITIONS), time.monotonic() + 1.0)
        feed.done.set()
        feed.join()
        arrivals.wait_for_values(feed.count)
    arrivals.done.set()
    arrivals.join()
    return arrivals.longest_silence_s(own, struck), sum(count - 1 for count in arrivals.values.values())


def measure(quick: bool) -> Report:
    """Rounds of all three ways on one broker."""
    rounds = 1 if quick else 5
    with TemporaryDirectory() as folder, start_owned(Path(folder), name="takeover") as broker:
        limits = group_limits(broker.bootstrap)
        ways = {way: partial(round_of, broker.bootstrap, way) for way in WAYS}
        found = by_turns(rounds, ways)
    silences = {way: [silence_s for silence_s, _ in seen] for way, seen in found.items()}
    figures = {f"{way}_median_s": round(statistics.median(seen), 3) for way, seen in silences.items()}
    figures |= {f"{way}_longest_s": round(max(seen), 3) for way, seen in silences.items()}
    figures["doubled"] = sum(twice for seen in found.values() for _, twice in seen)
    figures["expected_s"] = take_over_s(limits) or 0.0
    setting = {
        **machine(),
        **msgspec.to_builtins(limits),
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
        "rounds": rounds,
        "partitions": PARTITIONS,
        "records_per_s": PARTITIONS / EVERY_S,
    }
    return Report(name="takeover", figures=figures, setting=setting)


if __name__ == "__main__":
    main("takeover", "how long are a worker's partitions silent after it died?", measure)
