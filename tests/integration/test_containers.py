"""The pipeline on the official Kafka image: two containers, the cloud's frozen for a while in the middle."""

import contextlib
import json
import signal
from collections.abc import Iterator

import pytest
import yaml
from testcontainers.core.network import Network

from pipelines.testing import KafkaNode
from pipelines.transport.kafka import KafkaCluster
from schemas import wire
from schemas.ledger import Outcome
from schemas.results import Result
from schemas.topics import SiteTopics

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

SITE = "boxed"
DRAIN_S = 120


@pytest.fixture
def kafkas(docker) -> Iterator[tuple[KafkaNode, KafkaNode]]:
    """The Kafkas of edge and cloud."""
    with Network() as network, KafkaNode("edge-kafka", network) as edge, KafkaNode("cloud-kafka", network) as cloud:
        yield edge, cloud


def results_of(cluster: KafkaCluster) -> list[Result]:
    return [
        result
        for record in cluster.read_all([SiteTopics(SITE).results])
        for result in wire.decode_results(record.value()).results
    ]


def test_a_run_on_two_containers_outlives_a_frozen_cloud(user, kafkas, make_model, make_images):
    edge, cloud = kafkas
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
        "kafka": {"edge": {"bootstrap": edge.bootstrap}, "cloud": {"bootstrap": cloud.bootstrap}},
    }
    (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    process = user.start("run", "--json")
    user.until_results(process, user.data / "pipelines" / SITE, SITE, 1)
    with contextlib.closing(KafkaCluster("edge", edge.bootstrap)) as cluster:
        user.until(
            "an answer of the cloud",
            process,
            lambda: any(result.outcome == Outcome.ANSWERED_CLOUD for result in results_of(cluster)),
        )
        cloud.get_wrapped_container().pause()
        try:
            user.until(
                "the edge alone", process, lambda: any(result.reason == "cloud_away" for result in results_of(cluster))
            )
        finally:
            cloud.get_wrapped_container().unpause()
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
