"""What a worker does next: the pure state machine under both worker kinds. Events in, instructions out.

Constraints
- Pure: time is an argument, microseconds on one clock that never goes back. Nothing here touches Kafka or a model.
- What was made of records, and the offsets behind them, are written together or not at all. After any refusal all that
  was read and made since the last commit is forgotten, and the worker goes back to what is committed.
- One instruction at a time is carried out, and answered by one event. Whoever carries them out hands in all that has
  happened meanwhile before it asks for the next: nothing is written for a partition that is somebody else's already.
  Only `GoBack` is answered later: what was read before its `WentBack` is dropped, whenever it arrives.
- A failing item is found (`Batches`) and buried alone. Where nothing but burials succeeds any more, the fault is not
  the items': the worker ends.
- Every wait, batch and row of failures is bounded by `EngineLimits`.

Operation
    Fetched ─▶ waiting ─▶ Process ─▶ Processed ─▶ pending ─▶ Write ─▶ Written
                 ▲           │ Failed: halves ─▶ ... ─▶ Bury           │
                 │           ▼                                         ▼
                 └── WentBack ◀── GoBack, after a wait ◀── Refused, Lost: all is forgotten
    Revoking ─▶ Write what is pending ─▶ Release
    Stop     ─▶ Write what is pending ─▶ End
"""

from collections.abc import Mapping, Sequence

import msgspec

from pipelines.core.batches import Batches, BatchLimits
from pipelines.transport.base import Commit, OutRecord, Partition, Record

FAR_US = 1 << 62
"""Stands for never."""


class EngineLimits(msgspec.Struct, frozen=True):
    """How much a worker does at a time, and how long it tries."""

    commit_interval_us: int = 50_000
    batch_records: int = 500
    batch_budget_us: int = 250_000
    linger_us: int = 0
    """These three: see `BatchLimits`."""
    pending_records: int = 20_000
    """Made, waiting for the commit."""
    pending_bytes: int = 8 << 20
    """At 70 MB/s and more a commit of 8 MiB stays under 120 ms."""
    tick_us: int = 10_000
    retry_first_us: int = 100_000
    retry_most_us: int = 2_000_000
    retries: int = 60
    """In a row, without a success between; waits double up to `retry_most_us`. Two minutes, then the worker ends with
    the error and its supervisor starts it anew."""
    rejoin_every: int = 2
    """Failures in a row after which the group is joined anew: a client can lose its coordinator for good."""
    burials: int = 100
    """In a row."""


# What has happened.


class Fetched(msgspec.Struct, frozen=True):
    """These were read, in order within each partition."""

    records: Sequence[Record]


class Processed(msgspec.Struct, frozen=True):
    """A `Process`, `Bury` or `Tick` was done: `records` are to be written, together with `offsets`."""

    records: Sequence[OutRecord] = ()
    offsets: Mapping[Partition, Commit] = {}
    size_bytes: int = 0
    """Of the records."""
    took_us: int = 0


class Failed(msgspec.Struct, frozen=True):
    """A `Process` failed, for a reason that may lie in its items."""

    error: Exception


class Written(msgspec.Struct, frozen=True):
    """A `Write` was done."""


class Refused(msgspec.Struct, frozen=True):
    """An instruction, or reading, failed for a reason that lies in no item."""

    error: Exception
    disconnected: bool = False
    """The reader is of no use any more."""
    final: bool = False
    """To try again is of no use."""


class WentBack(msgspec.Struct, frozen=True):
    """The `GoBack` of this number was done."""

    number: int


class Revoking(msgspec.Struct, frozen=True):
    """These partitions are asked back, and wait for their `Release`."""

    partitions: Sequence[Partition]


class Lost(msgspec.Struct, frozen=True):
    """These partitions are somebody else's already."""

    partitions: Sequence[Partition]


class Stop(msgspec.Struct, frozen=True):
    """Write what is pending, and end."""


Event = Fetched | Processed | Failed | Written | Refused | WentBack | Revoking | Lost | Stop


# What is to be done.


class Process(msgspec.Struct, frozen=True):
    """Make something of these."""

    records: Sequence[Record]


class Bury(msgspec.Struct, frozen=True):
    """Dead-letter this one: it failed by itself."""

    record: Record
    error: Exception


class Tick(msgspec.Struct, frozen=True):
    """Do what is due by the clock."""


class Write(msgspec.Struct, frozen=True):
    """Write these, and where the group goes on, in one transaction."""

    records: Sequence[OutRecord]
    offsets: Mapping[Partition, Commit]
    size_bytes: int
    """Of the records."""


class GoBack(msgspec.Struct, frozen=True):
    """Let the coordinator decide what became of an open transaction, then read on from what is committed."""

    number: int
    """A refusal may come before the answer, and another be asked for: what lies between their answers is read twice."""
    rejoin: bool = False
    """As a new member of the group."""


class Release(msgspec.Struct, frozen=True):
    """These partitions may go."""

    partitions: Sequence[Partition]


class End(msgspec.Struct, frozen=True):
    """It is over; with `error` where it is not as wished."""

    error: Exception | None = None


Instruction = Process | Bury | Tick | Write | GoBack | Release | End


