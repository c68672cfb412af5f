"""What topics a pipeline wants, against what a cluster has: the list of changes.

Pure. What is missing is created, a setting that differs is set. What would break the account is refused: another number
of partitions, a retention that would remove what a reader has not read, positions that the cluster would forget.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from schemas.topics import (
    AGGREGATE_GROUP,
    CLOUD_GROUP,
    CONTROL,
    OFFLOADS,
    RECORD_BYTES_MOST,
    SiteTopics,
    Tier,
    TopicSpec,
    cloud_specs,
)

Partition = tuple[str, int]

FOREVER_MS = -1
RETENTION, POLICY, INSYNC, RECORD_BYTES = "retention.ms", "cleanup.policy", "min.insync.replicas", "max.message.bytes"

NEW_CLOUD = "set `partitions` to what is there: all sites of this cloud share it (docs/topics.md has the way out)"
NEW_SITE = "set `partitions` to what is there, or begin a new site: a stream's order depends on it (docs/topics.md)"


class Layout(msgspec.Struct, frozen=True):
    """What the topics of one site and of the cloud look like."""

    site: str
    partitions: int
    retention_ms: int
    sites: Sequence[str] = ()
    """Sites whose topics the cloud has; `site` alone where empty."""
    outage_budget_ms: int = 0
    """The longest outage that must lose nothing; 0 asks nothing of the cluster."""
    replication: int | None = None
    """Copies of each partition; None leaves it to the cluster."""
    min_insync: int | None = None
    """Copies that a write waits for; None leaves it to the cluster."""
    configs: Mapping[str, Mapping[str, str]] = {}
    """Kafka's own settings, by kind of topic."""

    def sites_of(self, tier: Tier) -> list[str]:
        """Sites that have topics on this tier's cluster."""
        return [*self.sites] if tier is Tier.CLOUD and self.sites else [self.site]


class WantedTopic(msgspec.Struct, frozen=True):
    """A topic as it should be."""

    name: str
    partitions: int
    configs: Mapping[str, str]
    replication: int | None = None
    keyed: bool = True
    shared: bool = False
    """By all sites of a cloud."""


class Thing(StrEnum):
    """What a change is about."""

    TOPIC = "topic"
    GROUP = "group"
    FORWARDER = "forwarder"
    """Uplink or downlink, known by the topic of its positions."""
    CLUSTER = "cluster"


class Reader(msgspec.Struct, frozen=True):
    """Who reads, and which partitions: a consumer group, or a forwarder, known by the topic of its positions."""

    name: str
    partitions: Sequence[Partition]
    forwarder: bool = False

    @property
    def thing(self) -> Thing:
        """What it is to a person."""
        return Thing.FORWARDER if self.forwarder else Thing.GROUP


class FoundTopic(msgspec.Struct, frozen=True):
    """A topic as it is."""

    partitions: int
    replication: int
    configs: Mapping[str, str]
    """All that are in force, the cluster's defaults included."""


class Unread(msgspec.Struct, frozen=True):
    """Records of a topic older than the retention wanted, that a reader has not read."""

    reader: str
    topic: str
    records: int


class Found(msgspec.Struct, frozen=True):
    """What a cluster has."""

    brokers: int = 1
    topics: Mapping[str, FoundTopic] = {}
    positions: Mapping[str, frozenset[Partition]] = {}
    """Of each reader: the partitions that it has a position on."""
    filled: frozenset[Partition] = frozenset()
    """Partitions on which a group has no position although they hold, or held, records."""
    unread: Sequence[Unread] = ()
    unchecked: Sequence[tuple[str, str]] = ()
    """Reader and topic whose retention shrinks, where the reader's position could not be asked for."""
    offsets_retention_ms: int | None = None
    """How long the cluster keeps the positions of a group that has no member; None: not to be known."""


class Action(StrEnum):
    """What a change is."""

    CREATE = "create"
    ALTER = "alter"
    POSITIONS = "positions"
    """First positions of a reader."""
    BY_HAND = "by hand"
    """It differs, does no harm to the account, and Tidegate does not change it."""
    REFUSED = "refused"
    NOTE = "note"
    """Nothing differs; worth knowing."""


class Change(msgspec.Struct, frozen=True):
    """One line of a plan."""

    action: Action
    thing: Thing
    name: str
    what: str
    remedy: str = ""
    """Where Tidegate does not do it."""
    configs: Mapping[str, str] = {}
    """To be set, of `alter`."""

    def __str__(self) -> str:
        return f"{self.thing} '{self.name}' {self.what}" if self.thing is not Thing.CLUSTER else self.what


