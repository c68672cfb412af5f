"""The audit: reads a site's account from its edge cluster, right while the pipeline runs.

Operation: one look
    positions ─▶ commits of the groups ─▶ wait until what they rest on is visible ─▶ marks and records ─▶ positions
    everything then goes to `pipelines.core.ledger.account`, which decides

Non-obvious: Kafka ends a transaction partition by partition. A group's commit can be seen while the mark of the same
transaction is not yet visible, and a captured position before its record. All of a transaction's records are in their
logs before it ends, though; so a look notes the high watermarks after what it relies on and goes on when the last
stable offsets have reached them.

Marks and positions are read once and then only from where the last look ended, so looking again is cheap.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pipelines.core.ledger import Epoch, Evidence, MarkBook, Sighting, Verdict, account
from pipelines.errors import ForeignRecord, TransportError, UnknownVersion
from pipelines.transport.base import Cluster, Commit, Partition, Record
from schemas import headers, wire
from schemas.headers import REASON
from schemas.topics import SiteTopics

__all__ = ["Auditor", "audit", "drain"]

DECIDED_S = 30.0
"""Longest wait for a transaction to end. Tidegate's own end within 3.3 s, whatever dies."""
DECIDED_POLL_S = 0.01
LOOK_AGAIN_S = (0.2, 2.0)
"""Shortest and longest pause between two looks of `drain`; in between, as long as the last look took."""


class Auditor:
    """Looks at one site as often as asked. `stop` ends its waits."""

    def __init__(self, cluster: Cluster, site: str, stop: threading.Event | None = None) -> None:
        self._cluster = cluster
        self._topics = SiteTopics(site)
        self._stop = stop or threading.Event()
        self._once = [self._topics.ledger, self._topics.dead_letters]
        self._next: dict[Partition, int] = {}
        self._positions: dict[Epoch, int] = {}
        self._marks = MarkBook()
        self._foreign_read: Counter[str] = Counter()
        self._commits: dict[Partition, Commit] = {}

    def look(self) -> Verdict:
        """Read the account as it is now. Raises `BrokerError`, `TransportError`."""
        topics = self._topics
        self._read_positions()
        before = dict(self._positions)
        self._commits = self._read_commits()
        found: dict[str, list[Sighting]] = {topic: [] for topic in (topics.items, *topics.uplinks)}
        foreign = self._read_marks_and_records(found)
        self._read_positions()
        stages = [{topics.items: found[topics.items]}, {topic: found[topic] for topic in topics.uplinks}]
        foreign += self._foreign_read
        return account(
            Evidence(
                before=before,
                stages=stages,
                marks=self._marks.marks(),
                after=self._positions,
                site=topics.site,
                foreign={name: foreign[name] for name in (*found, *self._once, topics.positions)},
                ledger_offsets_removed=sum(self._cluster.start_offsets([topics.ledger]).values()),
            )
        )

    def progressed(self) -> bool:
        """Whether a group went on since the last look: if none did, nothing in flight has ended."""
        return self._read_commits() != self._commits

    def _read_commits(self) -> dict[Partition, Commit]:
        topics = self._topics
        return {
            **self._cluster.committed(topics.edge_group, [topics.items]),
            **self._cluster.committed(topics.settler_group, topics.uplinks),
        }

    def _starts(self, names: Sequence[str], wanted: Mapping[Partition, int]) -> dict[Partition, int]:
        """Where to read from: as wanted, but never what retention has removed."""
        floors = self._cluster.start_offsets(names)
        return {partition: max(floor, wanted.get(partition, 0)) for partition, floor in floors.items()}

    def _read_positions(self) -> None:
        """Take in all positions written before this call."""
        name = self._topics.positions
        ends = wait_until_decided(self._cluster, [name], self._stop)
        for record in self._cluster.read_all([name], self._starts([name], self._next)):
            self._next[name, record.partition()] = record.offset() + 1
            if record.value() is not None:
                self._take(record, self._take_position)
        self._pass(ends)

    def _pass(self, ends: Mapping[Partition, int]) -> None:
        """Go on from `ends` at least next time: what lies after the last record is the marker of its transaction."""
        for partition, end in ends.items():
            self._next[partition] = max(end, self._next.get(partition, 0))

    def _read_marks_and_records(self, found: Mapping[str, list[Sighting]]) -> Counter[str]:
        """Fill `found` with the records in flight, by topic; the foreign records among those are returned."""
        names = [*found, *self._once]
        ends = wait_until_decided(self._cluster, names, self._stop)
        wanted = {**self._next, **{partition: commit.offset for partition, commit in self._commits.items()}}
        foreign: Counter[str] = Counter()
        for record in self._cluster.read_all(names, self._starts(names, wanted)):
            topic = record.topic()
            sightings = found.get(topic)
            if sightings is not None:
                try:
                    sightings.append(_sighting(record))
                except ForeignRecord:
                    foreign[topic] += 1
                continue
            self._next[topic, record.partition()] = record.offset() + 1
            if topic == self._topics.ledger:
                self._take(record, self._take_marks)
            else:
                self._foreign_read[topic] += (REASON, b"foreign") in (record.headers() or ())
        self._pass({partition: end for partition, end in ends.items() if partition[0] in self._once})
        return foreign

    def _take(self, record: Record, take: Callable[[Record], None]) -> None:
        try:
            take(record)
        except ForeignRecord:
            self._foreign_read[record.topic()] += 1

    def _take_position(self, record: Record) -> None:
        position = wire.decode_stream_position(record.value())
        try:
            key = ((record.key() or b"").decode(), position.epoch)
        except UnicodeDecodeError as error:
            raise ForeignRecord("a position without a stream") from error
        self._positions[key] = max(position.next_seq, self._positions.get(key, 0))

    def _take_marks(self, record: Record) -> None:
        marks = wire.decode_marks(record.value()).marks
        if any(not 0 <= mark.first_seq <= mark.last_seq for mark in marks):
            raise ForeignRecord("a mark of an impossible range")
        for mark in marks:
            count = mark.last_seq - mark.first_seq + 1
            self._marks.add(mark.stream, mark.epoch, mark.first_seq, count, mark.outcome, mark.reason)


