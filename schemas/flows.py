"""What lies in each topic, under which key, who writes it and who reads it: one table, of which AsyncAPI is written.

Workers and commands are called as `tidegate` calls them; those that only show how a pipeline stands (`lag`, `status`,
`top`, the exporter) are left out. `users` are whoever else reads: topics that are meant for them have answers, counts
and what could not be taken.
"""

import msgspec

from schemas.control import CREDIT_KEY, producer_key
from schemas.headers import CONTENT_TYPE, DISPOSITION, FROM, REASON, TG
from schemas.positions import OWNER_KEY
from schemas.topics import SiteTopics, Tier, TopicSpec, cloud_specs

__all__ = ["FLOWS", "VERSION", "Flow", "Key", "RecordKind", "specs_of"]

VERSION = 1
"""Of topic names, of keys, and of records that carry no version themselves. A change that breaks them raises it."""


class Key(msgspec.Struct, frozen=True):
    """The key of a record: UTF-8, or none, and then the writer names the partition."""

    about: str
    example: str = ""
    fixed: bool = False
    """It is always the example."""
    present: bool = True
    absent: bool = False
    """There may be none; `present` as well says that both occur."""


BY_STREAM = Key("The stream's id.", "cam-00")
BY_PARTITION = Key("None: the writer names the partition that it read from.", present=False, absent=True)


class RecordKind(msgspec.Struct, frozen=True):
    """A kind of record: what its value, key and headers are."""

    name: str
    about: str
    key: Key
    payload: str = ""
    """The value's name in `schemas.wire.PUBLISHED`; "" where the value is the payload itself, in any format."""
    headers: tuple[str, ...] = ()
    """That it always has."""
    may_have: tuple[str, ...] = ()


ITEM = RecordKind(
    "item",
    "Items of one stream: the payload itself, what is known of it in `tg`.",
    BY_STREAM,
    headers=(CONTENT_TYPE, TG),
)
STREAM_POSITION = RecordKind("stream_position", "What was captured of a stream.", BY_STREAM, "positions")
RESULTS = RecordKind("results", "Settled results, of one micro-batch and partition.", BY_PARTITION, "results")
MARKS = RecordKind(
    "marks",
    "How items ended, of one transaction and partition.",
    Key("The stream's id where the producer wrote it; else none.", "cam-00", absent=True),
    "ledger",
)
ANSWERS = RecordKind("answers", "What the cloud says of escalated records.", BY_PARTITION, "answers")
CREDIT = RecordKind(
    "credit", "The cloud's heartbeat, at the site.", Key("One for all.", CREDIT_KEY.decode(), fixed=True), "control"
)
SITE_CREDIT = RecordKind("site_credit", "The cloud's heartbeat to a site.", Key("The site.", "site-1"), "control")
FORWARD_POSITION = RecordKind(
    "forward_position",
    "How far a partition of the other cluster was forwarded.",
    Key("Topic and partition there.", "site-1.uplink.p0:3"),
    "forward_positions",
)
OWNER = RecordKind(
    "owner", "The forwarder that claimed last.", Key("One for all.", OWNER_KEY.decode(), fixed=True), "owner"
)
PRODUCER_OWNER = RecordKind(
    "producer_owner",
    "The producer that claimed a slot last.",
    Key("`producer.` and the slot's number.", producer_key(0).decode()),
    "owner",
)
WINDOW = RecordKind(
    "window",
    "A revision of a window; the latest counts.",
    Key("A JSON array: site, stream, label, start.", '["site-1","cam-00","4",1795462360000000]'),
    "aggregates",
)
DEAD_LETTER = RecordKind(
    "dead_letter",
    "A record that could not be taken, as it was. With `tg` it holds items, which end `dead_lettered`.",
    Key("As it was.", "cam-00", absent=True),
    headers=(REASON, FROM),
    may_have=(CONTENT_TYPE, TG),
)
DISPOSITIONS = RecordKind(
    "dispositions",
    "What was decided about dead letters before it in its partition. It has no reason; what has one is a dead letter.",
    Key("None: the writer names the partition of the letters.", present=False, absent=True),
    "dispositions",
    headers=(CONTENT_TYPE, DISPOSITION),
)


class Flow(msgspec.Struct, frozen=True):
    """A topic: `kind` is its name without site and priority, as `TopicSpec.kind`."""

    tier: Tier
    kind: str
    about: str
    records: tuple[RecordKind, ...]
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name among the topics of both tiers."""
        return f"{self.tier}.{self.kind}"


USERS = "users"
_EDGE, _CLOUD = Tier.EDGE, Tier.CLOUD
_AUDITED = ("edge", "audit")

FLOWS = (
    Flow(_EDGE, "items", "Items as captured.", (ITEM,), ("produce", "dlq"), _AUDITED),
    Flow(
        _EDGE,
        "positions",
        "Where capture stands.",
        (STREAM_POSITION,),
        ("produce", "dlq"),
        ("produce", "dlq", "audit"),
    ),
    Flow(_EDGE, "uplink", "Items for the cloud, by priority.", (ITEM,), ("edge",), ("uplink", "settle", "audit")),
    Flow(_EDGE, "answers", "The cloud's answers.", (ANSWERS,), ("downlink",), ("settle",)),
    Flow(_EDGE, "results", "Settled results.", (RESULTS,), ("edge", "settle"), ("uplink", USERS)),
    Flow(_EDGE, "ledger", "Marks: how items ended.", (MARKS,), ("produce", "edge", "settle"), ("audit",)),
    Flow(
        _EDGE,
        "control",
        "Whether the cloud is there, and who captures.",
        (CREDIT, PRODUCER_OWNER),
        ("downlink", "produce"),
        ("edge", "produce"),
    ),
    Flow(
        _EDGE,
        "dead_letters",
        "Records that the site could not take, and what was decided about them.",
        (DEAD_LETTER, DISPOSITIONS),
        ("produce", "edge", "settle", "dlq"),
        ("dlq", "audit", USERS),
    ),
    Flow(
        _EDGE,
        "down.positions",
        "Where the downlink stands.",
        (FORWARD_POSITION, OWNER),
        ("topics", "downlink"),
        ("downlink",),
    ),
    Flow(_CLOUD, "offload", "All sites' items for the cloud, by priority.", (ITEM,), ("uplink",), ("cloud",)),
    Flow(_CLOUD, "down.answers", "Answers for a site.", (ANSWERS,), ("cloud",), ("downlink",)),
    Flow(_CLOUD, "up.results", "A site's settled results.", (RESULTS,), ("uplink",), ("aggregate", USERS)),
    Flow(
        _CLOUD,
        "up.positions",
        "Where the uplink stands.",
        (FORWARD_POSITION, OWNER),
        ("topics", "uplink"),
        ("uplink",),
    ),
    Flow(_CLOUD, "aggregates", "Counts a window, stream and label.", (WINDOW,), ("aggregate",), ("aggregate", USERS)),
    Flow(_CLOUD, "control", "Whether the cloud is there, for all sites.", (SITE_CREDIT,), ("cloud",), ("downlink",)),
    Flow(
        _CLOUD,
        "dead_letters",
        "Records that the cloud could not take, and what was decided about them.",
        (DEAD_LETTER, DISPOSITIONS),
        ("cloud", "aggregate", "dlq"),
        ("dlq", USERS),
    ),
)


def specs_of(flow: Flow, site: str) -> list[TopicSpec]:
    """The topics of a flow at `site`: one a priority, or one."""
    every = [*SiteTopics(site).specs(), *cloud_specs()]
    return [spec for spec in every if (spec.tier, spec.kind) == (flow.tier, flow.kind)]
