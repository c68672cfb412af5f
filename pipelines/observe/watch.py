"""A running pipeline seen from outside: what its topics say, read as a user of them would (`read_committed`).

One `Watch` reads results, marks and positions as they are committed, and asks for group offsets when a snapshot is
wanted. It keeps counts, not records; latencies are kept for the newest `LATENCIES_MOST` items a route.
"""

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable

import msgspec

from pipelines.config.clusters import Clusters
from pipelines.errors import BrokerError
from pipelines.transport.base import Cluster, Disconnected, Partition, Record
from schemas import wire
from schemas.errors import ForeignRecord
from schemas.positions import OWNER_KEY, ForwardPosition
from schemas.results import Result
from schemas.topics import CLOUD_GROUP, OFFLOADS, SiteTopics

LATENCIES_MOST = 200_000
"""A route. At 8 bytes and a small list cell each: under 10 MB."""

RATE_WINDOW_S = 5.0
"""Rates shown are means over this long."""


class Snapshot(msgspec.Struct, frozen=True):
    """A pipeline at one moment. Counts are since the watch began."""

    at_s: float
    captured: int
    settled: int
    outcomes: dict[str, int]
    settled_per_s: float
    edge_backlog_s: float
    """Records that the edge workers have not read, at their present rate."""
    cloud_backlog_s: float
    """Likewise for the cloud workers."""
    uplink_bytes_per_s: float
    downlink_bytes_per_s: float
    uplink_bytes: int
    downlink_bytes: int


class _Follower:
    """A reader that is made anew, where it stood, when its cluster was gone."""

    def __init__(self, cluster: Cluster, starts: dict[Partition, int]) -> None:
        self._cluster, self._next = cluster, starts
        self._reader = cluster.reader(starts)

    def poll(self, timeout_s: float) -> list[Record]:
        try:
            records = self._reader.poll(500, timeout_s)
        except Disconnected:
            self._reader.close()
            self._reader = self._cluster.reader(self._next)
            return []
        for record in records:
            self._next[record.topic(), record.partition()] = record.offset() + 1
        return records

    def close(self) -> None:
        self._reader.close()


