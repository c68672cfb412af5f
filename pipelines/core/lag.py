"""How far a group is behind, partition by partition: in seconds, and why.

Pure: whoever samples hands in what it saw; `LagBook` keeps a short window of it per partition and says how it stands.
"""

from enum import StrEnum

import msgspec

from schemas.topics import Tier


class State(StrEnum):
    """How a partition, a group or a pipeline stands. Listed from good to bad: the worst of its parts is a whole's."""

    OK = "ok"
    """Nothing waits, or what waits is gone within the window."""
    SLOW = "slow"
    """Work is done, and more comes in than goes out."""
    BLOCKED = "blocked"
    """Records are there that no reader may see yet: a transaction is open."""
    STALLED = "stalled"
    """Somebody owns the partition, records wait, and nothing was done for the whole window."""
    STOPPED = "stopped"
    """Records wait and nobody owns the partition."""


class Sample(msgspec.Struct, frozen=True):
    """What was seen of one partition of one group at one moment."""

    at_us: int
    committed: int
    """The offset that the group goes on at."""
    end: int
    """The last stable offset: what a read_committed reader may see ends before it."""
    high: int
    """The high watermark; beyond `end` lie open transactions."""
    oldest_us: int | None
    """When the oldest unprocessed item was captured (without a header: the record's timestamp). None: nothing waits."""
    owner: str = ""
    """The worker that holds the partition; "" where nobody does."""
    record_us: float | None = None
    """Time that the owner spends on one record, as it says itself (see `core.work`)."""
    capacity_per_s: float | None = None
    """Records a second that the owner could do, as it says itself."""


class PartitionLag(msgspec.Struct, frozen=True):
    """How one partition of one group stands."""

    topic: str
    partition: int
    owner: str
    committed: int
    end: int
    lag_records: int
    """Offsets, so transaction markers count too: one in 20 to 500."""
    seconds_behind: float
    """Age of the oldest unprocessed item; 0 where nothing waits."""
    in_per_s: float
    out_per_s: float
    drain_s: float | None
    """Until nothing waits at the present rates; None: never."""
    state: State
    capacity_per_s: float | None = None
    hot: bool = False
    """Takes in far more than the mean of its topic's partitions."""


class Member(msgspec.Struct, frozen=True):
    """A member of a group."""

    name: str
    """The worker's own name (`client.id`)."""
    host: str
    partitions: list[tuple[str, int]]


class GroupLag(msgspec.Struct, frozen=True):
    """How one group (or one forwarder, which reads outside any group) stands."""

    kind: str
    """Of worker: edge, settle, uplink, downlink, cloud, aggregate."""
    group: str
    tier: Tier
    """Of the cluster that it reads from."""
    members: list[Member]
    partitions: list[PartitionLag]
    lag_records: int
    seconds_behind: float
    """Of the partition that is furthest behind."""
    in_per_s: float
    out_per_s: float
    drain_s: float | None
    state: State
