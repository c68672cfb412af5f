"""The aggregator: one revision a window and flush, restored from what it wrote, first in memory, then on real Kafka."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

import cloud_workers.aggregate as module
from cloud_workers.aggregate import FLUSH_US, LIMITS, AggregateStage
from pipelines.core.windows import MAX_WINDOWS
from pipelines.errors import ConfigError, TransportError
from pipelines.runtime.stage import StageRunner, Step
from pipelines.transport.base import Aborted, Cluster, Commit, OutRecord, Partition
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.aggregates import Window, window_key
from schemas.headers import REASON
from schemas.ledger import Outcome
from schemas.results import Result, ResultBatch
from schemas.topics import AGGREGATE_GROUP, AGGREGATES, CLOUD_DEAD_LETTERS, SiteTopics, cloud_specs

SITE = "north"
RESULTS = SiteTopics(SITE).up_results
SIZE_US, LATENESS_US = 1000, 500
Key = tuple[str, str, int]


class LogRecord(msgspec.Struct, frozen=True):
    """A record as a client would give it."""

    where: Partition
    at: int
    content: bytes | None
    name: bytes | None = None

    def topic(self) -> str:
        return self.where[0]

    def partition(self) -> int:
        return self.where[1]

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


class Log:
    """As much of a cluster as the aggregator asks for: `aggregates` in memory, read in pieces of one record."""

    def __init__(self) -> None:
        self.kept: list[LogRecord] = []
        self.commits: dict[Partition, Commit] = {}
        self.reads = 0

    def write(self, step: Step) -> Step:
        for record in step.records:
            self.kept.append(LogRecord((record.topic, record.partition), len(self.kept), record.value, record.key))
        self.commits.update(step.offsets)
        return step

    def start_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        return {(topic, number): 0 for topic in topics for number in range(4)}

    def read_all(self, topics: Sequence[str]) -> Iterable[LogRecord]:
        return [record for record in self.kept if record.topic() in topics]

    def reader(self, starts: Mapping[Partition, int]) -> "LogReader":
        self.reads += 1
        return LogReader([record for record in self.kept if record.where in starts])

    def windows(self) -> dict[Key, Window]:
        found = [wire.decode_window(record.value()) for record in self.read_all([AGGREGATES])]
        return {(w.stream, w.label, w.start_us): w for w in found}


class LogReader:
    """Every other poll is empty, as at the end of what is visible so far."""

    def __init__(self, records: list[LogRecord]) -> None:
        self.polls = iter([piece for record in records for piece in ([], [record])])

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        return next(self.polls, [])

    def close(self) -> None:
        self.polls = iter([])


def result(capture_us: int, label: str = "cat", stream: str = "cam-1") -> Result:
    return Result(stream, 1, capture_us, capture_us, capture_us + 7, Outcome.ANSWERED_EDGE, label, 0.25, "m@1", "sure")


def batch_of(results: Sequence[Result], site: str = SITE, version: int = wire.VERSION) -> bytes:
    return wire.encode(ResultBatch(version, site, list(results)))


def records_of(*values: bytes, first: int = 0, partition: int = 0) -> list[Any]:
    return [LogRecord((RESULTS, partition), first + i, value) for i, value in enumerate(values)]


def stage_on(log: Log, commits: Mapping[Partition, Commit], max_windows: int = MAX_WINDOWS) -> AggregateStage:
    stage = AggregateStage([SITE], cast("Cluster", log), SIZE_US, LATENESS_US, max_windows)
    stage.assigned(commits)
    return stage


def expected_sums(results: Iterable[Result]) -> dict[Key, tuple[int, int, int]]:
    sums: defaultdict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])
    for r in results:
        tally = sums[r.stream, r.label, r.capture_us // SIZE_US * SIZE_US]
        tally[0] += 1
        tally[1] += round(r.confidence * 1e6)
        tally[2] += r.settled_us - r.capture_us
    return {key: (count, confidence, latency) for key, (count, confidence, latency) in sums.items()}


def sums_of(windows: Mapping[Key, Window]) -> dict[Key, tuple[int, int, int]]:
    return {key: (w.count, w.confidence_ppm_sum, w.latency_us_sum) for key, w in windows.items()}


def test_a_window_is_revised_once_a_flush_and_offsets_go_with_it() -> None:
    log = Log()
    stage = stage_on(log, {(RESULTS, 3): Commit(0)})
    assert stage.process(records_of(batch_of([result(1)]), partition=3), 0) == Step()
    assert stage.process(records_of(batch_of([result(2)]), first=1, partition=3), 10) == Step()
    assert stage.tick(FLUSH_US - 1) == Step()
    step = log.write(stage.tick(FLUSH_US))
    assert [(r.topic, r.partition, r.key) for r in step.records] == [
        (AGGREGATES, 3, window_key(SITE, "cam-1", "cat", 0))
    ]
    (window,) = log.windows().values()
    assert (window.count, window.revision, window.site, window.mean_confidence) == (2, 1, SITE, 0.25)
    assert step.offsets[RESULTS, 3].offset == 2
    assert stage.tick(FLUSH_US * 9) == Step()


def test_what_was_not_emitted_is_read_again_by_the_next_owner() -> None:
    log = Log()
    stage = stage_on(log, {(RESULTS, 0): Commit(0)})
    stage.process(records_of(batch_of([result(1)])), 0)
    log.write(stage.tick(FLUSH_US))
    stage.process(records_of(batch_of([result(2)]), first=1), FLUSH_US)
    stage.revoked([(RESULTS, 0)])
    after = stage.tick(FLUSH_US * 9)
    assert not after.records
    assert not after.offsets

    heir = stage_on(log, log.commits)
    heir.process(records_of(batch_of([result(2)]), first=log.commits[RESULTS, 0].offset), 0)
    log.write(heir.tick(FLUSH_US))
    assert [(w.count, w.revision) for w in log.windows().values()] == [(2, 2)]


def test_a_restore_waits_for_the_last_window_that_the_commit_names() -> None:
    log = Log()
    stage = stage_on(log, {(RESULTS, 0): Commit(0)})
    stage.process(records_of(batch_of([result(1), result(2, "dog"), result(5000)])), 0)
    log.write(stage.tick(FLUSH_US))
    # The reader stands at its end again and again before all three windows are visible.
    heir = stage_on(log, log.commits)
    heir.process(records_of(batch_of([result(3), result(4, "dog"), result(5001)]), first=1), 0)
    log.write(heir.tick(FLUSH_US))
    assert {w.count for w in log.windows().values()} == {2}


def test_windows_that_never_become_visible_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTORE_IDLE_S", -1.0)
    log = Log()
    stage = stage_on(log, {(RESULTS, 0): Commit(0)})
    stage.process(records_of(batch_of([result(1)])), 0)
    step = stage.tick(FLUSH_US)
    with pytest.raises(TransportError, match="lacks windows"):
        stage_on(Log(), step.offsets)


def test_nothing_is_begun_again_where_the_groups_position_was_reset() -> None:
    log = Log()
    stage = stage_on(log, {(RESULTS, 0): Commit(0), (RESULTS, 1): Commit(0)})
    stage.process(records_of(batch_of([result(1)])), 0)
    log.write(stage.tick(FLUSH_US))
    with pytest.raises(ConfigError, match="reset or expired"):
        stage_on(log, {(RESULTS, 0): Commit(0)})
    stage_on(log, {(RESULTS, 1): Commit(0)})


def test_an_evicted_window_is_recalled_from_its_topic() -> None:
    log = Log()
    stage = stage_on(log, {(RESULTS, 0): Commit(0)}, max_windows=2)
    captures = [100, 1100, 2100, 3100, 150, 1150, 4100, 160]
    for offset, capture_us in enumerate(captures):
        log.write(stage.process(records_of(batch_of([result(capture_us)]), first=offset), offset * FLUSH_US))
        log.write(stage.tick((offset + 1) * FLUSH_US))
    assert sums_of(log.windows()) == expected_sums([result(at) for at in captures])
    assert stage.counts["recalls"] == log.reads == 3


def test_what_is_not_ours_is_kept_counted_and_passed() -> None:
    log = Log()
    stage = stage_on(log, {(RESULTS, 0): Commit(0)})
    newer = batch_of([result(1)], version=wire.VERSION + 1)
    values = [b"\xff not ours", newer, batch_of([result(1)], site="south"), batch_of([result(1)])]
    step = log.write(stage.process(records_of(*values), 0))
    dead = [record for record in step.records if record.topic == CLOUD_DEAD_LETTERS]
    assert [dict(record.headers or [])[REASON] for record in dead] == ["foreign", "unknown_version", "wrong_site"]
    assert step.offsets[RESULTS, 0].offset == 4
    assert sums_of(log.windows()) == expected_sums([result(1)])
    assert {stage.counts[reason] for reason in ("foreign", "unknown_version", "wrong_site", "results")} == {1}


class Refusing:
    """A cluster of which some transactions are rolled back before anything of them is written."""

    def __init__(self, cluster: KafkaCluster, refuse: set[int]) -> None:
        self._cluster, self._refuse, self._writes = cluster, refuse, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def transactions(self, transactional_id: str) -> Any:
        writer = self._cluster.transactions(transactional_id)
        write = writer.write

        def sometimes(*args: Any) -> None:
            self._writes += 1
            if self._writes in self._refuse:
                raise Aborted("refused by the test")
            write(*args)

        writer.write = sometimes  # type: ignore[method-assign]
        return writer


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker of this module's own: `aggregates` and its group belong to no site."""
    from pipelines.transport.broker import start_owned

    home: Path = tmp_path_factory.mktemp("aggregate")
    with start_owned(home, name="aggregate") as running:
        cluster = KafkaCluster("kafka.cloud", running.bootstrap)
        cluster.create_topics(cloud_specs(), 2, 3_600_000)
        yield cluster
        cluster.close()


