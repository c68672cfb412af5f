"""Several workers under one command, on a real Kafka: killed, rolled over, grown too large, stopped, asked once."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from pipelines.cli.digits import load_digits
from pipelines.codecs.idx import write_idx
from pipelines.observe.audit import Auditor
from pipelines.transport.base import OutRecord
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas import headers, wire
from schemas.headers import Header
from schemas.topics import SiteTopics, Tier

PARTITIONS = 2
"""As all tests on the session's brokers have."""
WAIT_S = 90
LOOK_AGAIN_S = 0.1
PIPELINE = """
name: {site}
site: {site}
source: {{type: idx, path: {archive}, streams: 20, rate: 20/s, loop: 0}}
encode: {{codec: raw}}
partitions: 2
edge: {{model: "builtin:digits-small"}}
routing: {{policy: "{policy}"}}
kafka: {{edge: {{bootstrap: "{edge}"}}, cloud: {{bootstrap: "{cloud}"}}}}
"""
POLICIES = """
import threading
from pipelines.routing.cloud_only import CloudOnly

class Grows(CloudOnly):
    held = []

    def admit(self, items, signals):
        if len(self.held) < 40:
            self.held.append(bytearray(b"x" * (8 << 20)))
        return super().admit(items, signals)

class Stuck(CloudOnly):
    def admit(self, items, signals):
        threading.Event().wait()
"""

pytestmark = pytest.mark.timeout(WAIT_S * 3)


class Command:
    """A `tidegate` command that goes on, and every line that it and its children write."""

    def __init__(self, *words: object, **environment: str) -> None:
        self.lines: list[str] = []
        self._said = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tidegate", *map(str, words)],
            env={**os.environ, "TIDEGATE_METRICS": "127.0.0.1:0", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line.rstrip())
                self._said.notify_all()

    def line(self, pattern: str, times: int = 1) -> re.Match[str]:
        """The line that has the pattern, as soon as so many have."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._said:
            assert self._said.wait_for(lambda: len(found()) >= times, WAIT_S), "\n".join([pattern, *self.lines])
            return found()[times - 1]

    def pid(self, worker: str) -> int:
        """Of its newest life."""
        told = [match for line in self.lines if (match := re.search(rf"event=started of={worker} pid=(\d+)", line))]
        return int(told[-1][1])

    def where(self) -> str:
        return self.line(r"worker=supervisor event=serving_metrics at=(\S+)")[1]

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.where()}{path}", timeout=WAIT_S) as answer:
                return answer.status, answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode().strip()

    def metrics_when(self, reached: Callable[[str], object]) -> str:
        text = ""
        for _ in range(int(WAIT_S / LOOK_AGAIN_S)):
            text = self.ask("/metrics")[1]
            if reached(text):
                return text
            threading.Event().wait(LOOK_AGAIN_S)
        raise AssertionError(text)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code; no child may outlive it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
        self._reader.join(WAIT_S)
        return code


@contextmanager
def running(*words: object, **environment: str) -> Iterator[Command]:
    """A command until the end of the block, killed with its children if it has not ended by then."""
    command = Command(*words, **environment)
    ours = psutil.Process(command.process.pid)
    children: list[psutil.Process] = []
    try:
        yield command
    finally:
        if command.process.poll() is None:
            children = ours.children(recursive=True)
            command.process.kill()
            command.process.wait()
        psutil.wait_procs(children, timeout=WAIT_S)  # They watch a pipe of their parent, and end by themselves.
        for child in children:
            if child.is_running():
                child.kill()


@pytest.fixture
def write_file(tmp_path, brokers, site):
    """`write_file(policy)`: a pipeline file on the session's brokers."""
    images, _ = load_digits()
    archive = tmp_path / "digits.idx"
    write_idx(archive, images[:500])
    (tmp_path / "policies.py").write_text(POLICIES, "utf-8")
    edge, cloud = (KafkaCluster(f"kafka.{tier}", getattr(brokers, tier).bootstrap) for tier in Tier)
    with closing(edge), closing(cloud):
        apply(Layout(site, PARTITIONS, 3_600_000), edge, cloud)

    def write(policy: str = "edge_only", edge_at: str = "") -> Path:
        file = tmp_path / f"{policy.partition(':')[2] or policy}.yaml"
        at = {"edge": edge_at or brokers.edge.bootstrap, "cloud": brokers.cloud.bootstrap}
        file.write_text(PIPELINE.format(site=site, archive=archive, policy=policy, **at), "utf-8")
        return file

    return write