def wanted_topics(layout: Layout, tier: Tier) -> list[WantedTopic]:
    """All topics that one tier's cluster should have."""
    sites = [spec for site in layout.sites_of(tier) for spec in SiteTopics(site).specs() if spec.tier is tier]
    shared = cloud_specs() if tier is Tier.CLOUD else []
    insync = {} if layout.min_insync is None else {INSYNC: str(layout.min_insync)}
    return [
        WantedTopic(
            spec.name,
            layout.partitions if spec.keyed else 1,
            {**base_configs(spec, layout.retention_ms), **insync, **layout.configs.get(spec.kind, {})},
            layout.replication,
            spec.keyed,
            spec in shared,
        )
        for spec in [*sites, *shared]
    ]


def base_configs(spec: TopicSpec, retention_ms: int) -> dict[str, str]:
    """Kafka's settings of a topic, as they follow from what it is for."""
    if spec.compacted:
        # A short segment lets compaction begin before a day's heartbeats have piled up.
        return {POLICY: "compact", "segment.ms": "600000", "min.cleanable.dirty.ratio": "0.1"}
    configs = {RETENTION: str(FOREVER_MS if spec.forever else retention_ms), "message.timestamp.type": "CreateTime"}
    return {**configs, RECORD_BYTES: str(RECORD_BYTES_MOST)} if spec.media else configs


def readers(layout: Layout, tier: Tier) -> list[Reader]:
    """All readers whose positions lie on one tier's cluster.

    A forwarder's lie where it writes to. The topics that it reads are on the other cluster, which need not be asked:
    they have the pipeline's number of partitions, too.
    """
    sites = [SiteTopics(site) for site in layout.sites_of(tier)]

    def all_of(names: Sequence[str]) -> list[Partition]:
        return [(name, number) for name in names for number in range(layout.partitions)]

    if tier is Tier.EDGE:
        return [
            reader
            for one in sites
            for reader in (
                Reader(one.edge_group, all_of([one.items])),
                Reader(one.settler_group, all_of([*one.uplinks, one.answers])),
                Reader(one.down_positions, [(CONTROL, 0), *all_of([one.down_answers])], forwarder=True),
            )
        ]
    return [
        Reader(CLOUD_GROUP, all_of(OFFLOADS)),
        Reader(AGGREGATE_GROUP, all_of([one.up_results for one in sites])),
        *(Reader(one.up_positions, all_of([*one.uplinks, one.results]), forwarder=True) for one in sites),
    ]


def why_not_config(kind: str, name: str, value: str, outage_budget_ms: int) -> str:
    """Why a raw setting of a topic may not stand in the pipeline file; "" where it may."""
    where = f"`topics.configs.{kind}.{name}`"
    specs = [spec for spec in [*SiteTopics("site").specs(), *cloud_specs()] if spec.kind == kind]
    number = _number(value)
    if name == POLICY:
        return f"{where} follows from what the topic is for: leave it out"
    if name.startswith(("retention.", "local.retention.")):
        if any(spec.compacted or spec.forever for spec in specs):
            return f"{where}: nothing is removed from this topic by age or size, or the account would not balance"
        if name.endswith(".ms") and number is not None and 0 <= number < outage_budget_ms:
            return f"{where} is shorter than `outage_budget`: unread records would be removed in an outage"
        if name.endswith(".bytes") and number is not None and number >= 0:
            return f"{where} removes records however new they are: use `{RETENTION}`, and a disk that holds it"
    if name == RECORD_BYTES and any(spec.media for spec in specs) and (number or 0) < RECORD_BYTES_MOST:
        return f"{where} must be {RECORD_BYTES_MOST} or more: records may be as large"
    return ""


def plan(layout: Layout, tier: Tier, found: Found) -> list[Change]:
    """What is to be done on one tier's cluster, refusals first."""
    wanted = wanted_topics(layout, tier)
    changes = _cluster_changes(layout, found)
    for topic in wanted:
        there = found.topics.get(topic.name)
        changes += [_create(topic)] if there is None else _differences(topic, there, found)
    for reader in readers(layout, tier):
        changes += _position_changes(reader, found)
    known = {spec.name for site in layout.sites_of(tier) for spec in SiteTopics(site).specs()}
    prefixes = tuple(f"{site}." for site in layout.sites_of(tier))
    changes += [
        Change(Action.NOTE, Thing.TOPIC, name, "is not Tidegate's, and has a name that begins as this site's topics do")
        for name in sorted(found.topics)
        if name.startswith(prefixes) and name not in known
    ]
    order = [Action.REFUSED, Action.CREATE, Action.ALTER, Action.POSITIONS, Action.BY_HAND, Action.NOTE]
    return sorted(changes, key=lambda change: order.index(change.action))


