"""Where producers and forwarders stand: compacted topics, JSON, written in the transaction of the work itself."""

import msgspec

from schemas.errors import ForeignRecord

__all__ = ["OWNER_KEY", "ForwardPosition", "Owner", "StreamPosition", "forward_key", "owner_id", "partition_of"]


class StreamPosition(msgspec.Struct, frozen=True):
    """In `<site>.positions`, keyed by stream: what the producer has captured. No position means a new epoch."""

    epoch: int
    next_seq: int
    source_position: int | str | None = None
    """Of the last item taken; None where none was."""


class ForwardPosition(msgspec.Struct, frozen=True):
    """In `<site>.up.positions` and `<site>.down.positions`, keyed `topic:partition` of the source."""

    next_offset: int
    records: int = 0
    """Forwarded so far."""
    bytes: int = 0
    """Of their keys, values and headers."""
    expired: int = 0
    """Records passed over because their deadline had gone by."""
    foreign: int = 0
    """Records passed over because they were not ours."""


class Owner(msgspec.Struct, frozen=True):
    """Who claimed a transactional id last: written before its first use, and the log's order decides.

    A forwarder's lies beside its positions, key `owner`; a producer's in `<site>.control`, key `producer.<slot>`.
    """

    instance: str
    """This life of a process, and no other."""
    since_us: int


OWNER_KEY = b"owner"


def owner_id(transactional_id: str) -> str:
    """The transactional id under which claims on `transactional_id` are written."""
    return f"{transactional_id}.owner"


def forward_key(topic: str, partition: int) -> bytes:
    """The key of a source partition's `ForwardPosition`."""
    return f"{topic}:{partition}".encode()


def partition_of(key: bytes) -> tuple[str, int]:
    """The source partition that a `forward_key` names. Raises `ForeignRecord` for another key."""
    topic, _, number = key.decode("utf-8", "replace").rpartition(":")
    if not topic or not number.isdecimal():
        raise ForeignRecord("the key names no partition")
    return topic, int(number)
