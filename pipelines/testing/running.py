"""Both tiers of a pipeline in containers, and what can happen to them: a cut link, dead workers, restarts, scaling.

edge network                              cloud network
  edge-kafka, producer, edge, settle        cloud-kafka, cloud, aggregate
  uplink and downlink are in both: `cut` takes them out of the cloud's, `heal` puts them back
"""

import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from pipelines.config import Pipeline, load
from pipelines.config.clusters import Clusters
from pipelines.core.ledger import Verdict
from pipelines.errors import ConfigError
from pipelines.observe.audit import drain
from pipelines.runtime.process import GRACE_S
from pipelines.testing.kafka import KafkaNode
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import Layout, apply
from schemas.topics import Tier

TIER_OF = {
    "produce": Tier.EDGE,
    "edge": Tier.EDGE,
    "settle": Tier.EDGE,
    "uplink": Tier.EDGE,
    "downlink": Tier.EDGE,
    "cloud": Tier.CLOUD,
    "aggregate": Tier.CLOUD,
}
"""Worker kinds, and whose image and network they have."""

LINKS = ("uplink", "downlink")
FOLDER = "/etc/tidegate"
"""Where the folder of the pipeline file is in every worker."""

STOP_S = int(GRACE_S) + 5


class EdgeAndCloud:
    """The clusters of a pipeline, ready to start workers in. A context manager: all of it is gone at the end.

    The pipeline file's whole folder is mounted into every worker, so models and images lie below it. `images` names a
    worker image a tier (`tidegate-edge` and `tidegate-cloud`). Raises `ConfigError` for a file that is not right.
    """

    def __init__(self, file: Path, *, images: dict[Tier, str] | None = None, kafka_image: str | None = None) -> None:
        self.file = file.resolve()
        self.pipeline: Pipeline = load(self.file)
        self._images = {Tier.EDGE: "tidegate-edge", Tier.CLOUD: "tidegate-cloud", **(images or {})}
        self._kafka_image = kafka_image
        self._stack = ExitStack()
        self._workers: defaultdict[str, list[DockerContainer]] = defaultdict(list)
        self._is_cut = False

    def __enter__(self) -> Self:
        try:
            self._networks = {tier: self._stack.enter_context(Network()) for tier in Tier}
            self.kafkas = {
                tier: self._stack.enter_context(KafkaNode(f"{tier}-kafka", self._networks[tier], self._kafka_image))
                for tier in Tier
            }
            self.clusters = Clusters(*(KafkaCluster(f"kafka.{tier}", self.kafkas[tier].bootstrap) for tier in Tier))
            for cluster in self.clusters:
                self._stack.callback(cluster.close)
                cluster.check()
            pipeline = self.pipeline
            apply(Layout(pipeline.site, pipeline.partitions, pipeline.retention.ms), *self.clusters)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, *kinds: str, replicas: int = 1) -> None:
        """Start `replicas` workers of each kind (see `TIER_OF`) beside those that run."""
        for kind in kinds:
            for _ in range(replicas):
                self._workers[kind].append(self._start(kind))

    def start_all(self) -> None:
        """One worker of each kind, the producer last."""
        self.start(*(kind for kind in TIER_OF if kind != "produce"), "produce")

    def workers(self, kind: str) -> list[Any]:
        """The containers of a kind, as docker's own client gives them."""
        return [one.get_wrapped_container() for one in self._workers[kind]]

    def scale(self, kind: str, replicas: int) -> None:
        """Have so many workers of a kind. Those that go are asked to (SIGTERM), and write what is pending."""
        running = self._workers[kind]
        while len(running) > replicas:
            self._stop(running.pop())
        self.start(kind, replicas=replicas - len(running))

    def kill(self, kind: str) -> None:
        """`kill -9` every worker of a kind, and start each again."""
        for container in self.workers(kind):
            container.kill()
            container.start()

    def restart(self, kind: str) -> None:
        """Restart the workers of a kind one after the other, each gracefully."""
        for container in self.workers(kind):
            container.restart(timeout=STOP_S)

    def cut(self) -> None:
        """Take the cloud away from the site: uplink and downlink do not reach it any more."""
        self._is_cut = True
        for container in self._links():
            self._wan(container).disconnect(container)

    def heal(self) -> None:
        """Undo `cut`."""
        self._is_cut = False
        for container in self._links():
            self._wan(container).connect(container)

    def restart_broker(self, tier: Tier, *, killed: bool = False) -> None:
        """Stop a tier's Kafka (`killed`: by `kill -9`) and start it again on the same data."""
        self.kafkas[tier].restart(killed=killed)

    def audit(self, drain_s: float = 60.0, progress: Callable[[Verdict], None] = lambda _: None) -> Verdict:
        """The account of every item, after up to `drain_s` seconds of waiting for nothing in flight."""
        return drain(self.clusters.edge, self.pipeline.site, drain_s, progress=progress)

    def logs(self) -> str:
        """What the workers said, for a test that failed."""
        said = [
            f"== {kind}-{number}\n{container.logs(tail=50).decode(errors='replace')}"
            for kind in self._workers
            for number, container in enumerate(self.workers(kind))
        ]
        return "\n".join(said)

    def _start(self, kind: str) -> DockerContainer:
        tier = TIER_OF.get(kind)
        if tier is None:
            raise ConfigError(f"'{kind}' is no kind of worker", remedy=f"one of {', '.join(TIER_OF)}")
        worker = (
            DockerContainer(self._images[tier])
            .with_command([kind, f"{FOLDER}/{self.file.name}"])
            .with_network(self._networks[tier])
            .with_volume_mapping(str(self.file.parent), FOLDER, "ro")
            .with_env("TIDEGATE_KAFKA_EDGE", self.kafkas[Tier.EDGE].inside)
            .with_env("TIDEGATE_KAFKA_CLOUD", self.kafkas[Tier.CLOUD].inside)
            .with_env("TIDEGATE_LOG", os.environ.get("TIDEGATE_LOG", "info"))
            .with_tmpfs_mount("/tmp")
            .with_kwargs(
                read_only=True,
                cap_drop=["ALL"],
                init=True,
                restart_policy={"Name": "on-failure", "MaximumRetryCount": 20},
            )
        )
        worker.start()
        self._stack.callback(worker.stop)
        if kind in LINKS and not self._is_cut:
            self._wan(worker.get_wrapped_container()).connect(worker.get_wrapped_container())
        return worker

    def _stop(self, worker: DockerContainer) -> None:
        worker.get_wrapped_container().stop(timeout=STOP_S)

    def _links(self) -> list[Any]:
        return [container for kind in LINKS for container in self.workers(kind)]

    def _wan(self, container: Any) -> Any:
        """The cloud's network, as docker's own client has it."""
        return container.client.networks.get(self._networks[Tier.CLOUD].id)
