"""The poll thread of a worker in virtual time: `runtime/fetcher.py`, line by line, over the same `Credit`."""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence

from pipelines.core.credit import Credit, CreditLimits
from pipelines.core.engine import Event, Fetched, Lost, Refused, Revoking
from pipelines.errors import TransportError
from pipelines.sim.clock import Clock, Signal, Steps, Wait
from pipelines.sim.heard import Assigned, Rewound
from pipelines.sim.reader import Reader
from pipelines.transport.base import Commit, Disconnected, Partition, Record

POLL_US = 100_000
RELEASE_MOST_US = 3_000_000
"""The real one is a minute: here it must come about often."""

Heard = Event | Assigned | Rewound


class Fetcher:
    """Reads for one worker. `join` makes a member of its group."""

    def __init__(
        self, clock: Clock, join: Callable[["Fetcher"], Reader], poll_records: int, limits: CreditLimits
    ) -> None:
        self.inbox: deque[Heard] = deque()
        self.heard = Signal(clock)
        self.credit = Credit(limits)
        self._clock, self._join, self._poll_records = clock, join, poll_records
        self._commands: deque[Callable[[], Generator[Wait, None, None]]] = deque()
        self._commanded, self._room, self._release = Signal(clock), Signal(clock), Signal(clock)
        self._held: set[Partition] = set()
        self.losses = 0
        self._halted = self._closing = self._released = False
        self.reader = join(self)

    def close(self) -> None:
        """Leave the group."""
        self._closing = self._released = True
        for signal in (self._commanded, self._room, self._release):
            signal.notify()
        self.reader.abandon()

    # From the worker's thread

    def done(self, count: int) -> None:
        """So many more records are done, in the order of reading."""
        self.credit.done(count)
        if self.credit.has_room:
            self._room.notify()

    def release(self, partitions: Sequence[Partition]) -> None:
        """These may go."""
        self.credit.revoked(set(partitions) - self._held)
        self._released = True
        self._release.notify()

    def go_back(self, number: int, *, rejoin: bool) -> None:
        """Read on from what is committed."""
        self._commands.append(lambda: self._begin_anew(number) if rejoin else self._rewind(number))
        self._commanded.notify()

    # From the poll thread

    def run(self) -> Steps:
        """The thread."""
        while not self._closing:
            try:
                while self._halted or self._commands:
                    if self._commands:
                        yield from self._commands.popleft()()
                    elif self._is_closing():
                        return
                    else:
                        yield 10_000_000, self._commanded
                records = yield from self._read()
            except TransportError as error:
                self._halt(Refused(error, disconnected=isinstance(error, Disconnected)))
            else:
                if records:
                    self.credit.fetched(records)
                    self._put(Fetched(records))
            yield 1, None

    def _is_closing(self) -> bool:
        return self._closing

    def _read(self) -> Generator[Wait, None, Sequence[Record]]:
        has_room = self.credit.has_room
        pause, resume = self.credit.changes()
        self.reader.flow(pause, resume)
        if not has_room:
            yield POLL_US, self._room
            if not self.credit.has_room:
                return (yield from self.reader.poll(1, 0))
        return (yield from self.reader.poll(self._poll_records, POLL_US))

    def _put(self, heard: Heard) -> None:
        self.inbox.append(heard)
        self.heard.notify()

    def _halt(self, refused: Refused) -> None:
        self._halted = True
        self._put(refused)

    def _rewind(self, number: int) -> Generator[Wait, None, None]:
        commits = yield from self.reader.rewind()
        self._went_back(commits, number)

    def _begin_anew(self, number: int) -> Generator[Wait, None, None]:
        self.reader.abandon()
        gone = sorted(self._held)
        self._held.clear()
        self._tell_lost(gone)
        yield 1_000, None
        self.reader = self._join(self)
        self._went_back({}, number)

    def _went_back(self, commits: Mapping[Partition, Commit], number: int) -> None:
        self.credit.dropped()
        self._halted = False
        self._put(Rewound(commits, number))

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Partitions that the group gave us."""
        self._held.update(partitions)
        self.credit.assigned(partitions)
        self._put(Assigned(partitions))

    def revoked(self, partitions: Sequence[Partition]) -> Generator[Wait, None, None]:
        """Partitions that the group wants back."""
        self._held.difference_update(partitions)
        if self._closing or not partitions:
            return
        self._released = False
        self._put(Revoking(partitions))
        until_us = self._clock.now_us + RELEASE_MOST_US
        while not self._released and self._clock.now_us < until_us:
            yield until_us - self._clock.now_us, self._release
        if not self._released:
            self._tell_lost(partitions)

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Partitions that are somebody else's already."""
        self._held.difference_update(partitions)
        self._tell_lost(partitions)

    def _tell_lost(self, partitions: Sequence[Partition]) -> None:
        self.losses += 1
        self._put(Lost(partitions))