@pytest.fixture
def edge(brokers):
    with closing(KafkaCluster("kafka.edge", brokers.edge.bootstrap)) as one:
        yield one


def both_hold(text: str) -> bool:
    held = re.findall(r'^tidegate_partitions_held\{.*worker="(edge-\d)"\} (\S+)$', text, re.MULTILINE)
    return sorted(held) == [("edge-0", "1.0"), ("edge-1", "1.0")]


def restarts(text: str) -> dict[tuple[str, str], int]:
    rows = re.findall(
        r'^tidegate_worker_restarts_total\{.*reason="(\w+)",.*worker="(edge-\d)"\} (\S+)$', text, re.MULTILINE
    )
    return {(worker, reason): int(float(count)) for reason, worker, count in rows if float(count)}


def read(text: str) -> Counter[str]:
    rows = re.findall(r'^tidegate_records_read_total\{.*worker="(edge-\d)"\} (\S+)$', text, re.MULTILINE)
    return Counter({worker: int(float(count)) for worker, count in rows})


def test_one_is_killed_and_all_are_rolled_over_under_flow_and_nothing_is_lost_or_doubled(write_file, edge, site):
    file = write_file()
    with running("edge", file, "--workers", 2) as fleet, running("produce", file) as producer:
        text = fleet.metrics_when(both_hold)
        assert len(re.findall(r"^# TYPE tidegate_healthy ", text, re.MULTILINE)) == 1
        assert fleet.ask("/healthz") == fleet.ask("/livez") == (200, "2 workers are well")
        fleet.metrics_when(lambda text: all(read(text)[f"edge-{number}"] for number in range(2)))

        os.kill(fleet.pid("edge-0"), signal.SIGKILL)
        fleet.line("level=warning worker=supervisor event=worker_ended of=edge-0 exit=-9")
        fleet.line("event=started of=edge-0", 2)
        assert restarts(fleet.metrics_when(both_hold)) == {("edge-0", "ended"): 1}

        fleet.process.send_signal(signal.SIGHUP)
        fleet.line("event=rolled workers=2")
        text = fleet.metrics_when(both_hold)
        assert restarts(text) == {("edge-0", "ended"): 1, ("edge-0", "roll"): 1, ("edge-1", "roll"): 1}
        began = [line for line in fleet.lines if re.search("event=(restarting|started) of", line)][3:]
        steps = [re.findall(r"event=(\w+) of=(edge-\d)", line)[0] for line in began]
        assert steps == [(what, f"edge-{number}") for number in range(2) for what in ("restarting", "started")]
        before = read(text)
        fleet.metrics_when(lambda text: all(read(text)[worker] > before[worker] for worker in before))

        assert producer.end() == 0
        auditor, until_s = Auditor(edge, site), time.monotonic() + WAIT_S
        while auditor.look().in_flight_items:
            assert time.monotonic() < until_s, "in flight without end"
        verdict = auditor.look()
        assert verdict.balanced, (verdict.lost[:5], verdict.doubled[:5], verdict.beyond[:5])
        topics = SiteTopics(site)
        captured = Counter(
            (header.stream, header.first_seq)
            for record in edge.read_all([topics.items])
            if (header := headers.find(record.headers()))
        )
        answered = Counter(
            (one.stream, one.seq)
            for record in edge.read_all([topics.results])
            for one in wire.decode_results(record.value()).results
        )
        assert captured
        assert answered == captured
        assert fleet.end() == 0
        assert not any("Traceback" in line for line in fleet.lines)


def write_items(edge: KafkaCluster, site: str, count: int) -> None:
    now_us = time.time_ns() // 1000
    writer = edge.transactions(f"test.fill.{site}", "none")
    writer.start()
    for seq in range(count):
        header = Header(1, "camera", 0, seq, 1, now_us, now_us + 3_600_000_000, 1, "raw")
        pair = headers.pair("application/octet-stream", header)
        for partition in range(PARTITIONS):
            writer.write([OutRecord(SiteTopics(site).items, b"frame", b"camera", partition, pair)])
    writer.close()


