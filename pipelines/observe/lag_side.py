"""One cluster as the lag reader sees it: where its groups and forwarders stand, and since when what waits does.

How old is the oldest unprocessed item? The first visible record at or after the commit says it: `capture_us` of its
header; of a batch of results the earliest `capture_us` in it; else (answers, credit, foreign records) the record's
timestamp. A settler may hold an item until its deadline, so its items count from their deadlines on.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future

import msgspec

from pipelines.config.pipeline import Pipeline
from pipelines.core.lag import Member
from pipelines.core.oldest import Found, Waits
from pipelines.errors import TidegateError
from pipelines.transport.base import Commit, Known, Look, Partition, Record
from schemas import headers, wire
from schemas.errors import ForeignRecord, RecordError
from schemas.positions import OWNER_KEY, partition_of
from schemas.topics import AGGREGATE_GROUP, CLOUD_GROUP, CONTROL, OFFLOADS, SiteTopics, Tier

RENEW_AFTER_S = 5.0
"""A cluster that was away for so long is asked through new connections."""

RETENTION_EVERY_S = 10.0
"""Between two looks at how long topics keep their records: somebody may change it."""


class Flow(msgspec.Struct, frozen=True):
    """One group, or one forwarder."""

    kind: str
    group: str
    tier: Tier
    """Of the cluster that it reads from."""
    topics: Sequence[str]
    positions: str = ""
    """Of a forwarder: the topic, on the other cluster, in which it keeps where it stands."""


def flows_of(pipeline: Pipeline, tiers: Collection[Tier]) -> list[Flow]:
    """The groups and forwarders of a pipeline that belong to these tiers, in the order of the flow.

    Without a cloud model nothing is sent to the cloud but results: there are no cloud workers, and no downlink.
    """
    topics = pipeline.topics
    edge, cloud = Tier.EDGE, Tier.CLOUD
    up, down = [*topics.uplinks, topics.results], [CONTROL, topics.down_answers]
    results = [SiteTopics(site).up_results for site in pipeline.cloud_sites]
    asks_cloud = pipeline.cloud.model is not None
    found = []
    if edge in tiers:
        found.append(Flow("edge", topics.edge_group, edge, [topics.items]))
        found.append(Flow("settle", topics.settler_group, edge, [*topics.uplinks, topics.answers]))
        found.append(Flow("uplink", f"uplink.{topics.site}", edge, up, topics.up_positions))
    if edge in tiers and asks_cloud:
        found.append(Flow("downlink", f"downlink.{topics.site}", cloud, down, topics.down_positions))
    if cloud in tiers and asks_cloud:
        found.append(Flow("cloud", CLOUD_GROUP, cloud, OFFLOADS))
    if cloud in tiers:
        found.append(Flow("aggregate", AGGREGATE_GROUP, cloud, results))
    return found


class Side:
    """One cluster, as it was seen last. Used by one thread of the pool at a time."""

    def __init__(
        self, tier: Tier, look: Look, flows: Sequence[Flow], positions: str, *, retentions: bool = False
    ) -> None:
        """`retentions`: look how long topics keep their records, too."""
        self.tier = tier
        self._look = look
        self._retentions_due_s = 0.0 if retentions else math.inf
        self._groups = {flow.group: flow.topics for flow in flows if flow.tier is tier and not flow.positions}
        self._topics = list(dict.fromkeys(topic for flow in flows if flow.tier is tier for topic in flow.topics))
        self._forwards = [flow.positions for flow in flows if flow.positions and flow.tier is not tier]
        self._stream_positions = positions if tier is Tier.EDGE else ""
        self.busy: Future[str] | None = None
        self._away_since_s: float | None = None
        self.at_us = self.followed_us = 0
        """When commits and when positions were read."""
        self.known = Known(0, {})
        self.commits: dict[str, dict[Partition, Commit]] = {}
        self.members: dict[str, list[Member]] = {}
        self.ends: dict[Partition, tuple[int, int]] = {}
        self.positions: dict[str, dict[Partition, int]] = {topic: {} for topic in self._forwards}
        self.owners: dict[str, str] = {}
        self.complete: set[str] = set()
        """Forwarders' positions that have been read to their ends, ever."""
        self.streams: dict[str, int] = {}
        self.retentions_s: dict[str, float] = {}
        """By topic, as it was seen last."""

    def run(self, task: Callable[["Side"], None]) -> str:
        """Do something that asks the cluster; why that could not be done, "" where it could."""
        now_s = time.monotonic()
        if self._away_since_s is not None and now_s - self._away_since_s > RENEW_AFTER_S:
            self._look.renew()
            self._away_since_s = now_s
        try:
            task(self)
        except TidegateError as error:
            self._away_since_s = self._away_since_s or now_s
            return str(error)
        self._away_since_s = None
        return ""

    def look(self) -> None:
        """See where everything stands."""
        self.known = known = self._look.known()
        present = {
            topic: [(topic, number) for number in range(known.partitions[topic])]
            for topic in (*self._topics, *self._forwards, self._stream_positions)
            if topic in known.partitions
        }
        if not present:
            raise TidegateError(
                f"kafka.{self.tier}: none of this pipeline's topics is there",
                remedy="create them with `tidegate topics apply`",
            )
        self._follow(present)
        self.followed_us = time.time_ns() // 1000
        for group, topics in self._groups.items():
            partitions = [p for topic in topics for p in present.get(topic, ())]
            # A partition without a commit: nobody could begin to read it, all of it waits.
            self.commits[group] = dict.fromkeys(partitions, Commit(0)) | self._look.committed(group, partitions)
        self.at_us = time.time_ns() // 1000
        self.ends = self._look.ends([p for topic in self._topics for p in present.get(topic, ())])
        self.members = self._look.members(list(self._groups))
        if time.monotonic() >= self._retentions_due_s:
            self.retentions_s = self._look.retentions([topic for topic in self._topics if topic in present])
            self._retentions_due_s = time.monotonic() + RETENTION_EVERY_S

    def first_records(self, kind: str, starts: Mapping[Partition, int]) -> dict[Partition, Found | None]:
        """The first record at or after each offset that a worker of `kind` goes on at; see `Look.records_at`."""
        found = self._look.records_at(starts)
        return {
            p: None
            if record is None
            else Found(record.offset(), Waits(waits_since_us(record, kind), _written_us(record)))
            for p, record in found.items()
        }

    def close(self) -> None:
        """Release the connections."""
        self._look.close()

    def _follow(self, present: Mapping[str, Sequence[Partition]]) -> None:
        """Read on in the compacted topics."""
        names = [name for name in (*self._forwards, self._stream_positions) if name in present]
        ends = {p: end for p, (end, _) in self._look.ends([p for name in names for p in present[name]]).items()}
        for record in self._look.follow(ends):
            if record.topic() == self._stream_positions:
                self.streams[(record.key() or b"").decode("utf-8", "replace")] = record.partition()
            else:
                self._take_position(record)
        for name in self._forwards:
            reached = name in present and all(self._look.followed(p) >= ends[p] for p in present[name])
            (self.complete.add if reached else self.complete.discard)(name)

    def _take_position(self, record: Record) -> None:
        key = record.key() or b""
        try:
            if key == OWNER_KEY:
                self.owners[record.topic()] = wire.decode_owner(record.value()).instance
            else:
                position = wire.decode_forward_position(record.value())
                self.positions[record.topic()][partition_of(key)] = position.next_offset
        except ForeignRecord:
            return  # What stood there before stays the truth; the forwarder itself logs it.


class _Captured(msgspec.Struct):
    capture_us: int


class _CapturedBatch(msgspec.Struct):
    """What is needed of a `ResultBatch`: a twentieth of the time."""

    results: list[_Captured]


_decode_captured = wire.Decoder(_CapturedBatch)


def waits_since_us(record: Record, kind: str) -> int:
    """Since when a record waits for a worker of `kind`, microseconds since the Unix epoch."""
    try:
        header = headers.find(record.headers())
    except RecordError:
        pass  # No header of ours, or one of a later version.
    else:
        return header.deadline_us if kind == "settle" else header.capture_us
    if kind in ("uplink", "aggregate"):
        try:
            return min(result.capture_us for result in _decode_captured(record.value()).results)
        except (ForeignRecord, ValueError):
            pass  # No batch of results, or an empty one.
    return _written_us(record)


def _written_us(record: Record) -> int:
    return record.timestamp()[1] * 1000
