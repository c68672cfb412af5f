"""The interface between Tidegate and a log: what the shells may ask of Kafka, and what each call promises.

Constraints
- Records are read `read_committed`, in order within a partition.
- `Transactions.write` is all or nothing: records, and the group offsets given with them, appear together or never.
- A writer with the same transactional id fences every earlier one; what the earlier one had open is rolled back.
- A refusal is typed. `Aborted`: nothing was written, go back to what is committed. `Fenced`: somebody else took over.
- `GroupReader.poll` never waits longer than it was told, and calls the listener only from within `poll` and `close`.

`kafka.py` implements it with confluent-kafka. A record is whatever the client gives, as long as it has the methods of
`Record`: copying each into an object of ours would cost about 1 us of the 27 that an item takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from pipelines.core.lag import Member
from pipelines.core.topic_plan import FoundTopic, WantedTopic
from pipelines.errors import TransportError
from pipelines.transport.storage import Storage
from schemas.headers import RecordHeaders
from schemas.topics import TopicSpec

__all__ = ["OutRecord", "Partition", "Record"]

Partition = tuple[str, int]
"""Topic and partition number."""

Compression = Literal["none", "zstd"]
"""Of record batches. Media are compressed already and take `none`."""


class Aborted(TransportError):
    """A transaction was rolled back: nothing of it was written. Go back to the committed offsets and do it again."""


class Disconnected(TransportError):
    """A reader's cluster was gone and nothing has come since: it may never recover. Close it and make a new one."""


class OutOfRange(TransportError):
    """The log starts after the position of a reader: retention removed records that nobody had read."""


class Record(Protocol):
    """A record as read. Methods, not attributes: the Kafka client's own messages satisfy it as they are."""

    def topic(self) -> str:
        """Its topic."""
        ...

    def partition(self) -> int:
        """Its partition number."""
        ...

    def offset(self) -> int:
        """Its offset in the partition."""
        ...

    def key(self) -> bytes | None:
        """Its key: the stream, for records that carry items."""
        ...

    def value(self) -> bytes | None:
        """Its payload."""
        ...

    def headers(self) -> RecordHeaders | None:
        """Its headers, None where it has none."""
        ...

    def timestamp(self) -> tuple[int, int]:
        """Its kind, and milliseconds since the Unix epoch."""
        ...


class OutRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to be written. `partition` -1 leaves the choice to the key (murmur2, as Java's producer has it)."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int = -1
    headers: list[tuple[str, str | bytes | None]] | None = None

    @property
    def size_bytes(self) -> int:
        """Of key, value and headers."""
        size = len(self.key or b"") + len(self.value or b"")
        for name, content in self.headers or ():
            size += len(name) + len(content or b"")
        return size


def total_bytes(records: Sequence[OutRecord]) -> int:
    """`size_bytes` of them all, without a call for each: they may come by the hundred thousand a second."""
    size = sum([len(record.value) for record in records if record.value])
    size += sum([len(record.key) for record in records if record.key])
    for record in records:
        if record.headers:
            for name, content in record.headers:
                size += len(name) + len(content or b"")
    return size


class Commit(msgspec.Struct, frozen=True, gc=False):
    """Where a group goes on reading a partition, with up to 4,000 characters that the group keeps beside it."""

    offset: int
    metadata: str = ""


class RebalanceListener(Protocol):
    """Told about partitions that come and go. Called only from within `GroupReader.poll` and `close`."""

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """These are ours now, from these commits on."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """These go to somebody else once this returns: the last moment to commit work done on them."""
        ...

    def lost(self, partitions: Sequence[Partition]) -> None:
        """These are somebody else's already: work not committed must be dropped."""
        ...


class GroupReader(Protocol):
    """A member of a consumer group."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to `max_records`, waiting up to `timeout_s` for the first.

        Raises `OutOfRange`, `Disconnected`, `TransportError`.
        """
        ...

    @property
    def has_unread(self) -> bool:
        """Whether its client knew of records that it had not handed out, a few seconds ago."""
        ...

    def rewind(self) -> dict[Partition, Commit]:
        """Go back to the committed offsets on every partition held, and say what they are."""
        ...

    def flow(self, pause: Sequence[Partition], resume: Sequence[Partition]) -> None:
        """Read no more of some partitions, and on of others. What was prefetched of the former is fetched again."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...

    def abandon(self) -> None:
        """Leave the group without waiting for a cluster that may not answer; the listener is told nothing more."""
        ...


class Reader(Protocol):
    """Reads partitions that it was given, outside any group."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """As `GroupReader.poll`."""
        ...

    def close(self) -> None:
        """Release its connections."""
        ...


class Transactions(Protocol):
    """Writes atomically under one transactional id."""

    def start(self) -> None:
        """Fence every earlier holder of the id and roll back what it had open. Raises `TransportError`, `Fenced`."""
        ...

    def write(
        self,
        records: Iterable[OutRecord],
        offsets: Mapping[Partition, Commit] | None = None,
        group: GroupReader | None = None,
    ) -> None:
        """One transaction: the records, and where `group` goes on. Raises `Aborted` or `Fenced`."""
        ...

    def close(self) -> None:
        """Release its connections."""
        ...


class Known(NamedTuple):
    """What a cluster's metadata says."""

    brokers: int
    partitions: dict[str, int]
    """How many, by topic."""


class Look(Protocol):
    """Asks one cluster how its groups stand, joining none. For one thread.

    Each call waits `timeout_s` at most, as the look was made with, and raises `BrokerError` where no answer came.
    """

    def known(self) -> Known:
        """Brokers and topics."""
        ...

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """The last stable offset and the high watermark of each."""
        ...

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, Commit]:
        """Where the group stands; partitions without a commit are left out."""
        ...

    def members(self, groups: Sequence[str]) -> dict[str, list[Member]]:
        """The members of each group, and what they hold at this moment."""
        ...

    def retentions(self, topics: Sequence[str]) -> dict[str, float]:
        """How long each topic keeps a record at the least, seconds; infinite where age removes none.

        Topics whose settings our login may not see are left out.
        """
        ...

    def records_at(self, starts: Mapping[Partition, int]) -> dict[Partition, Record | None]:
        """The first committed record at or after each offset; None where there is none up to the end.

        Partitions that gave no answer in time are left out.
        """
        ...

    def follow(self, ends: Mapping[Partition, int]) -> Iterable[Record]:
        """Records of these partitions up to `ends`, from where the call before ended, at first from the log start.

        It ends early when the time is over: see `followed`.
        """
        ...

    def followed(self, partition: Partition) -> int:
        """The offset that `follow` goes on at."""
        ...

    def renew(self) -> None:
        """Begin with new connections: a client that lost its cluster may never recover."""
        ...

    def close(self) -> None:
        """Release its connections."""
        ...


