"""One run of a whole pipeline on this machine: brokers, topics, workers, and the end of them all.

`tidegate run` and `tidegate demo` differ in what they show; what they stand on is this.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NoReturn

from pipelines.cli.topics import layout_of
from pipelines.config import Pipeline
from pipelines.config.clusters import ENVIRONMENT, Clusters, clusters, security
from pipelines.config.home import Running, write_running
from pipelines.errors import ConfigError
from pipelines.runtime.supervisor import Supervisor, WorkerSpec
from pipelines.transport.base import Cluster, Partition
from pipelines.transport.broker import Broker, prefetch, start_many_owned
from pipelines.transport.kafka import KafkaCluster
from pipelines.transport.topics import apply
from schemas.control import CREDIT_KEY
from schemas.topics import AGGREGATE_GROUP, CLOUD_GROUP, OFFLOADS, SiteTopics, Tier

READY_MOST_S = 30.0
READY_TURN_S = 0.1


class Session:
    """A pipeline that runs. Leave it by `close`, which stops the workers, then the brokers that it started."""

    def __init__(self, pipeline: Pipeline, file: Path, folder: Path, say: Callable[[str], None]) -> None:
        self.pipeline = pipeline
        self._say = say
        self.folder = folder
        self.brokers: dict[Tier, Broker] = {}
        self._stack = ExitStack()
        try:
            addresses = self._brokers()
            environment = {ENVIRONMENT[tier]: address for tier, address in addresses.items()}
            os.environ.update(environment)
            self.clusters: Clusters = clusters(pipeline)
            for one in self.clusters:
                self._stack.callback(one.close)
                one.check()
            self._stack.callback(self._running(addresses).unlink, missing_ok=True)
            self.created = apply(layout_of(pipeline), self.clusters.edge, self.clusters.cloud)
            self._control_before = self.clusters.edge.end_offsets([pipeline.topics.control])
            self.supervisor = Supervisor(workers_of(pipeline, file), environment, folder / "logs")
            self._stack.callback(self.supervisor.stop)
        except BaseException:
            self._stack.close()
            raise

    def _brokers(self) -> dict[Tier, str]:
        """Start an embedded Kafka for every tier without an address; all addresses."""
        sections = {tier: getattr(self.pipeline.kafka, tier) for tier in Tier}
        given = {tier: section.bootstrap for tier, section in sections.items()}
        wanted = [tier for tier in Tier if not given[tier]]
        for tier in set(Tier) - set(wanted):  # Looked for before an embedded one is started for the other tier.
            with closing(KafkaCluster(f"kafka.{tier}", given[tier], security(self.pipeline, tier))) as one:
                one.check()
        for tier in wanted:
            if sections[tier].tls is not None or sections[tier].sasl is not None:
                raise ConfigError(
                    f"`kafka.{tier}` has a login and no `bootstrap`: the embedded Kafka takes none",
                    remedy="set `bootstrap`, or take `tls` and `sasl` away",
                )
        if wanted:
            prefetch(self._say)
        started = start_many_owned([(self.folder / f"kafka-{tier}", f"{self.pipeline.name}-{tier}") for tier in wanted])
        for tier, broker in zip(wanted, started, strict=True):
            self._stack.callback(broker.stop)
            self.brokers[tier] = broker
            given[tier] = broker.bootstrap
        return given

    def _running(self, addresses: Mapping[Tier, str]) -> Path:
        return write_running(self.folder, Running(os.getpid(), addresses[Tier.EDGE], addresses[Tier.CLOUD]))

    def start(self) -> None:
        """Start the workers, the producer last: not before every group has its partitions and the cloud's credit came.

        After `READY_MOST_S` it starts all the same, and what is captured waits in its topic.
        """
        until_s = time.monotonic() + READY_MOST_S
        self.supervisor.turn(0)
        while not self._ready() and time.monotonic() < until_s:
            self.supervisor.turn(READY_TURN_S)
        self.supervisor.release("produce")

    def _ready(self) -> bool:
        topics, (edge, cloud) = self.pipeline.topics, self.clusters
        groups = [(edge, topics.edge_group, 1), (edge, topics.settler_group, 4), (cloud, AGGREGATE_GROUP, 1)]
        asks_cloud = self.pipeline.cloud.model is not None
        if asks_cloud:
            groups.append((cloud, CLOUD_GROUP, len(OFFLOADS)))
        for cluster, group, names in groups:
            if cluster.assigned_partitions(group) < names * self.pipeline.partitions:
                return False
        return not asks_cloud or credit_came(edge, topics, self._control_before)

    def close(self) -> None:
        """Stop the workers, then the brokers."""
        self._stack.close()


def credit_came(edge: Cluster, topics: SiteTopics, since: Mapping[Partition, int]) -> bool:
    """Whether the cloud's credit has reached the site. What else stands in its control topic is none."""
    return any(record.key() == CREDIT_KEY for record in edge.read_all([topics.control], since))


def workers_of(pipeline: Pipeline, file: Path) -> Sequence[WorkerSpec]:
    """The worker processes of a pipeline. The producer is held until what comes after it is ready."""
    args = [str(file)]
    edges = [WorkerSpec("edge", args, number) for number in range(pipeline.edge.workers)]
    clouds = [WorkerSpec("cloud", args, number) for number in range(pipeline.cloud.workers)]
    asks_cloud = pipeline.cloud.model is not None
    return [
        *edges,
        WorkerSpec("settle", args),
        WorkerSpec("uplink", args),
        *([WorkerSpec("downlink", args), *clouds] if asks_cloud else []),
        WorkerSpec("aggregate", args),
        WorkerSpec("produce", args, finite=True, held=True),
    ]


@contextmanager
def session(
    pipeline: Pipeline, file: Path, folder: Path, say: Callable[[str], None] = lambda _: None
) -> Iterator[Session]:
    """A running pipeline; SIGTERM ends it as an interrupt does. Raises `ConfigError` where `folder` is in use.

    `say` is told what is being fetched the first time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        one = Session(pipeline, file, folder, say)
        try:
            yield one
        finally:
            one.close()
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(lock)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _lock(folder: Path) -> int:
    """Two runs on one folder would fence each other's workers: the second is refused."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(
            f"pipeline '{folder.name}' runs already", remedy="stop the other run, or give this one another `name`"
        ) from error
    return handle
