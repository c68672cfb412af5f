"""Does `tidegate scale run` meet its target again after a load step of three times? Edge workers in containers.

Each worker may use a quarter of a core and runs a real model (digits-large). What one of them can do is measured first,
then cameras bring so much that one worker is half busy, then three times as much. Kafka is one container for both
tiers; workers are a compose service that `tidegate scale run` scales. At the end every item is accounted for.

    docker build -f deploy/edge.Dockerfile -t tidegate-edge .
    python -m benchmarks.scale_step [--json] [--quick]

Needs a Docker engine, compose, and the images that KAFKA_IMAGE and TIDEGATE_EDGE_IMAGE name.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import msgspec
import yaml

from benchmarks.harness import Report, digit_frames, machine, main, say
from edge_workers.sources.base import Frame
from pipelines.codecs.base import Array
from pipelines.core.capture import SourcePosition
from pipelines.core.scaler import Action
from pipelines.errors import BrokerError, TidegateError
from pipelines.runtime.drivers import Compose
from pipelines.runtime.scaling import Told
from pipelines.transport.broker.node import free_port, kafka_uuid
from pipelines.transport.broker.settings import SINGLE_NODE, TAKE_OVER
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import SiteTopics

CPUS = 0.25
PARTITIONS, STREAMS = 6, 24
TARGET_S, MET_WITHIN_S = 5.0, 60.0
BUSY, TIMES = 0.5, 3
CALIBRATION_ITEMS = 3_000
READY_S = 60.0
KAFKA_IMAGE = os.environ.get("KAFKA_IMAGE", "apache/kafka:4.3.0")
EDGE_IMAGE = os.environ.get("TIDEGATE_EDGE_IMAGE", "tidegate-edge")
SITE = "scale-step"


class Steps:
    """Frames at one rate, then at another: a source whose frames know when they come. Both rates are of all streams."""

    recorded = True

    def __init__(
        self,
        path: Path,
        *,
        streams: int,
        loop: int,
        prefix: str,
        first_per_s: float,
        second_per_s: float,
        step_at_s: float,
        end_s: float,
    ) -> None:
        self.streams = [f"{prefix}-{number:02}" for number in range(streams)]
        self._first, self._second = first_per_s / streams, second_per_s / streams
        self._step_at_s, self._end_s = step_at_s, end_s
        self._frames = digit_frames(1_000)[0]

    def frames(self, stream: str, after: SourcePosition | None) -> Iterator[Frame]:
        """Frames behind the position `after`."""
        # Cameras that nobody synchronised: spread over their interval.
        shift = self.streams.index(stream) / len(self.streams)
        position = 0 if after is None else int(after) + 1
        while (at_s := self._time_s(position + shift)) < self._end_s:
            content: Array = self._frames[position % len(self._frames)]
            yield Frame(position, content, round(at_s * 1e6))
            position += 1

    def _time_s(self, number: float) -> float:
        """When the stream's frame comes."""
        before = self._first * self._step_at_s  # Frames
        return number / self._first if number < before else self._step_at_s + (number - before) / self._second