class Engine:
    """Decides for one worker."""

    def __init__(self, limits: EngineLimits | None = None, *, isolates: bool = False) -> None:
        """`isolates`: the stage keeps nothing between batches, so that a part of one can be done again alone."""
        self._limits = given = limits or EngineLimits()
        self._isolates = isolates
        self.batches = Batches(BatchLimits(given.batch_records, given.batch_budget_us, given.linger_us))
        self._bury: Bury | None = None
        self._burials = 0
        self._records: list[OutRecord] = []
        self._offsets: dict[Partition, Commit] = {}
        self._pending_bytes = self._pending_since_us = 0
        self._tick_at_us = 0
        self._releasing: list[Partition] = []
        self._back_at_us: int | None = None
        self._asked_back = self._rejoin = self._stopping = False
        self._went = 0
        """The number of the last `GoBack`."""
        self._ended: End | None = None
        self.failures = 0
        """In a row."""

    @property
    def has_pending(self) -> bool:
        """Whether something was made that is not written."""
        return bool(self._records or self._offsets)

    @property
    def is_releasing(self) -> bool:
        """Whether somebody waits for partitions to go; at the end all go."""
        return bool(self._releasing) and self._ended is None

    def wait_us(self) -> int:
        """Of the last failure: twice as long each time in a row."""
        limits = self._limits
        return int(min(limits.retry_first_us * 2 ** min(max(self.failures - 1, 0), 20), limits.retry_most_us))

    def handle(self, event: Event, now_us: int) -> None:
        """Take note of what has happened."""
        match event:
            case Fetched():
                if self._back_at_us is None:
                    self.batches.add(event.records, now_us)
            case Processed():
                self._processed(event, now_us)
            case Failed():
                self._failed(event, now_us)
            case Written():
                self.failures = 0
                self._forget_pending()
            case Refused():
                self._refused(event, now_us)
            case WentBack():
                if event.number == self._went:
                    self._back_at_us, self._asked_back, self._rejoin = None, False, False
            case Revoking():
                self._releasing += event.partitions
                self._drop(set(event.partitions))
            case Lost():
                self._releasing += event.partitions
                self._forget_all()
                if self._back_at_us is None:
                    self._back_at_us = now_us  # What stays with us was read past its commits.
            case Stop():
                self._stopping = True

    def next(self, now_us: int) -> Instruction | None:
        """What is to be done now; None: nothing before `due_us`, or before something happens."""
        if self._ended is not None:
            return self._ended
        if self._releasing and not self.has_pending:
            partitions, self._releasing = self._releasing, []
            return Release(partitions)
        if self._back_at_us is not None:
            if self._stopping:
                return End()
            if self._asked_back or now_us < self._back_at_us:
                return None
            self._asked_back = True
            self._went += 1
            return GoBack(self._went, self._rejoin)
        if self.has_pending and (self._stopping or self._releasing or now_us >= self._write_at_us):
            return Write(self._records, self._offsets, self._pending_bytes)
        if self._stopping:
            return End()
        if self._bury is not None:
            return self._bury
        if now_us >= self._tick_at_us:
            self._tick_at_us = now_us + self._limits.tick_us
            return Tick()
        due_us = self.batches.due_us()
        return None if due_us is None or now_us < due_us else Process(self.batches.take(now_us))

    def due_us(self) -> int:
        """When `next` has something at the latest, if nothing happens; 0 where it has now."""
        if self._ended or self._releasing or self._stopping or self._bury:
            return 0
        if self._back_at_us is not None:
            return FAR_US if self._asked_back else self._back_at_us
        batch_at_us = self.batches.due_us()
        due_us = self._tick_at_us if batch_at_us is None else min(self._tick_at_us, batch_at_us)
        return min(due_us, self._write_at_us) if self.has_pending else due_us

    @property
    def _write_at_us(self) -> int:
        limits = self._limits
        if len(self._records) >= limits.pending_records or self._pending_bytes >= limits.pending_bytes:
            return 0
        return self._pending_since_us + limits.commit_interval_us

    def _processed(self, event: Processed, now_us: int) -> None:
        if self._bury is not None:
            self._bury = None
            self._burials += 1
        elif self.batches.doing:
            self.batches.done(event.took_us, now_us)
            self._burials = 0
        if event.records or event.offsets:
            if not self.has_pending:
                self._pending_since_us = now_us
            self._records.extend(event.records)
            self._offsets.update(event.offsets)
            self._pending_bytes += event.size_bytes

    def _failed(self, event: Failed, now_us: int) -> None:
        if not self._isolates or not self.batches.doing:
            self._refused(Refused(event.error), now_us)
            return
        found = self.batches.failed()
        if found is None:
            return
        if self._burials >= self._limits.burials:
            self._ended = End(event.error)
        self._bury = Bury(found, event.error)

    def _refused(self, event: Refused, now_us: int) -> None:
        self.failures += 1
        self._forget_all()
        if event.final or self.failures > self._limits.retries:
            self._ended = End(event.error)
            return
        self._back_at_us, self._asked_back = now_us + self.wait_us(), False
        if event.disconnected or self.failures % self._limits.rejoin_every == 0:
            self._rejoin = True

    def _drop(self, partitions: set[Partition]) -> None:
        self.batches.drop(partitions)
        if self._bury is not None and (self._bury.record.topic(), self._bury.record.partition()) in partitions:
            self._bury = None

    def _forget_pending(self) -> None:
        self._records, self._offsets, self._pending_bytes = [], {}, 0

    def _forget_all(self) -> None:
        self._forget_pending()
        self.batches.clear()
        self._bury = None
