"""A reading of the lag as metrics. Only what the newest reading holds is exported: what is gone leaves no series."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipelines.core.capacity import Capacities
from pipelines.core.lag import GroupLag, PartitionLag, State
from pipelines.observe.lag import Reading
from pipelines.observe.metrics import LAG_METRICS
from schemas.topics import Tier

OF_ALL_SITES = ("cloud", "aggregate")
"""Groups that belong to no single site."""

Retentions = Mapping[tuple[Tier, str], float]
"""Seconds that a topic keeps a record at the least."""


class LagCollector(Collector):
    """What prometheus-client asks at each scrape. `take` and `collect` may be called by two threads."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._capacities: dict[str, Capacities] = {}
        self._newest: tuple[Reading, float, dict[str, float]] | None = None
        self._retentions_s: Retentions = {}

    def take(self, reading: Reading, took_s: float, retentions_s: Retentions | None = None) -> None:
        """The newest reading, how long it took, and how long topics keep what is in them."""
        at_s = reading.at_us / 1e6
        found: dict[str, float] = {}
        for group in reading.groups:
            capacities = self._capacities.setdefault(group.group, Capacities())
            capacities.see(at_s, group)
            capacity = capacities.capacity(at_s, group)
            if capacity is not None:
                found[group.group] = capacity.per_s * len(group.members)
        self._retentions_s = retentions_s or {}
        self._newest = (reading, took_s, found)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """All families; without a sample those that have none now."""
        families = {
            metric.name: GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels) for metric in LAG_METRICS
        }
        newest = self._newest
        if newest is not None:
            reading, took_s, capacities = newest
            for name, labels, value in _samples(self._site, reading, capacities, self._retentions_s):
                families[name].add_metric(labels, value)
            families["tidegate_exporter_read_seconds"].add_metric([self._site], took_s)
        return families.values()


Sampled = tuple[str, Sequence[str], float]
"""Name, label values in the order of the list, value."""


def _samples(
    site: str, reading: Reading, capacities: Mapping[str, float], retentions_s: Retentions
) -> Iterator[Sampled]:
    for group in reading.groups:
        of = ["" if group.kind in OF_ALL_SITES else site, group.kind, group.group]
        yield from _of_group(group, [*of, group.tier], capacities.get(group.group))
        for one in group.partitions:
            kept_s = retentions_s.get((group.tier, one.topic), math.inf)
            yield from _of_partition(one, [*of, one.topic, str(one.partition), group.tier], kept_s)
    for tier in reading.brokers.keys() | reading.unreachable.keys():
        yield "tidegate_cluster_reachable", [site, tier], tier not in reading.unreachable


def _of_group(group: GroupLag, labels: list[str], capacity_per_s: float | None) -> Iterator[Sampled]:
    yield "tidegate_group_seconds_behind", labels, group.seconds_behind
    yield "tidegate_group_lag_records", labels, group.lag_records
    yield "tidegate_group_records_per_second", [*labels, "in"], group.in_per_s
    yield "tidegate_group_records_per_second", [*labels, "out"], group.out_per_s
    yield "tidegate_group_drain_seconds", labels, math.inf if group.drain_s is None else group.drain_s
    for state in State:
        yield "tidegate_group_state", [*labels, state], group.state is state
    yield "tidegate_group_members", labels, len(group.members)
    if capacity_per_s is not None:
        yield "tidegate_group_capacity_per_second", labels, capacity_per_s
    yield "tidegate_hot_partitions", labels, sum(one.hot for one in group.partitions)


def _of_partition(one: PartitionLag, labels: list[str], kept_s: float) -> Iterator[Sampled]:
    yield "tidegate_seconds_behind", labels, one.seconds_behind
    yield "tidegate_lag_records", labels, one.lag_records
    if kept_s < math.inf:
        yield "tidegate_retention_used_ratio", labels, one.unread_s / max(kept_s, 0.001)
    if one.state is not State.OK:
        yield "tidegate_partition_state", [*labels, one.state], 1