def _cluster_changes(layout: Layout, found: Found) -> list[Change]:
    changes = []
    kept_ms, budget_ms = found.offsets_retention_ms, layout.outage_budget_ms
    if kept_ms is not None and kept_ms < budget_ms:
        changes.append(
            Change(
                Action.REFUSED,
                Thing.CLUSTER,
                "offsets.retention.minutes",
                f"the cluster forgets where a group stands {_length(kept_ms)} after its last worker ended, and "
                f"`outage_budget` is {_length(budget_ms)}",
                f"set offsets.retention.minutes to {math.ceil(budget_ms / 60_000)} or more on every broker",
            )
        )
    if layout.replication is not None and layout.replication > found.brokers:
        changes.append(
            Change(
                Action.REFUSED,
                Thing.CLUSTER,
                "replication",
                f"`topics.replication` is {layout.replication} and the cluster has {_count(found.brokers, 'broker')}",
                "start the others, or lower it",
            )
        )
    return changes


def _create(topic: WantedTopic) -> Change:
    copies = f", {topic.replication} copies" if topic.replication else ""
    settings = ", ".join(f"{name}={value}" for name, value in sorted(topic.configs.items()))
    return Change(
        Action.CREATE, Thing.TOPIC, topic.name, f"{_count(topic.partitions, 'partition')}{copies}, {settings}"
    )


def _differences(topic: WantedTopic, there: FoundTopic, found: Found) -> list[Change]:
    if there.partitions != topic.partitions:
        if topic.keyed:
            what = f"has {there.partitions} partitions and `partitions` says {topic.partitions}"
            return [Change(Action.REFUSED, Thing.TOPIC, topic.name, what, NEW_CLOUD if topic.shared else NEW_SITE)]
        what = f"has {there.partitions} partitions and must have one: one writer orders it"
        return [
            Change(
                Action.REFUSED, Thing.TOPIC, topic.name, what, "stop the pipeline, delete this topic, and apply again"
            )
        ]
    changes = []
    if topic.replication is not None and there.replication != topic.replication:
        what = f"has {there.replication} copies of a partition and `topics.replication` says {topic.replication}"
        changes.append(
            Change(Action.BY_HAND, Thing.TOPIC, topic.name, what, "move it with Kafka's kafka-reassign-partitions")
        )
    for name in sorted(topic.configs.keys() - there.configs.keys()):
        near = difflib.get_close_matches(name, there.configs, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else "Kafka's documentation has the list"
        changes.append(
            Change(Action.REFUSED, Thing.TOPIC, topic.name, f"Kafka knows no setting `{name}` of a topic", remedy)
        )
    differing = {
        name: value
        for name, value in topic.configs.items()
        if name in there.configs and not same_value(value, there.configs[name])
    }
    if not differing:
        return changes
    losses = [unread for unread in found.unread if unread.topic == topic.name and RETENTION in differing]
    if losses:
        changes += [_loss(unread, topic.configs[RETENTION]) for unread in losses]
        return changes
    told = ", ".join(f"{name} {there.configs[name]} -> {value}" for name, value in sorted(differing.items()))
    changes.append(Change(Action.ALTER, Thing.TOPIC, topic.name, told, configs=differing))
    changes += [
        Change(
            Action.NOTE,
            Thing.TOPIC,
            topic.name,
            f"the retention shrinks, and where {reader} stands is kept on the other cluster, which was not asked",
            "without --tier both are asked",
        )
        for reader, name in found.unchecked
        if name == topic.name
    ]
    return changes


def _loss(unread: Unread, retention_ms: str) -> Change:
    return Change(
        Action.REFUSED,
        Thing.TOPIC,
        unread.topic,
        f"{RETENTION} {retention_ms} would remove {_count(unread.records, 'record')} that {unread.reader} has not read",
        "let it catch up (`tidegate lag`), then apply again",
    )


def _position_changes(reader: Reader, found: Found) -> list[Change]:
    missing = [one for one in reader.partitions if one not in found.positions.get(reader.name, ())]
    lost = sorted({topic for topic, number in missing if (topic, number) in found.filled and not reader.forwarder})
    if lost:
        what = f"has no position on {', '.join(lost)}, where records were written: it was forgotten or deleted"
        remedy = "set it with Kafka's kafka-consumer-groups --reset-offsets where the group stood, or begin a new site"
        return [Change(Action.REFUSED, reader.thing, reader.name, what, remedy)]
    if not missing:
        return []
    return [
        Change(Action.POSITIONS, reader.thing, reader.name, f"first positions on {_count(len(missing), 'partition')}")
    ]


def same_value(wanted: str, found: str) -> bool:
    """Whether two settings are one: "0.1" and "0.10" are, and "true" and "TRUE"."""
    one, other = _number(wanted), _number(found)
    return one == other if one is not None and other is not None else wanted.lower() == found.lower()


def retention_ms(configs: Mapping[str, str]) -> float:
    """How long records are kept, in milliseconds; infinite where nothing is removed by age."""
    if configs.get(POLICY) == "compact":
        return math.inf
    value = _number(configs.get(RETENTION, ""))
    return math.inf if value is None or value < 0 else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _length(length_ms: int) -> str:
    for unit, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if length_ms >= unit_ms and length_ms % unit_ms == 0:
            return f"{length_ms // unit_ms}{unit}"
    return f"{length_ms}ms"
