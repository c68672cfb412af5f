"""How far a partition is done when its records are settled out of order.

Constraints
- The commit offset never passes a record that is not settled, and everything before it is settled.
- What is settled beyond it survives a crash in the commit itself: no topic, table or file of its own.
- Kafka keeps at most 4,096 characters beside an offset (`offset.metadata.max.bytes`); we never use more than 4,000.

Format
The metadata is empty, or the base64 of a bitmap: bit i of its little-endian integer says that commit offset + i is
settled. `z:` before it says that zlib made it shorter, `b:` that it is the bitmap as it is. Offsets that hold no record
(Kafka's transaction markers) count as settled once a later record is seen. The bitmap of WINDOW_OFFSETS bits always
fits: 23,000 bits are 2,875 bytes, base64 makes 4 x ceil(2,875 / 3) = 3,836 characters of them, the prefix 3,838.

Operation
`see` each record in order, `settle` it any time later; `commit` says where to go on. A record WINDOW_OFFSETS or more
past the commit offset is refused until that moves. Each call costs a few operations on an integer of 3 KB.
"""

import base64
import zlib
from enum import Enum

from pipelines.errors import TidegateError
from pipelines.transport.base import Commit

WINDOW_OFFSETS = 23_000
"""From the commit offset to the last record taken, at most."""

METADATA_LIMIT = 4_000
"""Characters of a commit's metadata, at most."""

_PLAIN, _PACKED = "b:", "z:"


class Seen(Enum):
    """What a record is to its partition."""

    NEW = "new"
    SETTLED = "settled"
    """Settled before a restart, or seen already: nothing is to be done."""
    BEYOND = "beyond"
    """Too far past the commit offset: to be seen again when that has moved."""


class CommitPoint:
    """The commit offset of one partition, and what is settled beyond it."""

    def __init__(self, commit: Commit, window_offsets: int = WINDOW_OFFSETS) -> None:
        """Go on from `commit`. Raises `TidegateError` where its metadata is not ours."""
        if not 0 < window_offsets <= WINDOW_OFFSETS:
            raise ValueError(f"window_offsets is {window_offsets}: it must be between 1 and {WINDOW_OFFSETS}")
        self.offset = commit.offset
        """All before this is settled; what stands here is not, or was not seen yet."""
        self._next = commit.offset
        self._bits = _read(commit)
        self._window = window_offsets
        self._commit: Commit | None = commit

    def see(self, offset: int) -> Seen:
        """Take the record at `offset`; records come in order, with gaps where Kafka has its markers."""
        if offset < self._next:
            return Seen.SETTLED
        if self._next == self.offset:
            self._advance(offset - self.offset)
        if offset - self.offset >= self._window:
            return Seen.BEYOND
        # The gap needs no new commit: it is found again by whoever reads these records again.
        self._bits |= ((1 << (offset - self._next)) - 1) << (self._next - self.offset)
        self._next = offset + 1
        if not self.is_settled(offset):
            return Seen.NEW
        self._pass_settled()
        return Seen.SETTLED

    def settle(self, offset: int) -> None:
        """The record at `offset`, seen before, is done."""
        if not self.offset <= offset < self._next:
            raise ValueError(f"offset {offset} was not seen, or is settled already")
        self._bits |= 1 << (offset - self.offset)
        self._pass_settled()

    def is_settled(self, offset: int) -> bool:
        """Whether the record at `offset` is done, now or before a restart."""
        return offset < self.offset or bool(self._bits >> (offset - self.offset) & 1)

    def was_seen(self, offset: int) -> bool:
        """Whether reading has passed `offset`."""
        return offset < self._next

    def commit(self) -> Commit:
        """Where to go on after a crash."""
        if self._commit is None:
            self._commit = Commit(self.offset, _write(self._bits))
        return self._commit

    def _pass_settled(self) -> None:
        self._commit = None
        if self._bits & 1:
            self._advance((~self._bits & (self._bits + 1)).bit_length() - 1)

    def _advance(self, count: int) -> None:
        if count:
            self.offset += count
            self._next = max(self._next, self.offset)
            self._bits >>= count
            self._commit = None


def _write(bits: int) -> str:
    if not bits:
        return ""
    plain = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    packed = zlib.compress(plain, 1)
    prefix, shorter = (_PACKED, packed) if len(packed) < len(plain) else (_PLAIN, plain)
    return prefix + base64.b64encode(shorter).decode()


def _read(commit: Commit) -> int:
    if not commit.metadata:
        return 0
    prefix, text = commit.metadata[:2], commit.metadata[2:]
    try:
        raw = base64.b64decode(text, validate=True)
        if prefix == _PACKED:
            raw = zlib.decompressobj().decompress(raw, WINDOW_OFFSETS // 8)
        elif prefix != _PLAIN:
            raise ValueError(f"it begins with '{prefix}'")
    except (ValueError, zlib.error) as error:
        raise TidegateError(
            f"the commit at offset {commit.offset} has metadata that cannot be read ({error})",
            remedy="somebody else commits to this consumer group: set its offsets anew",
        ) from error
    return int.from_bytes(raw, "little")