@contextmanager
def running(stage: AggregateStage, cluster: Any, transactional_id: str) -> Iterator[None]:
    stop = threading.Event()
    group = f"{AGGREGATE_GROUP}-{stage.topics[0]}"
    runner = StageRunner(stage, cluster, group=group, transactional_id=transactional_id, stop=stop, limits=LIMITS)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(runner.run)
        try:
            yield
        finally:
            stop.set()
            done.result(30)


def windows_once(cluster: KafkaCluster, site: str, results: int) -> dict[Key, Window]:
    """The windows of a site, as soon as they count so many results."""
    found: dict[Key, Window] = {}
    reader = cluster.reader(cluster.start_offsets([AGGREGATES]))
    try:
        for _ in range(60):
            for record in reader.poll(500, 1.0):
                window = wire.decode_window(record.value())
                if window.site == site:
                    found[window.stream, window.label, window.start_us] = window
            if sum(window.count for window in found.values()) >= results:
                return found
    finally:
        reader.close()
    raise AssertionError(f"only {sum(window.count for window in found.values())} of {results} results were counted")


@pytest.mark.kafka
@pytest.mark.parametrize("max_windows", [MAX_WINDOWS, 3])
def test_windows_on_kafka_equal_a_batch_over_restarts_and_refused_transactions(
    cloud: KafkaCluster, site: str, max_windows: int
) -> None:
    topics = SiteTopics(site)
    cloud.create_topics([spec for spec in topics.specs() if spec.name == topics.up_results], 2, 3_600_000)
    writer = cloud.transactions(f"test.{site}")
    writer.start()
    everything: list[Result] = []

    def publish(captures: Iterable[int]) -> None:
        for capture_us in captures:
            number = capture_us % 2
            some = [
                result(capture_us + step, "cat" if step % 3 else "dog", f"cam-{number}") for step in range(0, 40, 9)
            ]
            everything.extend(some)
            writer.write([OutRecord(topics.up_results, batch_of(some, site), partition=number)])

    stages: list[AggregateStage] = []

    def stage() -> AggregateStage:
        stages.append(AggregateStage([site], cluster, SIZE_US, LATENESS_US, max_windows))
        return stages[-1]

    # The first life ends in the middle; the second meets refusals, late results and a fresh restore.
    cluster: Any = Refusing(cloud, {2})
    # A write waits until the new topic is known everywhere, so the positions come after it.
    publish(range(0, 9000, 701))
    cloud.write_first_positions(f"{AGGREGATE_GROUP}-{topics.up_results}", [topics.up_results])
    with running(stage(), cluster, f"aggregate.{site}"):
        windows_once(cloud, site, len(everything))
        publish([9001, 50, 9400])
    cluster = Refusing(cloud, {1, 2, 4})
    publish(range(20, 12000, 1303))
    with running(stage(), cluster, f"aggregate.{site}"):
        windows_once(cloud, site, len(everything))
        publish(range(7, 5000, 977))
        windows = windows_once(cloud, site, len(everything))
    writer.close()
    assert sums_of(windows) == expected_sums(everything)
    commits = cloud.committed(f"{AGGREGATE_GROUP}-{topics.up_results}", [topics.up_results])
    assert all(commit.metadata for commit in commits.values())
    recalls = sum(stage.counts["recalls"] for stage in stages)
    assert (recalls > 0) == (max_windows == 3)
