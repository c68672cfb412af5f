"""What a pipeline stands on: its topics, and the first position of every reader.

A group's first positions are written here, once. Afterwards no reader ever guesses where to begin
(`auto.offset.reset=error`): a position that is missing, or that retention has overtaken, is an error that is seen.

Operation: `look` asks one tier's cluster what it has, `plan` (pure) compares, `apply_tier` does it. The other tier's
cluster need not be there.
"""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pipelines.core.topic_plan import (
    Action,
    Change,
    Found,
    FoundTopic,
    Layout,
    Reader,
    Unread,
    plan,
    readers,
    retention_ms,
    wanted_topics,
)
from pipelines.errors import ConfigError, ForeignRecord, TransportError
from pipelines.transport.base import Cluster, OutRecord, Partition, Transactions
from schemas import wire
from schemas.positions import ForwardPosition, forward_key, partition_of
from schemas.topics import Tier

__all__ = ["Change", "Layout", "apply", "apply_tier", "plan_tier"]

T = TypeVar("T")

FRESH_S = 60.0
"""Longest wait for a Kafka that has just begun."""

AT_ONCE = 8
"""Requests that wait at a time, each with a connection of its own."""


def apply(layout: Layout, edge: Cluster, cloud: Cluster) -> list[str]:
    """Both tiers at once, each as `apply_tier` does it; the names of the topics created."""
    tasks = [partial(apply_tier, layout, Tier.EDGE, edge, cloud), partial(apply_tier, layout, Tier.CLOUD, cloud, edge)]
    return [change.name for made in _at_once(tasks) for change in made if change.action is Action.CREATE]


def plan_tier(layout: Layout, tier: Tier, cluster: Cluster, other: Cluster | None = None) -> list[Change]:
    """What is to be done on one tier's cluster. Raises `BrokerError`.

    `other`, the other tier's, is asked only where a retention shrinks: where a forwarder stands is kept there.
    """
    return plan(layout, tier, look(layout, tier, cluster, other))


def apply_tier(layout: Layout, tier: Tier, cluster: Cluster, other: Cluster | None = None) -> list[Change]:
    """Do on one tier's cluster what `plan_tier` says; what was done, and what was left.

    Safe to run again, and while the pipeline runs. Raises `ConfigError` where something is refused, before anything is
    done, and `BrokerError` where a broker refuses.
    """
    changes = plan_tier(layout, tier, cluster, other)
    refuse(tier, changes)
    create = {change.name for change in changes if change.action is Action.CREATE}
    cluster.create([topic for topic in wanted_topics(layout, tier) if topic.name in create])
    cluster.alter_topics({change.name: change.configs for change in changes if change.action is Action.ALTER})
    begin = {change.name for change in changes if change.action is Action.POSITIONS}
    _at_once([partial(_begin, cluster, reader) for reader in readers(layout, tier) if reader.name in begin])
    return changes


def refuse(tier: Tier, changes: Sequence[Change]) -> None:
    """Raise `ConfigError` where one of the changes is refused."""
    refused = [change for change in changes if change.action is Action.REFUSED]
    if refused:
        more = f"; `tidegate topics plan` shows {len(refused) - 1} more" if len(refused) > 1 else ""
        raise ConfigError(f"kafka.{tier}: {refused[0]}", remedy=f"{refused[0].remedy}{more}")


def look(layout: Layout, tier: Tier, cluster: Cluster, other: Cluster | None = None) -> Found:
    """What is there. Raises `BrokerError`."""
    names = [topic.name for topic in wanted_topics(layout, tier)]
    prefixes = tuple(f"{site}." for site in layout.sites_of(tier))
    brokers = cluster.broker_configs()
    alike = [name for name in cluster.topic_names() if name in names or name.startswith(prefixes)]
    topics = cluster.topics(alike)
    kept_minutes = [int(configs["offsets.retention.minutes"]) for configs in brokers.values() if configs]
    all_readers = readers(layout, tier)
    offsets = _at_once([partial(_offsets, reader, cluster, topics.keys()) for reader in all_readers])
    filled: set[Partition] = set()
    for reader, known in zip(all_readers, offsets, strict=True):
        behind = sorted({name for name, _ in set(reader.partitions) - known.keys()} & topics.keys())
        if behind and not reader.forwarder:
            ends = cluster.end_offsets(behind, stable=False)
            filled.update(one for one, end in ends.items() if end and one not in known)
    unread, unchecked = _unread(layout, tier, cluster, other, topics)
    return Found(
        len(brokers),
        topics,
        {reader.name: frozenset(known) for reader, known in zip(all_readers, offsets, strict=True)},
        frozenset(filled),
        unread,
        unchecked,
        min(kept_minutes) * 60_000 if kept_minutes else None,
    )


