"""A group's member: the client that `transport/kafka_read.py` wraps, over a simulated network.

Its heartbeats go on while a callback waits, as the real client's do. What the group asks for is carried out within
`poll`, one change at a time; until it is done, heartbeats tell nothing of what is owned.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

from pipelines.errors import TransportError
from pipelines.sim.clock import Host, Signal, Wait
from pipelines.sim.group import Group, Reply, UnknownMember
from pipelines.sim.kafka import Kafka
from pipelines.sim.link import REQUEST_MOST_US, Away, Link
from pipelines.transport.base import Commit, Disconnected, Partition, Record

HEARTBEAT_US = 300_000


class SimRecord:
    """A record as read."""

    __slots__ = ("_key", "_offset", "_partition", "_value")

    def __init__(self, partition: Partition, offset: int, key: bytes | None, value: bytes) -> None:
        self._partition, self._offset, self._key, self._value = partition, offset, key, value

    def topic(self) -> str:
        """Its topic."""
        return self._partition[0]

    def partition(self) -> int:
        """Its partition number."""
        return self._partition[1]

    def offset(self) -> int:
        """Its offset in the partition."""
        return self._offset

    def key(self) -> bytes | None:
        """Its key."""
        return self._key

    def value(self) -> bytes | None:
        """Its payload."""
        return self._value

    def headers(self) -> None:
        """None: it has none."""
        return

    def timestamp(self) -> tuple[int, int]:
        """Nothing asks."""
        return 0, 0


class Listener(Protocol):
    """As `RebalanceListener`, in virtual time."""

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """These are ours now, from these commits on."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> Generator[Wait, None, None]:
        """These go to somebody else once this returns."""
        ...

    def lost(self, partitions: Sequence[Partition]) -> None:
        """These are somebody else's already."""
        ...


class Reader:
    """A member of the group, from its making until `leave` or `abandon`."""

    def __init__(self, kafka: Kafka, group: Group, link: Link, host: Host, listener: Listener, name: str) -> None:
        self._kafka, self._group, self._link, self._listener, self.name = kafka, group, link, listener, name
        self.membership = (name, -1)
        """As of the last poll, for a commit from whatever thread."""
        self.positions: dict[Partition, int] = {}
        self.failure: TransportError | None = None
        """Raised by the next poll."""
        self._paused: set[Partition] = set()
        self._epoch = 0
        self._change: tuple[str, list[Partition]] | None = None
        self._closed = False
        self._acknowledge = Signal(link.clock)
        self._turn = 0
        link.clock.spawn(host, self._live())

    def poll(self, most: int, wait_us: int) -> Generator[Wait, None, list[Record]]:
        """Up to `most` records. Raises `TransportError`."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        yield from self._carry_out()
        records = self._fetched(most)
        if not records and wait_us and self._change is None:
            yield wait_us, self._kafka.written
            yield from self._carry_out()
            records = self._fetched(most)
        self.membership = (self.name, self._epoch)
        return records

    def rewind(self) -> Generator[Wait, None, dict[Partition, Commit]]:
        """Go back to what is committed on every partition held, and say what it is. Raises `TransportError`."""
        commits = yield from self._committed(sorted(self.positions))
        self.positions.update({partition: commit.offset for partition, commit in commits.items()})
        return commits

    def flow(self, pause: Sequence[Partition], resume: Sequence[Partition]) -> None:
        """Read no more of some, and on of others."""
        self._paused.update(pause)
        self._paused.difference_update(resume)

    def abandon(self) -> None:
        """Be a member no more. The group may hear of it, or not."""
        self._closed = True
        if not self._link.is_cut:
            self._group.leave(self.name)

    def _fetched(self, most: int) -> list[Record]:
        if self._link.is_cut:
            return []
        partitions = [one for one in sorted(self.positions) if one not in self._paused]
        self._turn += 1
        records: list[Record] = []
        for number in range(len(partitions)):
            partition = partitions[(number + self._turn) % len(partitions)]
            log = self._kafka.log(partition)
            for offset, entry in log.visible(self.positions[partition], most - len(records)):
                records.append(SimRecord(partition, offset, entry.key, entry.value or b""))
                self.positions[partition] = offset + 1
        return records

    def _committed(self, partitions: Sequence[Partition]) -> Generator[Wait, None, dict[Partition, Commit]]:
        until_us = self._link.clock.now_us + REQUEST_MOST_US
        try:
            while (commits := (yield from self._link.call(lambda: self._group.positions(partitions)))) is None:
                if self._link.clock.now_us >= until_us:
                    raise Away
                yield 20_000, self._group.decided
        except Away:
            raise TransportError("cannot read the committed offsets") from None
        return commits

    def _carry_out(self) -> Generator[Wait, None, None]:
        """What the group asked for."""
        while self._change is not None and not self._closed:
            kind, partitions = change = self._change
            if kind == "assign":
                try:
                    commits = yield from self._committed(partitions)
                except TransportError as error:
                    raise Disconnected(str(error)) from error
                self.positions.update({partition: commit.offset for partition, commit in commits.items()})
                self._paused.difference_update(partitions)
                self.membership = (self.name, self._epoch)
                self._listener.assigned(commits)
            elif kind == "revoke":
                yield from self._listener.revoked(partitions)
                self._forget(partitions)
            else:
                if gone := sorted(self.positions):
                    self._listener.lost(gone)
                self._forget(gone)
                self._epoch = 0
            if self._change is change:  # Else it was lost meanwhile.
                self._change = None
            self._acknowledge.notify()

    def _forget(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self.positions.pop(partition, None)
            self._paused.discard(partition)

    def _live(self) -> Generator[Wait, None, None]:
        """Heartbeats."""
        while not self._closed:
            if self._epoch >= 0:
                owned = frozenset(self.positions) if self._change is None else None
                try:
                    reply = yield from self._link.call(lambda owned=owned: self._beat(owned))  # type: ignore[misc]
                except Away:
                    pass
                except UnknownMember:
                    self._epoch = -1
                    self._change = ("lost", [])
                    self._kafka.written.notify()
                else:
                    self._take(reply)
            yield HEARTBEAT_US, self._acknowledge

    def _beat(self, owned: frozenset[Partition] | None) -> Reply:
        if self._closed:
            raise Away
        return self._group.heartbeat(self.name, self._epoch, owned)

    def _take(self, reply: Reply) -> None:
        self._epoch = reply.epoch
        if self._change is not None:
            return
        held = set(self.positions)
        if gone := held - reply.partitions:
            self._change = ("revoke", sorted(gone))
        elif new := reply.partitions - held:
            self._change = ("assign", sorted(new))
        if self._change is not None:
            self._kafka.written.notify()
