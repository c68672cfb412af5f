"""Every worker kind and both brokers die by `kill -9`, producer and uplink are stopped past every time-out and come
back after somebody took over: each item is captured once, ends once, and the windows are right."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.cli.digits import load_digits
from pipelines.cli.session import Session, session
from pipelines.codecs.idx import write_idx
from pipelines.config import load
from pipelines.config.clusters import ENVIRONMENT
from pipelines.observe.audit import Auditor
from pipelines.observe.watch import Watch
from pipelines.observe.windows import compare
from schemas import headers, wire
from schemas.positions import OWNER_KEY
from schemas.topics import Tier

ROUNDS, DIGITS = 4, 5_000
ITEMS = ROUNDS * DIGITS
LONGEST_S = 300
"""A bound on the whole run, for a machine that is stuck; the run itself follows events."""

PIPELINE = """\
name: kills
site: kills
source: {{type: idx, path: {archive}, streams: 20, rate: 10/s, loop: {rounds}}}
encode: {{codec: raw}}
deadline: 2s
partitions: 4
edge: {{model: "builtin:digits-small"}}
cloud: {{model: "builtin:digits-large"}}
routing: {{policy: threshold}}
windows: {{size: 5s, lateness: 2s}}
"""

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(LONGEST_S + 60)]


class Run:
    """A pipeline under faults: everything waits for what the pipeline itself shows."""

    def __init__(self, one: Session, file: Path) -> None:
        self.one = one
        self.file = file
        self.site = one.pipeline.site
        self.watch = Watch(one.clusters, self.site)
        self.until_s = time.monotonic() + LONGEST_S
        self.seconds: list[subprocess.Popen[bytes]] = []

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        while not reached():
            assert time.monotonic() < self.until_s, f"never came: {what}"
            self.one.supervisor.turn(0.05)
            self.watch.poll(0.05)

    def captured(self, count: int) -> None:
        self.until(f"{count} captured", lambda: self.watch.captured >= count)

    def kill_worker(self, name: str) -> None:
        before = self.one.supervisor.restarts[name]
        self.until(f"{name} runs", lambda: self.one.supervisor.kill(name))
        self.until(f"{name} is started again", lambda: self.one.supervisor.restarts[name] > before)

    def kill_broker(self, tier: Tier) -> None:
        broker = self.one.brokers[tier]
        os.kill(broker.pid, signal.SIGKILL)
        broker.start_again()

    def second(self, kind: str) -> subprocess.Popen[bytes]:
        """Another worker of `kind`, which takes over."""
        environment = {ENVIRONMENT[tier]: self.one.brokers[tier].bootstrap for tier in Tier}
        with (self.one.folder / "logs" / f"second-{kind}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tidegate", kind, str(self.file)],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
        self.seconds.append(process)
        return process

    def stop_take_over_continue(self, kind: str, took_over: Callable[[], bool]) -> None:
        """SIGSTOP, a second that takes over, SIGCONT: the first must find itself fenced and end with exit 5."""
        name = f"{kind}-0"
        self.until(f"{name} runs", lambda: self.one.supervisor.pid(name) is not None)
        stopped = self.one.supervisor.pid(name)
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        self.second(kind)
        self.until(f"the second {kind} took over", took_over)
        before = self.one.supervisor.restarts[name]
        os.kill(stopped, signal.SIGCONT)
        self.until(f"{name} ended", lambda: self.one.supervisor.restarts[name] > before)
        log = self.one.supervisor.log_path(name).read_text()
        assert "took over from" in log

    def owner(self) -> str:
        records = self.one.clusters.cloud.read_all([self.one.pipeline.topics.up_positions])
        owners = [wire.decode_owner(record.value()).instance for record in records if record.key() == OWNER_KEY]
        return owners[-1]

    def close(self) -> None:
        for process in self.seconds:
            if process.poll() is None:
                process.terminate()
            process.wait(30)
        self.watch.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    for variable in ENVIRONMENT.values():
        monkeypatch.setenv(variable, "")  # What the session sets is undone after the test.
    images, _ = load_digits()
    archive = tmp_path / "digits.idx"
    write_idx(archive, images)
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE.format(archive=archive, rounds=ROUNDS))
    with session(load(file), file, tmp_path / "data") as one:
        one.start()
        running = Run(one, file)
        try:
            yield running
        finally:
            running.close()


def test_nothing_is_lost_or_doubled_whoever_dies(run: Run) -> None:
    one, site = run.one, run.site
    kinds = ["produce", "edge", "settle", "uplink", "downlink", "cloud", "aggregate"]
    step = ITEMS // (3 * len(kinds))
    for number, kind in enumerate(kinds, start=1):
        run.captured(step * number)
        run.kill_worker(f"{kind}-0")
    at_stop = run.watch.captured
    # What the stopped producer had open is settled first; more than one transaction's worth can only be the second's.
    run.stop_take_over_continue("produce", lambda: run.watch.captured > at_stop + 200)
    owner = run.owner()
    run.stop_take_over_continue("uplink", lambda: run.owner() != owner)
    run.kill_broker(Tier.EDGE)
    run.captured(run.watch.captured + step)
    run.kill_broker(Tier.CLOUD)
    assert run.watch.captured < ITEMS, "the faults must fall while items flow"

    run.captured(ITEMS)
    run.until("the producer's own end", lambda: one.supervisor.done("produce"))
    auditor = Auditor(one.clusters.edge, site)
    run.until("nothing in flight", lambda: not auditor.look().in_flight_items)
    verdict = auditor.look()
    assert verdict.balanced, (verdict.lost[:5], verdict.doubled[:5], verdict.beyond[:5])
    assert verdict.captured == ITEMS

    positions: Counter[tuple[str, int | str]] = Counter()
    for record in one.clusters.edge.read_all([one.pipeline.topics.items]):
        header = headers.find(record.headers())
        positions[header.stream, header.source_position] += 1
    assert sorted(position for _, position in positions) == list(range(ITEMS))
    assert set(positions.values()) == {1}

    size_us = one.pipeline.windows.size.us
    run.until("the windows", lambda: compare(one.clusters.edge, one.clusters.cloud, site, size_us).equal)
    windows = compare(one.clusters.edge, one.clusters.cloud, site, size_us)
    assert windows.results == sum(verdict.outcomes[name] for name in verdict.outcomes if name.startswith("answered"))