def compose_file(port: int, file: Path) -> dict[str, Any]:
    """One Kafka, seen from within and from this machine, and the workers."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,OUTSIDE:PLAINTEXT",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093,OUTSIDE://:9094",
        "advertised.listeners": f"PLAINTEXT://kafka:9092,OUTSIDE://127.0.0.1:{port}",
        "inter.broker.listener.name": "PLAINTEXT",
        "auto.create.topics.enable": "false",
        **SINGLE_NODE,
        **TAKE_OVER,
    }
    environment = {f"KAFKA_{key.upper().replace('.', '_')}": str(value) for key, value in settings.items()}
    kafka = {
        "image": KAFKA_IMAGE,
        "environment": {**environment, "CLUSTER_ID": kafka_uuid()},
        "ports": [f"127.0.0.1:{port}:9094"],
    }
    worker = {
        "image": EDGE_IMAGE,
        "command": ["edge", "/etc/tidegate/pipeline.yaml"],
        "environment": {"TIDEGATE_KAFKA_EDGE": "kafka:9092", "TIDEGATE_KAFKA_CLOUD": "kafka:9092"},
        "volumes": [f"{file}:/etc/tidegate/pipeline.yaml:ro"],
        "cpus": CPUS,
        "mem_limit": "512m",
        "init": True,
        "stop_grace_period": "15s",
        "restart": "on-failure:20",
    }
    return {"version": "2.4", "services": {"kafka": kafka, "edge-worker": worker}}


def pipeline_file(source: dict[str, Any]) -> str:
    """A pipeline of the edge alone."""
    return yaml.safe_dump(
        {
            "name": SITE,
            "site": SITE,
            "source": source,
            "encode": {"codec": "raw"},
            "deadline": "1h",
            "partitions": PARTITIONS,
            "edge": {"model": "builtin:digits-large"},
        }
    )


class Bench:
    """The containers and commands of one run."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "commands.log"
        self.port = free_port()
        self.pipeline = folder / "pipeline.yaml"
        self.load("none", 1, 1, 0, 0)
        self.file = folder / "docker-compose.yml"
        self.file.write_text(yaml.safe_dump(compose_file(self.port, self.pipeline)))
        self.project = f"tidegate-{SITE}-{uuid4().hex[:6]}"
        self.compose = Compose([self.file], self.project)
        address = f"127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "TIDEGATE_KAFKA_EDGE": address,
            "TIDEGATE_KAFKA_CLOUD": address,
            "TIDEGATE_HOME": str(folder / "home"),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        self.cluster = KafkaCluster("kafka", address)

    def load(self, prefix: str, first_per_s: float, second_per_s: float, step_at_s: float, end_s: float) -> None:
        """Write the file with that load. Each has streams of its own: a source goes on behind its positions."""
        options = {"prefix": prefix, "first_per_s": first_per_s, "second_per_s": second_per_s}
        options |= {"step_at_s": step_at_s, "end_s": end_s}
        source = {"path": ".", "type": "benchmarks.scale_step:Steps", "streams": STREAMS, "rate": "as recorded"}
        self.pipeline.write_text(pipeline_file({**source, "options": options}))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`tidegate ARGUMENTS`, which goes on."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tidegate", *arguments],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def up(self) -> None:
        """Kafka, its topics, and one worker."""
        self.compose.ask("up", "-d", "kafka")
        until_s = time.monotonic() + READY_S
        while True:
            try:
                self.cluster.check()
                break
            except BrokerError:
                if time.monotonic() > until_s:
                    raise
        self.finish(self.start("topics", "apply", str(self.pipeline)))
        self.compose.ask("up", "-d", "edge-worker")

    def finish(self, process: subprocess.Popen[str]) -> str:
        """Wait for a command; what it printed."""
        printed, _ = process.communicate(timeout=2 * READY_S)
        if process.returncode:
            said = self.log.read_text().strip().splitlines()[-1:] or [printed[-300:]]
            raise TidegateError(f"{process.args!r} ended with {process.returncode}: {said[0]}")
        return printed

    def done(self) -> int:
        """Offsets that the workers are through with."""
        topics = SiteTopics(SITE)
        return sum(commit.offset for commit in self.cluster.committed(topics.edge_group, [topics.items]).values())

    def calibrate(self) -> float:
        """Records a second of one worker that is never idle."""
        self.load("calibration", 1e6, 1e6, 0.0, CALIBRATION_ITEMS / 1e6)
        self.finish(self.start("produce", str(self.pipeline)))
        seen: list[tuple[float, int]] = []
        while not seen or seen[-1][1] < CALIBRATION_ITEMS:
            offset = self.done()
            if not seen or offset > seen[-1][1]:
                seen.append((time.monotonic(), offset))
            time.sleep(0.2)
        # From its first commit on: before that it starts. Not to the end, which is in small batches.
        middle = [one for one in seen[1:] if one[1] < 0.9 * CALIBRATION_ITEMS]
        (first_s, first), (last_s, last) = middle[0], middle[-1]
        return (last - first) / (last_s - first_s)

    def limits(self) -> dict[str, Any]:
        """What Docker says that a worker may use."""
        container = self.compose.ask("ps", "-q", "edge-worker").split()[0]
        found = json.loads(subprocess.run(["docker", "inspect", container], capture_output=True, check=True).stdout)
        return {
            "worker_cpus": found[0]["HostConfig"]["NanoCpus"] / 1e9,
            "worker_memory_bytes": found[0]["HostConfig"]["Memory"],
        }

    def down(self) -> None:
        """Nothing stays."""
        self.cluster.close()
        self.compose.ask("down", "-v", "-t", "5")


