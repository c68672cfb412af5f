"""From a pipeline file to its Kafka clusters.

An address is looked for in this order: the environment (`TIDEGATE_KAFKA_EDGE`, `TIDEGATE_KAFKA_CLOUD`: how `tidegate
run` tells its workers), the file, and a running `tidegate run` of the same pipeline.
"""

import os
from typing import Any, NamedTuple

from pipelines.config.home import Running, pipeline_dir, read_running
from pipelines.config.pipeline import KafkaCluster as ClusterSection
from pipelines.config.pipeline import Pipeline
from pipelines.config.security import client_options
from pipelines.errors import ConfigError
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import Tier

ENVIRONMENT = {Tier.EDGE: "TIDEGATE_KAFKA_EDGE", Tier.CLOUD: "TIDEGATE_KAFKA_CLOUD"}


class Clusters(NamedTuple):
    """The two clusters of a pipeline; they may be one Kafka under two names."""

    edge: KafkaCluster
    cloud: KafkaCluster


def clusters(pipeline: Pipeline) -> Clusters:
    """Both clusters, not contacted yet. Raises `ConfigError` where an address is nowhere to be found."""
    return Clusters(cluster(pipeline, Tier.EDGE), cluster(pipeline, Tier.CLOUD))


def cluster(pipeline: Pipeline, tier: Tier) -> KafkaCluster:
    """One of the two, not contacted yet. Raises `ConfigError` where its address is nowhere to be found."""
    section: ClusterSection = getattr(pipeline.kafka, tier)
    running = read_running(pipeline_dir(pipeline.name))
    bootstrap = os.environ.get(ENVIRONMENT[tier]) or section.bootstrap or _of_running(running, tier)
    if not bootstrap:
        raise ConfigError(
            f"`kafka.{tier}.bootstrap` is not set and pipeline '{pipeline.name}' is not running here",
            remedy="set it, or start the pipeline with `tidegate run`",
        )
    return KafkaCluster(f"kafka.{tier}", bootstrap, security(pipeline, tier))


def security(pipeline: Pipeline, tier: Tier) -> dict[str, Any]:
    """The client settings of a tier's cluster, secrets and all. Raises `ConfigError`."""
    section: ClusterSection = getattr(pipeline.kafka, tier)
    return client_options(f"kafka.{tier}", section.tls, section.sasl, section.librdkafka)


def _of_running(running: Running | None, tier: Tier) -> str | None:
    return None if running is None else str(getattr(running, tier))