def _offsets(reader: Reader, cluster: Cluster, there: Collection[str]) -> dict[Partition, int]:
    """Where a reader stands; `cluster` is the one that keeps its positions, and has the topics `there`."""
    if reader.forwarder:
        return forward_offsets(cluster, reader.name) if reader.name in there else {}
    topics = sorted({name for name, _ in reader.partitions if name in there})
    return {one: commit.offset for one, commit in cluster.committed(reader.name, topics).items()} if topics else {}


def forward_offsets(cluster: Cluster, positions_topic: str) -> dict[Partition, int]:
    """Where a forwarder stands, by source partition."""
    offsets = {}
    for record in cluster.read_all([positions_topic]):
        try:
            offsets[partition_of(record.key() or b"")] = wire.decode_forward_position(record.value()).next_offset
        except ForeignRecord:
            continue  # Its owner's record, or what was never ours.
    return offsets


def _unread(
    layout: Layout, tier: Tier, cluster: Cluster, other: Cluster | None, topics: dict[str, FoundTopic]
) -> tuple[list[Unread], list[tuple[str, str]]]:
    """Records that a shorter retention would remove before their readers came, and who could not be asked."""
    shrinking = {
        topic.name: retention_ms(topic.configs)
        for topic in wanted_topics(layout, tier)
        if topic.name in topics and retention_ms(topic.configs) < retention_ms(topics[topic.name].configs)
    }
    unread: list[Unread] = []
    unchecked: list[tuple[str, str]] = []
    if not shrinking:
        return unread, unchecked
    elsewhere = Tier.CLOUD if tier is Tier.EDGE else Tier.EDGE
    asked: list[tuple[Reader, Cluster | None]] = [
        (reader, cluster) for reader in readers(layout, tier) if not reader.forwarder
    ]
    asked += [(reader, other) for reader in readers(layout, elsewhere) if reader.forwarder]
    for reader, where in asked:
        for name in sorted({name for name, _ in reader.partitions} & shrinking.keys()):
            if where is None:
                unchecked.append((reader.name, name))
                continue
            old = _too_old(cluster, name, time.time_ns() // 1_000_000 - int(shrinking[name]))
            at = _offsets(reader, where, where.topic_names())
            records = sum(max(first_kept - max(at.get(one, 0), start), 0) for one, (start, first_kept) in old.items())
            if records:
                unread.append(Unread(reader.name, name, records))
    return unread, unchecked


def _too_old(cluster: Cluster, topic: str, before_ms: int) -> dict[Partition, tuple[int, int]]:
    """By partition: the log start, and the first offset that is not older than `before_ms`."""
    starts, ends = cluster.start_offsets([topic]), cluster.end_offsets([topic])
    firsts = cluster.offsets_at(list(starts), before_ms)
    return {one: (start, ends[one] if firsts[one] is None else firsts[one] or 0) for one, start in starts.items()}


def _begin(cluster: Cluster, reader: Reader) -> None:
    """Write the positions that a reader has not yet."""
    if reader.forwarder:
        _write_forward_positions(cluster, reader)
    else:
        cluster.write_first_positions(reader.name, sorted({name for name, _ in reader.partitions}))


def _start_patiently(writer: Transactions) -> None:
    """A Kafka that has just begun still makes and loads its topic of transactions; on a busy machine for long."""
    until_s = time.monotonic() + FRESH_S
    while True:
        try:
            return writer.start()
        except TransportError:  # It has waited for its own time-out.
            if time.monotonic() > until_s:
                raise


def _write_forward_positions(cluster: Cluster, reader: Reader) -> None:
    writer = cluster.transactions(f"create.{reader.name}")
    try:
        _start_patiently(writer)
        known = forward_offsets(cluster, reader.name)
        first = wire.encode(ForwardPosition(next_offset=0))
        missing = [OutRecord(reader.name, first, forward_key(*one), 0) for one in reader.partitions if one not in known]
        if missing:
            writer.write(missing)
    finally:
        writer.close()


def _at_once(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run all and wait for all. On a fresh broker each waits a second for its coordinator, one after the other five."""
    if not tasks:
        return []
    with ThreadPoolExecutor(min(len(tasks), AT_ONCE)) as pool:
        return [done.result() for done in [pool.submit(task) for task in tasks]]
