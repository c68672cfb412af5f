"""The poll thread: reads for a worker while its other thread is busy, however long a model takes.

Constraints
- The client is polled at least every `POLL_S`, so that rebalances are heard and no member is thought dead. The one
  exception is a partition that is asked back: the client waits, within its callback, until what was made of it is
  written (`RELEASE_MOST_S`), for afterwards it is somebody else's.
- All that happens goes into one queue, in the order in which it happened: what lies behind `Rewound` was read after it.
- What is held is bounded by `Credit`; a partition beyond its share is paused alone.
- The client is used by this thread only, but for the group's metadata in a commit, which may be asked from any.

Operation
    commands ─▶ pause, resume ─▶ GroupReader.poll ─▶ inbox: Assigned, Fetched, Revoking, Lost, Refused, Rewound
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from pipelines.core.credit import Credit, CreditLimits
from pipelines.core.engine import Event, Fetched, Lost, Refused, Revoking
from pipelines.errors import BrokerError, TransportError
from pipelines.transport.base import Commit, Disconnected, GroupReader, OutOfRange, Partition, RebalanceListener, Record

log = structlog.get_logger("tidegate.stage")

POLL_S = 0.1
"""Longest wait of one poll: how late a command may be carried out where no records come."""

RELEASE_MOST_S = 60.0
"""Longer than a batch and a commit may take together (15 s, 30 s); the group itself would wait for five minutes."""


class Assigned(msgspec.Struct, frozen=True):
    """These partitions are read from now on, from these commits."""

    commits: Mapping[Partition, Commit]


class Rewound(msgspec.Struct, frozen=True):
    """What is read from now on comes from these commits. `number` is that of the `GoBack` that it answers."""

    commits: Mapping[Partition, Commit]
    number: int


Heard = Event | Assigned | Rewound


class Fetcher:
    """Reads for one worker. `join` makes a member of its group."""

    def __init__(
        self,
        join: Callable[[RebalanceListener], GroupReader],
        *,
        poll_records: int,
        limits: CreditLimits | None = None,
    ) -> None:
        self.inbox: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._join = join
        self._poll_records = poll_records
        self._credit = Credit(limits)
        self._lock = threading.Lock()
        """Of the credit: both threads use it."""
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._held: set[Partition] = set()
        self.losses = 0
        """How often partitions were lost. Who has not heard of each must not write: its member's epoch is a new one."""
        self._halted = False
        self._closing = threading.Event()
        self._room = threading.Event()
        self._released = threading.Event()
        self.reader = join(self)
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Leave the group."""
        self._closing.set()
        self._released.set()
        self._commands.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join()
        self.reader.close()

    # From the worker's thread

    def done(self, count: int) -> None:
        """So many more records are done, in the order of reading."""
        with self._lock:
            self._credit.done(count)
            if self._credit.has_room:
                self._room.set()

    def release(self, partitions: Sequence[Partition]) -> None:
        """These may go."""
        with self._lock:
            # What was lost may be ours again already, and be read.
            self._credit.revoked(set(partitions) - self._held)
        self._released.set()

    def go_back(self, number: int, *, rejoin: bool) -> None:
        """Read on from what is committed; `Rewound` is in the inbox where that begins, or `Refused`."""
        self._commands.put(lambda: self._begin_anew(number) if rejoin else self._rewind(number))

    # From the poll thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                # Halted, there is nothing to be read until the worker has gone back.
                while self._halted or not self._commands.empty():
                    self._commands.get()()
                    if self._closing.is_set():
                        return
                records = self._read()
            except OutOfRange as error:
                self._halt(Refused(error, final=True))
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker's thread must hear of it, or it waits for ever
                known = isinstance(error, (TransportError, BrokerError))
                self._halt(Refused(error, disconnected=isinstance(error, Disconnected), final=not known))
            else:
                if records:
                    with self._lock:
                        self._credit.fetched(records)
                    self.inbox.put(Fetched(records))

    def _read(self) -> Sequence[Record]:
        """A poll; without room for more, of one record and only every `POLL_S`."""
        with self._lock:
            has_room = self._credit.has_room
            if not has_room:
                self._room.clear()
            pause, resume = self._credit.changes()
        if pause or resume:
            log.info("credit", paused=pause, resumed=resume)
            self.reader.flow(pause, resume)
        if has_room or self._room.wait(POLL_S):
            return self.reader.poll(self._poll_records, POLL_S)
        return self.reader.poll(1, 0.0)

    def _halt(self, refused: Refused) -> None:
        self._halted = True
        self.inbox.put(refused)

    def _rewind(self, number: int) -> None:
        commits = self.reader.rewind()
        self._went_back(commits, number)

    def _begin_anew(self, number: int) -> None:
        """Begin as a new member of the group: what the old one held comes back through `assigned`."""
        log.warning("rejoining")
        self.reader.abandon()
        gone = sorted(self._held)
        with self._lock:
            self._held.clear()
        self._tell_lost(gone)
        self.reader = self._join(self)
        self._went_back({}, number)

    def _tell_lost(self, partitions: Sequence[Partition]) -> None:
        self.losses += 1
        self.inbox.put(Lost(partitions))

    def _went_back(self, commits: Mapping[Partition, Commit], number: int) -> None:
        with self._lock:
            self._credit.dropped()
        self._halted = False
        self.inbox.put(Rewound(commits, number))

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Partitions that the group gave us."""
        with self._lock:
            self._held.update(partitions)
            self._credit.assigned(partitions)
        self.inbox.put(Assigned(partitions))

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Partitions that the group wants back: they go when what was made of them is written."""
        with self._lock:
            self._held.difference_update(partitions)
        if self._closing.is_set() or not partitions:
            return
        self._released.clear()
        self.inbox.put(Revoking(partitions))
        if not self._released.wait(RELEASE_MOST_S):
            log.error("not_released", after_s=RELEASE_MOST_S)
            self._tell_lost(partitions)

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Partitions that are somebody else's already."""
        with self._lock:
            self._held.difference_update(partitions)
        self._tell_lost(partitions)
