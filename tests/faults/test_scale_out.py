"""One edge worker, three, one again, while 3,000 items a second flow: each item ends once, every partition goes on."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from pipelines.cli.digits import load_digits
from pipelines.cli.session import Session, session
from pipelines.codecs.idx import write_idx
from pipelines.config import load
from pipelines.config.clusters import ENVIRONMENT
from pipelines.core.lag import GroupLag
from pipelines.observe.audit import Auditor
from pipelines.observe.lag import LagReader
from pipelines.observe.watch import Watch
from pipelines.runtime.scaling import group_of
from pipelines.runtime.supervisor import WorkerSpec
from schemas import headers, wire

PER_S = 3_000
FLOWING = 2 * PER_S
"""Items to be captured between two steps."""
LONGEST_S = 150
"""A bound on the whole run, for a machine that is stuck; the run itself follows events."""

PIPELINE = """\
name: scale-out
site: scale-out
source: {{type: idx, path: {archive}, streams: 30, rate: 100/s, loop: 0}}
encode: {{codec: raw}}
deadline: 10s
partitions: 6
edge: {{model: "builtin:digits-small"}}
windows: {{size: 5s, lateness: 2s}}
"""

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(LONGEST_S + 30)]


class Run:
    """A pipeline whose edge workers come and go; everything waits for what the pipeline itself shows."""

    def __init__(self, one: Session, file: Path, reader: LagReader) -> None:
        self.one, self.file, self.reader = one, file, reader
        self.watch = Watch(one.clusters, one.pipeline.site)
        self.until_s = time.monotonic() + LONGEST_S

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        while not reached():
            assert time.monotonic() < self.until_s, f"never came: {what}"
            self.one.supervisor.turn(0.05)
            self.watch.poll(0.05)

    def group(self) -> GroupLag:
        """As it stands. On a busy machine a reading may come too late, then there is another."""
        while True:
            assert time.monotonic() < self.until_s, "the group could never be read"
            group = group_of(self.reader.read().groups, "edge")
            if group is not None:
                return group

    def shared_by(self, workers: int) -> None:
        """Wait until so many workers hold all partitions, evenly."""
        partitions = self.one.pipeline.partitions
        even = sorted([partitions // workers] * workers)
        self.until(
            f"{workers} workers with {even}",
            lambda: sorted(len(member.partitions) for member in self.group().members) == even,
        )

    def flow(self) -> None:
        """Wait until items flowed, and every partition was worked on."""
        captured, before = self.watch.captured, self.done()
        self.until("items", lambda: self.watch.captured >= captured + FLOWING)
        self.until(
            "work on every partition", lambda: all(offset > before[number] for number, offset in self.done().items())
        )

    def done(self) -> dict[int, int]:
        return {one.partition: one.committed for one in self.group().partitions}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    for variable in ENVIRONMENT.values():
        monkeypatch.setenv(variable, "")  # What the session sets is undone after the test.
    images, _ = load_digits()
    archive = tmp_path / "digits.idx"
    write_idx(archive, images)
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE.format(archive=archive))
    pipeline = load(file)
    with session(pipeline, file, tmp_path / "data") as one:
        one.start()
        with closing(LagReader(one.clusters, pipeline)) as reader:
            running = Run(one, file, reader)
            with closing(running.watch):
                yield running


def longest_silence_s(run: Run) -> float:
    """Longest time between two results of one partition, by when they were settled."""
    settled_us: dict[int, list[int]] = defaultdict(list)
    for record in run.one.clusters.edge.read_all([run.one.pipeline.topics.results]):
        settled_us[record.partition()] += [one.settled_us for one in wire.decode_results(record.value()).results]
    return max(later - before for times in settled_us.values() for before, later in pairwise(sorted(times))) / 1e6


def test_workers_come_and_go_and_nothing_is_lost_or_doubled(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    supervisor, topics = run.one.supervisor, run.one.pipeline.topics
    run.shared_by(1)
    run.flow()
    for number in (1, 2):
        supervisor.add(WorkerSpec("edge", [str(run.file)], number))
    run.shared_by(3)
    run.flow()
    for number in (2, 1):
        supervisor.remove(f"edge-{number}")
    run.shared_by(1)
    run.flow()

    supervisor.end("produce")
    run.until("the producer's end", lambda: supervisor.done("produce"))
    auditor = Auditor(run.one.clusters.edge, topics.site)
    run.until("nothing in flight", lambda: not auditor.look().in_flight_items)
    verdict = auditor.look()
    assert verdict.balanced, (verdict.lost[:5], verdict.doubled[:5], verdict.beyond[:5])
    assert verdict.captured >= 3 * FLOWING
    assert sum(supervisor.restarts.values()) == 0, "they came and went by themselves"

    items = [headers.find(record.headers()) for record in run.one.clusters.edge.read_all([topics.items])]
    times_us = [header.capture_us for header in items]
    captured = Counter((header.stream, header.first_seq) for header in items)
    answered = Counter(
        (one.stream, one.seq)
        for record in run.one.clusters.edge.read_all([topics.results])
        for one in wire.decode_results(record.value()).results
    )
    assert answered == captured
    per_s = len(times_us) / (max(times_us) - min(times_us)) * 1e6
    with capsys.disabled():
        print(
            f"\n{verdict.captured:,} items at {per_s:,.0f} a second; "
            f"the longest silence of a partition was {longest_silence_s(run):.1f} s"
        )