def wait_until_decided(
    cluster: Cluster, names: Sequence[str], stop: threading.Event | None = None, again: str = "audit"
) -> dict[Partition, int]:
    """Return once all that was written to the topics before this call is visible or rolled back: up to where.

    Raises `TransportError` where that lasts; `again` says what to do then.
    """
    stop = stop or threading.Event()
    marks = cluster.end_offsets(names, stable=False)
    until_s = time.monotonic() + DECIDED_S
    while True:
        ends = cluster.end_offsets(names)
        open_partitions = [partition for partition, mark in marks.items() if ends[partition] < mark]
        if not open_partitions:
            return ends
        if time.monotonic() > until_s or stop.wait(DECIDED_POLL_S):
            topic, number = open_partitions[0]
            raise TransportError(
                f"a transaction on {topic}[{number}] has not ended", remedy=f"{again} again when its writer has"
            )


def _sighting(record: Record) -> Sighting:
    try:
        header = headers.find(record.headers())
    except UnknownVersion as error:
        return error.account[1:]
    return header.stream, header.epoch, header.first_seq, header.count


def audit(cluster: Cluster, site: str) -> Verdict:
    """The account of `site`, whose edge cluster is `cluster`. Raises `BrokerError`, `TransportError`."""
    return Auditor(cluster, site).look()


def drain(
    cluster: Cluster,
    site: str,
    timeout_s: float,
    stop: threading.Event | None = None,
    progress: Callable[[Verdict], None] | None = None,
) -> Verdict:
    """Audit until nothing is in flight, `timeout_s` is over or `stop` is set; the last verdict.

    `progress` is told each verdict. Raises `BrokerError`, `TransportError`.
    """
    stop = stop or threading.Event()
    auditor = Auditor(cluster, site, stop)
    until_s = time.monotonic() + timeout_s
    while True:
        began_s = time.monotonic()
        verdict = auditor.look()
        if progress is not None:
            progress(verdict)
        shortest_s, longest_s = LOOK_AGAIN_S
        pause_s = min(max(time.monotonic() - began_s, shortest_s), longest_s)
        if not verdict.in_flight_items or not _wait_for_progress(auditor, stop, pause_s, until_s):
            return verdict


def _wait_for_progress(auditor: Auditor, stop: threading.Event, pause_s: float, until_s: float) -> bool:
    """Wait until a group went on; False when the time is over or `stop` is set."""
    while (left_s := until_s - time.monotonic()) > 0:
        if stop.wait(min(pause_s, left_s)):
            return False
        if auditor.progressed():
            return True
    return False
