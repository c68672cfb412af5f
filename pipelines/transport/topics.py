"""Creating what a pipeline stands on: its topics, and the first position of every reader.

A group's first positions are written here, once. Afterwards no reader ever guesses where to begin
(`auto.offset.reset=error`): a position that is missing, or that retention has overtaken, is an error that is seen.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec

from pipelines.errors import ConfigError
from pipelines.transport.base import Cluster, OutRecord
from schemas import wire
from schemas.positions import ForwardPosition, forward_key
from schemas.topics import (
    AGGREGATE_GROUP,
    CLOUD_GROUP,
    CONTROL,
    OFFLOADS,
    SiteTopics,
    Tier,
    TopicSpec,
    cloud_specs,
)

T = TypeVar("T")


class Layout(msgspec.Struct, frozen=True):
    """What the topics of one site and of the cloud look like."""

    site: str
    partitions: int
    retention_ms: int


def apply(layout: Layout, edge: Cluster, cloud: Cluster) -> list[str]:
    """Create what is missing on both clusters, and write first positions; the names of the topics created.

    Safe to run again, and while the pipeline runs. Raises `ConfigError` where a topic that is there has another number
    of partitions: keyed order would break if it changed. Raises `BrokerError` where a broker refuses.
    """
    topics = SiteTopics(layout.site)
    specs = [*topics.specs(), *cloud_specs()]
    by_tier = [(cluster, [spec for spec in specs if spec.tier is tier]) for tier, cluster in _tiers(edge, cloud)]
    created = _at_once([partial(_create, cluster, mine, layout) for cluster, mine in by_tier])
    up, down = [*topics.uplinks, topics.results], [CONTROL, topics.down_answers]
    _at_once(
        [
            partial(edge.write_first_positions, topics.edge_group, [topics.items]),
            partial(edge.write_first_positions, topics.settler_group, [*topics.uplinks, topics.answers]),
            partial(cloud.write_first_positions, CLOUD_GROUP, OFFLOADS),
            partial(cloud.write_first_positions, AGGREGATE_GROUP, [topics.up_results]),
            partial(_write_forward_positions, edge, up, cloud, topics.up_positions, f"create.up.{layout.site}"),
            partial(_write_forward_positions, cloud, down, edge, topics.down_positions, f"create.down.{layout.site}"),
        ]
    )
    return [name for names in created for name in names]


def _tiers(edge: Cluster, cloud: Cluster) -> list[tuple[Tier, Cluster]]:
    return [(Tier.EDGE, edge), (Tier.CLOUD, cloud)]


def _at_once(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run all and wait for all. On a fresh broker each waits a second for its coordinator, one after the other five."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [done.result() for done in [pool.submit(task) for task in tasks]]


def _create(cluster: Cluster, specs: Sequence[TopicSpec], layout: Layout) -> list[str]:
    created = cluster.create_topics(specs, layout.partitions, layout.retention_ms)
    _check_partitions(specs, layout.partitions, cluster)
    return created


def _check_partitions(specs: Sequence[TopicSpec], partitions: int, cluster: Cluster) -> None:
    counts: dict[str, int] = {}
    for name, _ in cluster.partitions([spec.name for spec in specs]):
        counts[name] = counts.get(name, 0) + 1
    for spec in specs:
        wanted = partitions if spec.keyed else 1
        if counts[spec.name] != wanted:
            raise ConfigError(
                f"topic '{spec.name}' has {counts[spec.name]} partitions and `partitions` says {wanted}",
                remedy="set `partitions` to what is there, or begin a new site: a stream's order depends on it",
            )


def _write_forward_positions(
    source: Cluster, topics: Sequence[str], destination: Cluster, positions_topic: str, transactional_id: str
) -> None:
    writer = destination.transactions(transactional_id)
    try:
        writer.start()
        known = {record.key() for record in destination.read_all([positions_topic])}
        first = wire.encode(ForwardPosition(next_offset=0))
        keys = [forward_key(*partition) for partition in source.partitions(topics)]
        missing = [OutRecord(positions_topic, first, key, 0) for key in keys if key not in known]
        if missing:
            writer.write(missing)
    finally:
        writer.close()