def measure(quick: bool) -> Report:
    """One run: 30 s of the first load and 90 s of the second; quickly, 10 and 35."""
    first_s, second_s = (10.0, 35.0) if quick else (30.0, 90.0)
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bench = Bench(Path(folder))
        stack.callback(bench.down)
        say("starting Kafka and one worker")
        bench.up()
        limits = bench.limits()
        capacity_per_s = bench.calibrate()
        base_per_s = BUSY * capacity_per_s
        say(f"a worker of {limits['worker_cpus']:g} cores does {capacity_per_s:,.0f} a second; load {base_per_s:,.0f}")
        told, step_at_us = run(bench, base_per_s, first_s, second_s)
        drained = bench.start("audit", str(bench.pipeline), "--drain", "60s", "--json")
        verdict = json.loads(bench.finish(drained))
    setting = {
        **machine(),
        **limits,
        "model": "builtin:digits-large",
        "target_s": TARGET_S,
        "times": TIMES,
        "partitions": PARTITIONS,
        "seconds": first_s + second_s,
    }
    return Report("scale_step", figures(told, step_at_us, capacity_per_s, base_per_s, verdict), setting)


def run(bench: Bench, base_per_s: float, first_s: float, second_s: float) -> tuple[list[Told], int]:
    """The load, and the scaler over it; what the scaler told, and when the step was."""
    end_s = first_s + second_s
    bench.load("cam", base_per_s, TIMES * base_per_s, first_s, end_s)
    producer = bench.start("produce", str(bench.pipeline))
    topics = SiteTopics(SITE)
    before = sum(bench.cluster.end_offsets([topics.items]).values())
    while sum(bench.cluster.end_offsets([topics.items]).values()) <= before:
        time.sleep(0.05)
    step_at_us = time.time_ns() // 1000 + round(first_s * 1e6)
    options = ("--driver", "compose", "--project", bench.project, "--compose-file", str(bench.file), "--through", "")
    lasting = ("--min", "1", "--max", str(PARTITIONS), "--target", f"{TARGET_S:g}s", "--for", f"{end_s:.0f}s", "--json")
    scaler = bench.start("scale", "run", str(bench.pipeline), *options, *lasting)
    told = []
    for line in scaler.stdout or ():
        told.append(msgspec.json.decode(line, type=Told))
        tell(told[-1], (told[-1].at_us - step_at_us) / 1e6, quietly=len(told) % 5 > 0)
    bench.finish(scaler)
    bench.finish(producer)
    return told, step_at_us


def tell(told: Told, since_s: float, *, quietly: bool) -> None:
    """Say what the scaler did, and now and then what it sees."""
    one = told.decision
    if one is None:
        say(f"{since_s:+.1f} s: {told.problem}")
    elif one.action is not Action.HOLD or not quietly:
        each = f"{one.capacity.per_s:,.0f} a second each" if one.capacity else "nothing known of them"
        say(
            f"{since_s:+.1f} s: {one.action} {one.before} to {one.replicas}, {one.workers} joined, {each}; "
            f"in {one.in_per_s:,.0f} out {one.out_per_s:,.0f}, {one.seconds_behind:.1f} s behind: {one.reason}"
        )


def figures(
    told: list[Told], step_at_us: int, capacity_per_s: float, base_per_s: float, verdict: dict[str, Any]
) -> dict[str, float]:
    """What the run showed."""
    seen = [((one.at_us - step_at_us) / 1e6, one.decision) for one in told if one.decision is not None]
    over = [at_s for at_s, decision in seen if at_s > 0 and decision.seconds_behind > TARGET_S]
    steps = [(at_s, decision) for at_s, decision in seen if decision.action is not Action.HOLD]
    ups = [decision.replicas > decision.before for at_s, decision in steps if at_s > 0]
    return {
        "worker_capacity_per_s": round(capacity_per_s, 1),
        "load_per_s": round(base_per_s, 1),
        "load_after_step_per_s": round(TIMES * base_per_s, 1),
        "met_again_after_s": round(max(over, default=0.0), 1),
        "met_within_s": MET_WITHIN_S,
        "most_seconds_behind": round(max(decision.seconds_behind for at_s, decision in seen if at_s > 0), 1),
        "behind_at_end_s": round(seen[-1][1].seconds_behind, 2),
        "workers_before": next(decision.before for _, decision in seen),
        "workers_at_end": seen[-1][1].replicas,
        "steps": len(steps),
        "turns": sum(one != other for one, other in pairwise(ups)),
        "readings_failed": len(told) - len(seen),
        "items": verdict["captured"],
        "balanced": float(verdict["balanced"]),
    }


if __name__ == "__main__":
    main("scale_step", "is the target met again after a load step of three times?", measure)
