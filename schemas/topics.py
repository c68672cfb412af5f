"""Names, partitions and retention of every topic.

Every keyed topic of a site has the same number of partitions, fixed when the pipeline is created; workers write to the
partition that they read from, so a stream's records, answers, results and windows lie in one partition number.
"""

import re
from enum import StrEnum

import msgspec

__all__ = [
    "AGGREGATES",
    "AGGREGATE_GROUP",
    "CLOUD_DEAD_LETTERS",
    "CLOUD_GROUP",
    "CONTROL",
    "OFFLOADS",
    "PRIORITIES",
    "RECORD_BYTES_MOST",
    "SITE_NAME",
    "SiteTopics",
    "Tier",
    "TopicSpec",
    "cloud_specs",
    "offload",
    "topic_kinds",
]

PRIORITIES = 3
"""Uplink and offload topics a tier: p0 (first) to p2."""

RECORD_BYTES_MOST = 16 << 20
"""Of a record with media: Kafka's own 1 MB is less than a phone's photograph."""

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What a site may be called: it becomes part of topic names, group names and transactional ids."""


_PRIORITY = re.compile(r"\.p\d$")


class Tier(StrEnum):
    """Where a cluster stands."""

    EDGE = "edge"
    CLOUD = "cloud"


class TopicSpec(msgspec.Struct, frozen=True):
    """A topic to be created. `keyed` topics have the pipeline's partition count, others have one partition."""

    name: str
    tier: Tier
    keyed: bool = True
    compacted: bool = False
    forever: bool = False
    """Nothing is removed by age: without its marks a settled item would look lost."""
    media: bool = False
    """Holds payloads that are compressed already: topic compression stays off."""

    @property
    def kind(self) -> str:
        """The name without site and priority, as the pipeline file has it: `items`, `up.results`, `offload`."""
        plain = _PRIORITY.sub("", self.name)
        return plain.partition(".")[2] or plain


class SiteTopics(msgspec.Struct, frozen=True):
    """Topics and groups that belong to one site, on either cluster."""

    site: str

    @property
    def items(self) -> str:
        """Items as captured."""
        return f"{self.site}.items"

    @property
    def positions(self) -> str:
        """Per stream: epoch, next seq, source position."""
        return f"{self.site}.positions"

    def uplink(self, priority: int) -> str:
        """Items that the router sent to the cloud, by priority."""
        return f"{self.site}.uplink.p{priority}"

    @property
    def uplinks(self) -> list[str]:
        """All uplink topics, first priority first."""
        return [self.uplink(priority) for priority in range(PRIORITIES)]

    @property
    def answers(self) -> str:
        """The cloud's answers, at the edge."""
        return f"{self.site}.answers"

    @property
    def results(self) -> str:
        """Settled results."""
        return f"{self.site}.results"

    @property
    def ledger(self) -> str:
        """Marks."""
        return f"{self.site}.ledger"

    @property
    def control(self) -> str:
        """The cloud's credit, at the edge, and which producer holds a slot."""
        return f"{self.site}.control"

    @property
    def dead_letters(self) -> str:
        """Payloads of dead-lettered items, records that are not ours, and what was decided about either."""
        return f"{self.site}.dead_letters"

    @property
    def down_positions(self) -> str:
        """Where the downlink stands; at the edge."""
        return f"{self.site}.down.positions"

    @property
    def down_answers(self) -> str:
        """The cloud's answers, in the cloud."""
        return f"{self.site}.down.answers"

    @property
    def up_results(self) -> str:
        """Settled results, in the cloud."""
        return f"{self.site}.up.results"

    @property
    def up_positions(self) -> str:
        """Where the uplink stands; in the cloud."""
        return f"{self.site}.up.positions"

    @property
    def edge_group(self) -> str:
        """Consumer group of the edge workers."""
        return f"{self.site}.edge"

    @property
    def settler_group(self) -> str:
        """Consumer group of the settlers."""
        return f"{self.site}.settler"

    def specs(self) -> list[TopicSpec]:
        """All topics of the site."""
        edge, cloud = Tier.EDGE, Tier.CLOUD
        return [
            TopicSpec(self.items, edge, media=True),
            TopicSpec(self.positions, edge, compacted=True),
            *(TopicSpec(name, edge, media=True) for name in self.uplinks),
            TopicSpec(self.answers, edge),
            TopicSpec(self.results, edge),
            TopicSpec(self.ledger, edge, forever=True),
            TopicSpec(self.control, edge, keyed=False, compacted=True),
            TopicSpec(self.dead_letters, edge, media=True),
            TopicSpec(self.down_positions, edge, keyed=False, compacted=True),
            TopicSpec(self.down_answers, cloud),
            TopicSpec(self.up_results, cloud),
            TopicSpec(self.up_positions, cloud, keyed=False, compacted=True),
        ]


def offload(priority: int) -> str:
    """The cloud's work, from all sites, by priority."""
    return f"offload.p{priority}"


OFFLOADS = [offload(priority) for priority in range(PRIORITIES)]
AGGREGATES = "aggregates"
CONTROL = "control"
CLOUD_DEAD_LETTERS = "dead_letters"
CLOUD_GROUP = "cloud"
AGGREGATE_GROUP = "aggregate"


def cloud_specs() -> list[TopicSpec]:
    """Topics of the cloud that no single site owns."""
    return [
        *(TopicSpec(name, Tier.CLOUD, media=True) for name in OFFLOADS),
        TopicSpec(AGGREGATES, Tier.CLOUD, compacted=True),
        TopicSpec(CONTROL, Tier.CLOUD, keyed=False, compacted=True),
        TopicSpec(CLOUD_DEAD_LETTERS, Tier.CLOUD, media=True),
    ]


def topic_kinds() -> list[str]:
    """Every kind of topic, of either tier; `control` and `dead_letters` are on both."""
    return sorted({spec.kind for spec in [*SiteTopics("site").specs(), *cloud_specs()]})
