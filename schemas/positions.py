"""Where producers and forwarders stand: compacted topics, JSON, written in the transaction of the work itself."""

import msgspec

from schemas.errors import ForeignRecord

__all__ = ["OWNER_KEY", "ForwardPosition", "Owner", "StreamPosition", "forward_key", "partition_of"]


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
    """In the same topics under the key `owner`: the forwarder that took over last."""

    instance: str
    since_us: int


OWNER_KEY = b"owner"


def forward_key(topic: str, partition: int) -> bytes:
    """The key of a source partition's `ForwardPosition`."""
    return f"{topic}:{partition}".encode()


def partition_of(key: bytes) -> tuple[str, int]:
    """The source partition that a `forward_key` names. Raises `ForeignRecord` for another key."""
    topic, _, number = key.decode("utf-8", "replace").rpartition(":")
    if not topic or not number.isdecimal():
        raise ForeignRecord("the key names no partition")
    return topic, int(number)