class Cluster(Protocol):
    """One Kafka cluster."""

    def group_reader(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, name: str = ""
    ) -> GroupReader:
        """A new member of `group`, known to others as `name` (its `client.id`)."""
        ...

    def reader(self, starts: Mapping[Partition, int], max_bytes: int = ...) -> Reader:
        """A reader of the partitions given, from the offsets given; at most `max_bytes` wait in the client."""
        ...

    def transactions(self, transactional_id: str, compression: Compression = ...) -> Transactions:
        """A writer; call its `start` before its first `write`."""
        ...

    def partitions(self, topics: Sequence[str]) -> list[Partition]:
        """All partitions of the topics. Raises `BrokerError` naming a topic that is not there."""
        ...

    def end_offsets(self, topics: Sequence[str], *, stable: bool = True) -> dict[Partition, int]:
        """The last stable offsets: all before them is committed or rolled back. Not `stable`: the high watermarks."""
        ...

    def start_offsets(self, topics: Sequence[str]) -> dict[Partition, int]:
        """The log start offsets."""
        ...

    def committed(self, group: str, topics: Sequence[str]) -> dict[Partition, Commit]:
        """Where the group stands; partitions without a commit are left out."""
        ...

    def assigned_partitions(self, group: str) -> int:
        """How many partitions the members of `group` hold at this moment."""
        ...

    def look(self, timeout_s: float = ...) -> Look:
        """A look at its groups from outside, each of whose calls takes `timeout_s` at most."""
        ...

    def read_all(self, topics: Sequence[str], starts: Mapping[Partition, int] | None = None) -> Iterable[Record]:
        """Every record from `starts` (else the log start) to the ends at the call; all committed before is included."""
        ...

    def create_topics(self, specs: Sequence[TopicSpec], partitions: int, retention_ms: int) -> list[str]:
        """Create those that are missing; the names of the created. Raises `BrokerError` where one cannot be."""
        ...

    def topics(self, names: Sequence[str]) -> dict[str, FoundTopic]:
        """Partitions, copies and settings of those that are there."""
        ...

    def topic_names(self) -> list[str]:
        """Of all topics of the cluster."""
        ...

    def broker_configs(self) -> dict[int, dict[str, str]]:
        """Settings of each broker that answers, by its number; empty settings where we may not see them."""
        ...

    def storage(self) -> Storage:
        """Where its brokers keep their data. Raises `BrokerError`."""
        ...

    def offsets_at(self, partitions: Sequence[Partition], at_ms: int) -> dict[Partition, int | None]:
        """The first offset with a timestamp of `at_ms` (milliseconds since 1970) or later; None: none is."""
        ...

    def create(self, wanted: Sequence[WantedTopic]) -> list[str]:
        """Create these, and wait for their leaders; the names of those that nobody else created meanwhile."""
        ...

    def alter_topics(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        """Set these settings of topics, and leave all others. Raises `BrokerError` where one is refused."""
        ...

    def write_first_positions(self, group: str, topics: Sequence[str]) -> None:
        """Commit offset 0 for every partition of the topics that the group has no position on."""
        ...

    def close(self) -> None:
        """Release its connections."""
        ...
