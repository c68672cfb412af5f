"""Topics through Kafka's admin protocol: described, created, altered. `KafkaCluster` adds patience and error lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from pipelines.core.topic_plan import FoundTopic, WantedTopic
from pipelines.transport.base import Partition

DEFAULT_REPLICATION = -1
"""Of `NewTopic`: the cluster's own default."""


def topics_of(admin: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, FoundTopic]:
    """Partitions, copies and settings of those that are there."""
    known = admin.list_topics(timeout=timeout_s).topics
    there = [name for name in names if name in known]
    configs = _configs(admin, ResourceType.TOPIC, there, timeout_s)
    return {
        name: FoundTopic(
            len(known[name].partitions),
            min(len(partition.replicas) for partition in known[name].partitions.values()),
            configs[name],
        )
        for name in there
    }


def topic_names(admin: AdminClient, timeout_s: float) -> list[str]:
    """Of all topics of the cluster."""
    return list(admin.list_topics(timeout=timeout_s).topics)


def broker_configs(admin: AdminClient, timeout_s: float) -> dict[int, dict[str, str]]:
    """Settings of each broker that answers, by its number; empty settings where we may not see them."""
    brokers = [str(number) for number in admin.list_topics(timeout=timeout_s).brokers]
    try:
        found = _configs(admin, ResourceType.BROKER, brokers, timeout_s)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.CLUSTER_AUTHORIZATION_FAILED:
            raise
        found = {number: {} for number in brokers}
    return {int(number): configs for number, configs in found.items()}


def _configs(
    admin: AdminClient, kind: ResourceType, names: Sequence[str], timeout_s: float
) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    futures = admin.describe_configs([ConfigResource(kind, name) for name in names], request_timeout=timeout_s)
    return {
        resource.name: {name: entry.value or "" for name, entry in future.result().items()}
        for resource, future in futures.items()
    }


def create_topics(admin: AdminClient, wanted: Sequence[WantedTopic], timeout_s: float) -> dict[str, Any]:
    """A future by name."""
    new = [
        NewTopic(one.name, one.partitions, one.replication or DEFAULT_REPLICATION, config=dict(one.configs))
        for one in wanted
    ]
    return dict(admin.create_topics(new, request_timeout=timeout_s))


def alter_topics(admin: AdminClient, configs: Mapping[str, Mapping[str, str]], timeout_s: float) -> dict[str, Any]:
    """Set these settings and leave all others; a future by name."""
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            name,
            incremental_configs=[
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in wanted.items()
            ],
        )
        for name, wanted in configs.items()
    ]
    futures = admin.incremental_alter_configs(resources, request_timeout=timeout_s)
    return {resource.name: future for resource, future in futures.items()}


def offsets_at(
    admin: AdminClient, partitions: Sequence[Partition], at_ms: int, timeout_s: float
) -> dict[Partition, int | None]:
    """The first offset with a timestamp of `at_ms` (milliseconds since the Unix epoch) or later; None: none is."""
    wanted = {TopicPartition(*partition): OffsetSpec.for_timestamp(at_ms) for partition in partitions}
    futures = admin.list_offsets(wanted, request_timeout=timeout_s) if wanted else {}
    found = {(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}
    return {partition: offset if offset >= 0 else None for partition, offset in found.items()}


def are_there(admin: AdminClient, names: Sequence[str], timeout_s: float) -> bool:
    """Whether the broker that answers knows these topics, and a leader of every partition."""
    known = admin.list_topics(timeout=timeout_s).topics
    return all(name in known and all(p.leader >= 0 for p in known[name].partitions.values()) for name in names)
