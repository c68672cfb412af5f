"""Workers in containers while the link is cut, brokers restart, and workers are scaled, restarted and killed; with the
account after each."""

import pytest

from pipelines.observe.audit import Auditor
from pipelines.testing import EdgeAndCloud
from schemas.ledger import Outcome
from schemas.topics import Tier

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

KINDS = ("edge", "settle", "uplink", "downlink", "cloud", "aggregate")


def answered_by_the_cloud(result) -> bool:
    return result.outcome == Outcome.ANSWERED_CLOUD


def test_what_happens_to_an_edge_and_a_cloud_loses_and_doubles_nothing(images, write_pipeline, follow, is_balanced):
    with EdgeAndCloud(write_pipeline(), images=images) as running:
        edge, site = running.clusters.edge, running.pipeline.site
        results = follow(edge, site)
        auditor = Auditor(edge, site)

        def goes_on(after: str) -> None:
            """Items captured from now on are answered, by the cloud too; and the account balances meanwhile."""
            seen = results.until(f"a result after {after}", lambda result: True)
            results.until(
                f"an answer of the cloud after {after}",
                lambda result: answered_by_the_cloud(result) and result.capture_us > seen.settled_us,
            )
            assert is_balanced(auditor), after

        try:
            running.start_all()
            goes_on("the start")
            running.cut()
            results.until("the edge alone", lambda result: result.reason == "cloud_away")
            assert is_balanced(auditor)
            running.heal()
            goes_on("the cut")
            for tier in Tier:
                running.restart_broker(tier, killed=tier is Tier.CLOUD)
                goes_on(f"a restart of the {tier}'s Kafka")
            running.scale("edge", 3)
            goes_on("scaling out")
            running.restart("edge")
            goes_on("a rolling restart")
            running.scale("edge", 1)
            goes_on("scaling in")
            for kind in KINDS:
                running.kill(kind)
                goes_on(f"kill -9 of {kind}")
            running.kill("produce")
            goes_on("kill -9 of the producer")
            running.scale("produce", 0)
            verdict = running.audit(drain_s=90)
        except BaseException:
            print(running.logs())
            raise
    assert verdict.balanced
    assert verdict.in_flight_items == 0
    assert verdict.captured == sum(verdict.outcomes.values())
    assert verdict.outcomes[Outcome.ANSWERED_CLOUD] > 0
    assert set(verdict.foreign.values()) == {0}


def test_an_image_is_small_and_runs_as_nobody_on_a_file_system_that_it_cannot_write(docker, images):
    for name in images.values():
        found = docker.images.get(name)
        assert found.attrs["Size"] < 500e6
        assert found.attrs["Config"]["User"] == "10001:10001"
        assert found.labels["org.opencontainers.image.version"] == "test"
        assert found.attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "python", "-m", "pipelines.observe.probe"]
        said = docker.containers.run(name, ["--version"], read_only=True, remove=True, cap_drop=["ALL"])
        assert said.decode().startswith("tidegate ")
