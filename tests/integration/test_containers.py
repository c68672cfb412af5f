"""The pipeline on the official Kafka image: two containers, the cloud's frozen for a while in the middle."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator

import pytest
import yaml
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from pipelines.transport.broker.node import free_port, kafka_uuid
from pipelines.transport.broker.settings import SINGLE_NODE, TAKE_OVER
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.ledger import Outcome
from schemas.results import Result
from schemas.topics import SiteTopics

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

KAFKA_IMAGE = os.environ.get("KAFKA_IMAGE", "apache/kafka:4.3.0")
SITE = "boxed"
START_S = 60
DRAIN_S = 120


def kafka(port: int) -> DockerContainer:
    """One node with the take-over settings, at 127.0.0.1:`port`. A fixed port: a restart would change a random one."""
    identity = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,OWN:PLAINTEXT",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093,OWN://:9094",
        # Its own transaction coordinator calls it too, and does not reach the port of the machine from within.
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},OWN://localhost:9094",
        "inter.broker.listener.name": "OWN",
        "auto.create.topics.enable": "false",
    }
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port).with_env("CLUSTER_ID", kafka_uuid())
    for key, value in {**identity, **SINGLE_NODE, **TAKE_OVER}.items():
        container = container.with_env(f"KAFKA_{key.upper().replace('.', '_')}", str(value))
    return container.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(START_S))


@pytest.fixture
def kafkas(docker) -> Iterator[tuple[str, str, DockerContainer]]:
    """The addresses of edge and cloud, and the cloud's container."""
    first = free_port()
    second = free_port(first)
    with kafka(first), kafka(second) as cloud:
        yield f"127.0.0.1:{first}", f"127.0.0.1:{second}", cloud


def results_of(cluster: KafkaCluster) -> list[Result]:
    return [
        result
        for record in cluster.read_all([SiteTopics(SITE).results])
        for result in wire.decode_results(record.value()).results
    ]


def test_a_run_on_two_containers_outlives_a_frozen_cloud(user, kafkas, make_model, make_images):
    edge, cloud, container = kafkas
    make_images(user.folder / "images", 40)
    make_model(user.folder / "model.onnx", side=32)
    pipeline = {
        "name": SITE,
        "site": SITE,
        "source": {"path": "images", "streams": 2, "rate": "20/s", "loop": 0},
        "deadline": "2s",
        "edge": {"model": "model.onnx"},
        "cloud": {"model": "model.onnx"},
        # Grey images have no strongest colour: one in four is sent on.
        "routing": {"policy": "threshold", "options": {"threshold": 0.9}},
        "partitions": 2,
        "kafka": {"edge": {"bootstrap": edge}, "cloud": {"bootstrap": cloud}},
    }
    (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    process = user.start("run", "--json")
    user.until_results(process, user.data / "pipelines" / SITE, SITE, 1)
    with contextlib.closing(KafkaCluster("edge", edge)) as cluster:
        user.until(
            "an answer of the cloud",
            process,
            lambda: any(result.outcome == Outcome.ANSWERED_CLOUD for result in results_of(cluster)),
        )
        container.get_wrapped_container().pause()
        try:
            user.until(
                "the edge alone", process, lambda: any(result.reason == "cloud_away" for result in results_of(cluster))
            )
        finally:
            container.get_wrapped_container().unpause()
        alone = max(result.settled_us for result in results_of(cluster))
        user.until(
            "answers of the cloud again",
            process,
            lambda: any(
                result.outcome == Outcome.ANSWERED_CLOUD and result.capture_us > alone for result in results_of(cluster)
            ),
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DRAIN_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    account = json.loads(out)
    assert account["balanced"]
    assert set(account["in_flight"].values()) == {0}
    assert account["captured"] == sum(account["outcomes"].values())
    assert account["outcomes"]["answered_cloud"] > 0
    assert set(account["foreign"].values()) == {0}
    assert user.left_running() == []