def test_one_that_grows_too_large_is_started_anew_one_at_a_time(write_file, edge, site, tmp_path):
    file = write_file("policies:Grows")
    with running("edge", file, "--workers", 2, "--memory", "250MiB", PYTHONPATH=str(tmp_path)) as fleet:
        fleet.metrics_when(both_hold)
        # As many batches as it takes, whatever the workers make of them.
        until_s = time.monotonic() + WAIT_S
        while not any("event=restarting" in line for line in fleet.lines):
            assert time.monotonic() < until_s, "\n".join(fleet.lines)
            write_items(edge, site, 10)
        told = fleet.line(
            r"level=warning worker=supervisor event=restarting of=(edge-\d) reason=memory "
            r"resident_mib=(\d+) limit_mib=250"
        )
        assert int(told[2]) >= 250
        fleet.line(f"event=started of={told[1]}", 2)
        assert restarts(fleet.metrics_when(both_hold))[told[1], "memory"] == 1
        assert fleet.end() == 0
        steps = [
            re.findall(r"event=(\w+) of=(edge-\d)", line)[0]
            for line in fleet.lines
            if re.search("event=(restarting|started) of", line)
        ]
        assert steps[2:4] == [("restarting", told[1]), ("started", told[1])], "the next not before it is back"


def test_a_second_signal_ends_at_once(write_file, edge, site, tmp_path):
    file = write_file("policies:Stuck")
    with running("edge", file, "--workers", 2, PYTHONPATH=str(tmp_path)) as fleet:
        fleet.metrics_when(both_hold)
        write_items(edge, site, 1)
        assert len(psutil.Process(fleet.process.pid).children()) == 2
        fleet.metrics_when(lambda _: both_stand_still(fleet))
        fleet.process.send_signal(signal.SIGTERM)
        fleet.line("worker=supervisor event=stopping")
        assert fleet.ask("/healthz") == (503, "stopping")
        assert fleet.end() == 130
        assert any("event=stopped_at_once" in line for line in fleet.lines)


def both_stand_still(fleet: Command) -> bool:
    status, line = fleet.ask("/healthz")
    return status == 503 and line.count("working on a batch") == 2


def test_what_went_wrong_is_not_rolled_out_to_all_and_the_others_go_on(write_file):
    file = write_file()
    right = file.read_text("utf-8")
    with running("edge", file, "--workers", 2) as fleet:
        fleet.metrics_when(both_hold)
        file.write_text("name: [", "utf-8")
        fleet.process.send_signal(signal.SIGHUP)
        fleet.line("level=error worker=supervisor event=not_rolling error=")
        assert fleet.ask("/healthz") == (200, "2 workers are well")
        assert not any("event=restarting" in line for line in fleet.lines)

        file.write_text(right.replace("builtin:digits-small", "./none.onnx"), "utf-8")
        fleet.process.send_signal(signal.SIGHUP)
        fleet.line("level=error worker=supervisor event=not_started of=edge-0 ")
        assert fleet.ask("/healthz") == (503, "edge-0: it does not run")
        text = fleet.ask("/metrics")[1]
        assert re.search(r'^tidegate_healthy\{.*worker="edge-0"\} 0.0$', text, re.MULTILINE)
        assert re.search(r'^tidegate_healthy\{.*worker="edge-1"\} 1.0$', text, re.MULTILINE)
        assert not any("event=restarting of=edge-1" in line for line in fleet.lines)

        file.write_text(right, "utf-8")
        fleet.line("event=rolled workers=2")
        assert restarts(fleet.metrics_when(both_hold)) == {("edge-0", "roll"): 1, ("edge-1", "roll"): 1}
        assert fleet.end(signal.SIGINT) == 0


def test_mistakes_are_said_once_and_idle_workers_are_warned_of(write_file):
    with running("edge", write_file(edge_at="127.0.0.1:1"), "--workers", 3) as fleet:
        assert fleet.process.wait(WAIT_S) == 2
        assert fleet.line(r"^warning: 3 edge workers share 2 partitions: 1 will be idle$")
        assert len([line for line in fleet.lines if line.startswith("error: kafka.edge")]) == 1
        last = fleet.line(r"^error: edge-\w+-0: it ended with exit code 2, and says why above$")
        assert last
        assert not any("of=edge-1" in line for line in fleet.lines)


@pytest.mark.parametrize("memory", ["much", "0MiB"])
def test_a_memory_limit_that_is_none_is_refused(write_file, memory):
    with running("edge", write_file(), "--memory", memory) as command:
        assert command.process.wait(WAIT_S) == 2
        assert command.line("^error: --memory: .*write it as `(16|512)MiB`")
