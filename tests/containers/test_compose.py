"""docker-compose.yml as its user has it: up, first aggregate, scaled, every container killed, and the account."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from pipelines.observe.audit import Auditor, drain
from pipelines.transport.broker.node import free_port
from pipelines.transport.kafka import KafkaCluster
from schemas.ledger import Outcome
from schemas.topics import AGGREGATES, Tier

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
SITE = "site-1"
COMMAND_S = 300
FIRST_MOST_S = 120
"""Bounds for a machine that is stuck."""


def compose_command() -> list[str]:
    """Compose v2 where it is, else docker-compose 1.29."""
    plugin = ["docker", "compose"]
    if shutil.which("docker"):
        asked = subprocess.run([*plugin, "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return plugin
    return ["docker-compose"] if shutil.which("docker-compose") else []


class Project:
    """The services of the compose file under a name of their own."""

    def __init__(self, command: list[str], client: Any, folder: Path, images: Path) -> None:
        self._client = client
        self.name = f"tidegate-{uuid4().hex[:8]}"
        self._command = [*command, "-p", self.name, "-f", str(FILE), "--project-directory", str(ROOT)]
        self.ports = {Tier.EDGE: free_port()}
        self.ports[Tier.CLOUD] = free_port(self.ports[Tier.EDGE])
        pipeline = yaml.safe_load((ROOT / "deploy" / "pipeline.yaml").read_text())
        pipeline["source"] = {**pipeline["source"], "rate": "50/s", "loop": 0}
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
        self._environment = {
            **os.environ,
            "TIDEGATE_PIPELINE": str(folder / "pipeline.yaml"),
            "TIDEGATE_IMAGES": str(images),
            **{f"{tier.upper()}_KAFKA_PORT": str(port) for tier, port in self.ports.items()},
        }

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self, service: str = "") -> list[Any]:
        """Those of one service, or all that run."""
        labels = [f"com.docker.compose.project={self.name}"]
        if service:
            labels.append(f"com.docker.compose.service={service}")
        return list(self._client.containers.list(filters={"label": labels}))

    def crash(self, container: Any) -> None:
        """`kill -9` its first process, as a crash would be, and await that Docker has started it again.

        Not `docker kill`: what a person ended stays ended.
        """
        container.reload()
        pid = container.attrs["State"]["Pid"]
        with closing(self._client.events(filters={"container": container.id, "event": "start"}, decode=True)) as starts:
            self._client.containers.run(
                "tidegate-edge", ["-c", f"kill -9 {pid}"], entrypoint=["sh"], user="0", pid_mode="host", remove=True
            )
            next(starts)


@pytest.fixture
def project(docker, images, digit_files, tmp_path, require) -> Iterator[Project]:
    command = compose_command()
    require("docker compose", command, "install compose v2, or docker-compose 1.29")
    tmp_path.chmod(0o755)
    one = Project(command, docker, tmp_path, digit_files)
    try:
        yield one
    finally:
        one.run("down", "--volumes", "--timeout", "15")


def test_compose_up_scaled_and_killed_loses_and_doubles_nothing(project, follow, is_balanced):
    began_s = time.monotonic()
    project.run("up", "-d", "--no-build")
    addresses = {tier: f"127.0.0.1:{port}" for tier, port in project.ports.items()}
    with (
        closing(KafkaCluster("edge", addresses[Tier.EDGE])) as edge,
        closing(KafkaCluster("cloud", addresses[Tier.CLOUD])) as cloud,
        closing(cloud.reader(cloud.start_offsets([AGGREGATES]))) as windows,
    ):
        while not windows.poll(1, 1.0):
            assert time.monotonic() - began_s < FIRST_MOST_S, project.run("logs", "--tail", "20")
        print(f"first aggregate {time.monotonic() - began_s:.1f} s after `up`")

        results, auditor = follow(edge, SITE), Auditor(edge, SITE)

        def goes_on(after: str) -> None:
            seen = results.until(f"a result after {after}", lambda result: True)
            results.until(
                f"an answer of the cloud after {after}",
                lambda result: result.outcome == Outcome.ANSWERED_CLOUD and result.capture_us > seen.settled_us,
            )
            assert is_balanced(auditor), after

        goes_on("the start")
        project.run("up", "-d", "--no-build", "--scale", "edge-worker=3")
        assert len(project.containers("edge-worker")) == 3
        goes_on("scaling out")
        kafkas = [*project.containers("edge-kafka"), *project.containers("cloud-kafka")]
        workers = [one for one in project.containers() if one not in kafkas]
        for together in (kafkas[:1], kafkas[1:], workers):
            for container in together:
                project.crash(container)
            goes_on(f"kill -9 of {', '.join(container.name for container in together)}")
        project.run("up", "-d", "--no-build", "--scale", "edge-worker=1")
        goes_on("scaling in")
        project.run("stop", "producer")
        verdict = drain(edge, SITE, 90)
    assert verdict.balanced
    assert verdict.in_flight_items == 0
    assert verdict.captured == sum(verdict.outcomes.values())