class Watch:
    """Follows one site. Not for two threads."""

    def __init__(self, both: Clusters, site: str, on_result: Callable[[Result, int], None] | None = None) -> None:
        self._both = both
        self._topics = SiteTopics(site)
        self._on_result = on_result
        self.foreign = 0
        self._next_seqs: dict[bytes | None, int] = {}
        self._forwarded: dict[str, dict[bytes | None, ForwardPosition]] = defaultdict(dict)
        results = [self._topics.results, self._topics.ledger]
        compacted = [self._topics.positions, self._topics.down_positions]
        edge_starts = {**both.edge.end_offsets(results), **self._from_start(both.edge, compacted)}
        self._edge = _Follower(both.edge, edge_starts)
        self._cloud = _Follower(both.cloud, self._from_start(both.cloud, [self._topics.up_positions]))
        self._captured_before = sum(self._next_seqs.values())
        self._forwarded_before = {topic: self._bytes(topic) for topic in self._forwarded}
        self.outcomes: Counter[str] = Counter()
        self.latencies_us: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=LATENCIES_MOST))
        """By outcome: from capture until this reader had the settled result."""
        self._cloud_backlog = (0, 0)
        self.first_result_s: float | None = None
        self._history: deque[tuple[float, int, int, int, int, int]] = deque(maxlen=1_000)

    def _from_start(self, cluster: Cluster, topics: list[str]) -> dict[Partition, int]:
        """Take what the compacted topics hold; where to go on reading them."""
        ends = cluster.end_offsets(topics)
        for record in cluster.read_all(topics):
            self._take(record, 0)
        return ends

    def poll(self, timeout_s: float) -> int:
        """Read what was committed; the number of records read."""
        records = [*self._edge.poll(timeout_s), *self._cloud.poll(0)]
        now_us = time.time_ns() // 1000
        for record in records:
            self._take(record, now_us)
        return len(records)

    def _take(self, record: Record, now_us: int) -> None:
        try:
            if record.topic() == self._topics.results:
                self._take_results(record.value(), now_us)
            elif record.topic() == self._topics.ledger:
                for mark in wire.decode_marks(record.value()).marks:
                    self.outcomes[mark.outcome] += mark.last_seq - mark.first_seq + 1
            else:
                self._take_position(record)
        except ForeignRecord:
            self.foreign += 1

    def _take_position(self, record: Record) -> None:
        """Of the newest epoch of a stream only: a new epoch within a watch is not expected."""
        if record.topic() == self._topics.positions:
            self._next_seqs[record.key()] = wire.decode_stream_position(record.value()).next_seq
        elif record.key() != OWNER_KEY:
            self._forwarded[record.topic()][record.key()] = wire.decode_forward_position(record.value())

    def _bytes(self, topic: str) -> int:
        return sum(position.bytes for position in self._forwarded[topic].values())

    def _take_results(self, value: bytes | None, now_us: int) -> None:
        for result in wire.decode_results(value).results:
            if self.first_result_s is None:
                self.first_result_s = time.monotonic()
            self.latencies_us[result.outcome].append(now_us - result.capture_us)
            if self._on_result is not None:
                self._on_result(result, now_us)

    @property
    def captured(self) -> int:
        """Items captured since the watch began."""
        return sum(self._next_seqs.values()) - self._captured_before

    @property
    def settled(self) -> int:
        """Items marked since the watch began."""
        return self.outcomes.total()

    def snapshot(self, *, cloud_away: bool = False) -> Snapshot:
        """How things stand. Asks both clusters for their groups' offsets; a cloud known to be away is not asked."""
        topics, (edge, cloud) = self._topics, self._both
        edge_left, edge_done = _backlog(edge, topics.edge_group, [topics.items])
        if not cloud_away:
            try:
                self._cloud_backlog = _backlog(cloud, CLOUD_GROUP, OFFLOADS)
            except BrokerError:
                cloud_away = True  # Away without notice: what is shown says so, and the next snapshot asks again.
        cloud_left, cloud_done = self._cloud_backlog
        uplink = self._sent(topics.up_positions)
        downlink = self._sent(topics.down_positions)
        settled = self.settled
        now_s = time.monotonic()
        self._history.append((now_s, settled, edge_done, cloud_done, uplink, downlink))
        settled_per_s, edge_per_s, cloud_per_s, up_per_s, down_per_s = self._rates()
        return Snapshot(
            at_s=now_s,
            captured=self.captured,
            settled=settled,
            outcomes=dict(self.outcomes),
            settled_per_s=settled_per_s,
            edge_backlog_s=_seconds(edge_left, edge_per_s),
            cloud_backlog_s=math.inf if cloud_away else _seconds(cloud_left, cloud_per_s),
            uplink_bytes_per_s=up_per_s,
            downlink_bytes_per_s=down_per_s,
            uplink_bytes=uplink,
            downlink_bytes=downlink,
        )

    def _rates(self) -> list[float]:
        newest = self._history[-1]
        while len(self._history) > 2 and newest[0] - self._history[1][0] >= RATE_WINDOW_S:
            self._history.popleft()
        oldest = self._history[0]
        span_s = newest[0] - oldest[0]
        if span_s <= 0:
            return [0.0] * (len(newest) - 1)
        return [(new - old) / span_s for new, old in zip(newest[1:], oldest[1:], strict=True)]

    def _sent(self, topic: str) -> int:
        return self._bytes(topic) - self._forwarded_before.get(topic, 0)

    def close(self) -> None:
        """Release the connections."""
        self._edge.close()
        self._cloud.close()


def _backlog(cluster: Cluster, group: str, topics: list[str]) -> tuple[int, int]:
    """Offsets not read yet, and offsets read. Transaction markers count too: one in 20 to 500."""
    ends = cluster.end_offsets(topics)
    commits = cluster.committed(group, topics)
    done = {partition: commits[partition].offset if partition in commits else 0 for partition in ends}
    left = sum(max(end - done[partition], 0) for partition, end in ends.items())
    return left, _total(done)


def _total(offsets: dict[Partition, int]) -> int:
    return sum(offsets.values())


def _seconds(left: int, per_s: float) -> float:
    """How long what is left takes at the present rate; nothing left is nothing, and no rate yet is unknown (inf)."""
    if left <= 0:
        return 0.0
    return left / per_s if per_s > 0 else math.inf
