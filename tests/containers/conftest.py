"""What container tests share: images of both tiers, built once a session, a pipeline of digits, results to follow."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from pipelines.cli.digits import load_digits
from pipelines.errors import BrokerError, TransportError
from pipelines.observe.audit import Auditor
from pipelines.transport.base import Disconnected, Record
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.results import Result
from schemas.topics import SiteTopics, Tier

ROOT = Path(__file__).resolve().parents[2]
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.12-slim")
UNTIL_S = 90
"""A bound on what is waited for, for a machine that is stuck."""


@pytest.fixture(scope="session")
def images(docker: Any) -> dict[Tier, str]:
    """The images of both tiers, as they are built from this checkout."""
    names = {tier: f"tidegate-{tier}" for tier in Tier}
    for tier, name in names.items():
        docker.images.build(
            path=str(ROOT),
            dockerfile=f"deploy/{tier}.Dockerfile",
            tag=name,
            buildargs={"PYTHON_IMAGE": PYTHON_IMAGE, "VERSION": "test"},
            network_mode="host",
            rm=True,
        )
    return names


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 400 digits as PNG files that any user may read."""
    folder = tmp_path_factory.mktemp("digits")
    for number, image in enumerate(load_digits()[0][:400]):
        assert cv2.imwrite(str(folder / f"{number:04}.png"), image)
    folder.chmod(0o755)
    return folder


@pytest.fixture
def write_pipeline(tmp_path: Path, digit_files: Path) -> Callable[..., Path]:
    """`write_pipeline(**changes)`: the file of a pipeline of digits, the images beside it."""
    tmp_path.chmod(0o755)
    (tmp_path / "images").mkdir()
    for path in digit_files.iterdir():
        os.link(path, tmp_path / "images" / path.name)

    def write(**changes: Any) -> Path:
        pipeline = {
            "name": "boxed",
            "site": "boxed",
            "source": {"path": "images", "streams": 4, "rate": "50/s", "loop": 0},
            "encode": {"codec": "raw", "resize": [28, 28], "grey": True},
            "deadline": "2s",
            "edge": {"model": "builtin:digits-small"},
            "cloud": {"model": "builtin:digits-large"},
            "routing": {"policy": "threshold"},
            "partitions": 6,
        }
        file = tmp_path / "pipeline.yaml"
        file.write_text(yaml.safe_dump({**pipeline, **changes}))
        return file

    return write


class Follower:
    """Reads settled results from now on."""

    def __init__(self, cluster: KafkaCluster, site: str) -> None:
        self._cluster = cluster
        self._next = cluster.end_offsets([SiteTopics(site).results])
        self._reader = cluster.reader(self._next)

    def until(self, what: str, wanted: Callable[[Result], bool]) -> Result:
        """The next result that is as wanted."""
        until_s = time.monotonic() + UNTIL_S
        while time.monotonic() < until_s:
            for record in self._poll():
                for result in wire.decode_results(record.value()).results:
                    if wanted(result):
                        return result
        raise AssertionError(f"never came: {what}")

    def _poll(self) -> list[Record]:
        try:
            records = self._reader.poll(500, 1.0)
        except Disconnected:  # Its Kafka was gone: begin anew where this one stood.
            self._reader.close()
            self._reader = self._cluster.reader(self._next)
            return []
        for record in records:
            self._next[record.topic(), record.partition()] = record.offset() + 1
        return records

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def is_balanced() -> Callable[[Auditor], bool]:
    """What an audit says, once the edge's Kafka answers: results read ahead may have come while it was still away."""

    def ask(auditor: Auditor) -> bool:
        until_s = time.monotonic() + UNTIL_S
        while True:
            try:
                return auditor.look().balanced
            except (BrokerError, TransportError):  # It has waited for its own time-out.
                if time.monotonic() > until_s:
                    raise

    return ask


@pytest.fixture
def follow() -> Any:
    """`follow(cluster, site)`: results from now on."""
    opened: list[Follower] = []

    def start(cluster: KafkaCluster, site: str) -> Follower:
        opened.append(Follower(cluster, site))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
