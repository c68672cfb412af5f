"""Settlement: every item that was sent to the cloud ends as exactly one outcome, whatever comes when.

Constraints
- Pure: events in, instructions out, as dask's `distributed/worker_state_machine.py` has it. No clock, no client.
- An answer wins if and only if it is handled before the event that settles its record: the deadline's, or being forced
  out at a limit. Later answers are counted and change nothing.
- All state is restored from the commits: what is written in one transaction with `commits` happened once.
- Memory is bounded: `Limits` bound every collection, and deadlines move everything on.
- Deterministic; O(log n) an item in the records waiting.

Format
One `Settlement` per partition number p: the uplink partitions p of all priorities, and answers partition p. An uplink
partition's commit is its oldest unsettled record and, in the metadata, the bitmap of those settled beyond it (see
`commits`). The answers' commit is the oldest record with an answer that is still needed (see `held_answers`).

Operation
    RecordSeen ──▶ ahead ──▶ pending ──┬─ all items answered ──▶ Ending
    AnswersSeen ──▶ early ──▶ │        ├─ Clock past deadline ─▶ Ending
                              └────────┴─ too much is ahead ───▶ Ending
A record beyond the bitmap's window waits in `ahead`, as if it were not read yet; when `ahead` is full, the oldest
record ends without the cloud. Unreadable records are settled by coming back as an instruction.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from pipelines.core.commits import WINDOW_OFFSETS, CommitPoint, Seen
from pipelines.core.endings import Ending, Missing, endings
from pipelines.core.held_answers import Held, HeldAnswers
from pipelines.transport.base import Commit, Partition, Record
from schemas.answers import Answer
from schemas.headers import Header
from schemas.topics import SiteTopics

HEADER_BYTES = 1024
"""What a record that waits is counted as: its header with all objects in it was measured at 930 bytes."""


class Limits(msgspec.Struct, frozen=True):
    """Of one partition number; the first two for each priority. At the defaults 23,000 records may be pending."""

    window_offsets: int = WINDOW_OFFSETS
    ahead_bytes: int = 32 << 20
    """Of records read beyond the window: 32,768 of them."""
    early_answers: int = 50_000
    hold_us: int = 600_000_000
    """Early answers are held for ten minutes: at 70 MB/s a backlog of 42 GB is read in that time."""


class RecordSeen(msgspec.Struct, frozen=True):
    """A record was read from an uplink topic."""

    priority: int
    offset: int
    header: Header

    @property
    def size_bytes(self) -> int:
        """Roughly, while it waits."""
        return HEADER_BYTES


class Unreadable(msgspec.Struct, frozen=True):
    """A record in an uplink topic that cannot be taken. As an instruction: dead-letter it, now and never again."""

    priority: int
    offset: int
    record: Record
    reason: str
    account: tuple[int, str, int, int, int] | None = None
    """Version, stream, epoch, first_seq and count, where the record is ours: its items end `dead_lettered`."""

    @property
    def size_bytes(self) -> int:
        """Roughly, while it waits."""
        return HEADER_BYTES + len(self.record.value() or b"")


class AnswersSeen(msgspec.Struct, frozen=True):
    """A record was read from the answers topic; without answers where it could not be read."""

    offset: int
    answers: Sequence[Answer]
    now_us: int


class Clock(msgspec.Struct, frozen=True):
    """The wall clock, microseconds since the Unix epoch."""

    now_us: int


class Counted(StrEnum):
    """What is counted and otherwise changes nothing."""

    LATE_ANSWER = "late_answer"
    """Its item is settled, or has an answer already."""
    UNMATCHED_ANSWER = "unmatched_answer"
    """It belongs to no item of ours, or its record did not come in time."""
    DROPPED_ANSWER = "dropped_answer"
    """Too many early answers were held."""
    FORCED = "forced"
    """A record ended without the cloud because too many waited behind it."""


class Count(msgspec.Struct, frozen=True):
    """Count `times` of `what`."""

    what: Counted
    times: int = 1


Event = RecordSeen | Unreadable | AnswersSeen | Clock
Instruction = Ending | Unreadable | Count


class _Pending(msgspec.Struct):
    header: Header
    answers: dict[int, Held]
    """By seq."""


class _Uplink:
    """One uplink partition."""

    __slots__ = ("ahead", "ahead_bytes", "deadlines", "pending", "point")

    def __init__(self, commit: Commit, window_offsets: int) -> None:
        self.point = CommitPoint(commit, window_offsets)
        self.pending: dict[int, _Pending] = {}
        self.deadlines: list[tuple[int, int]] = []  # A heap of deadline and offset; settled ones stay in for a while.
        self.ahead: deque[RecordSeen | Unreadable] = deque()
        self.ahead_bytes = 0

    def has_ahead(self, offset: int) -> bool:
        return bool(self.ahead) and self.ahead[0].offset <= offset <= self.ahead[-1].offset

    def push(self, event: RecordSeen | Unreadable) -> None:
        self.ahead.append(event)
        self.ahead_bytes += event.size_bytes

    def pop(self) -> RecordSeen | Unreadable:
        event = self.ahead.popleft()
        self.ahead_bytes -= event.size_bytes
        return event

    def remember_deadline(self, offset: int, deadline_us: int) -> None:
        heapq.heappush(self.deadlines, (deadline_us, offset))
        if len(self.deadlines) > 2 * len(self.pending) + 64:
            self.deadlines = [(record.header.deadline_us, at) for at, record in self.pending.items()]
            heapq.heapify(self.deadlines)

    def overdue(self, now_us: int) -> int | None:
        """The offset of a pending record whose deadline has passed."""
        while self.deadlines and self.deadlines[0][0] < now_us:
            offset = heapq.heappop(self.deadlines)[1]
            if offset in self.pending:
                return offset
        return None


class Settlement:
    """Settles the records of one partition number. Partitions come and go; each has a commit to go on from."""

    def __init__(self, topics: SiteTopics, number: int, limits: Limits | None = None) -> None:
        self._topics = topics
        self._number = number
        self._limits = limits or Limits()
        self._uplinks: dict[int, _Uplink] = {}
        self._answers_assigned = False
        self._held = self._no_answers(0)
        self._now_us = 0

    def assign(self, topic: str, commit: Commit) -> None:
        """This topic's partition is read from `commit` on: forget what was known of it, and restore."""
        self.release(topic)
        if topic == self._topics.answers:
            self._answers_assigned = True
            self._held = self._no_answers(commit.offset)
        else:
            self._uplinks[self._topics.uplinks.index(topic)] = _Uplink(commit, self._limits.window_offsets)

    def release(self, topic: str) -> None:
        """This topic's partition is no longer ours: forget it."""
        if topic == self._topics.answers:
            self._answers_assigned = False
            self._held = self._no_answers(0)
            for uplink in self._uplinks.values():
                for pending in uplink.pending.values():
                    pending.answers.clear()
            return
        priority = self._topics.uplinks.index(topic)
        gone = self._uplinks.pop(priority, None)
        # Its next owner may be we ourselves: answers stay until their record is read again, or are too old.
        for offset, pending in gone.pending.items() if gone else ():
            for held in pending.answers.values():
                self._held.keep((priority, offset), held, self._now_us)

    @property
    def is_idle(self) -> bool:
        """Whether no partition is assigned."""
        return not self._uplinks and not self._answers_assigned

    def handle(self, event: Event) -> list[Instruction]:
        """What is to be done because of `event`; records and answers come in the order of their partitions."""
        out: list[Instruction] = []
        match event:
            case RecordSeen() | Unreadable():
                self._uplinks[event.priority].push(event)
            case AnswersSeen():
                self._now_us = event.now_us
                self._held.next_offset = event.offset + 1
                for answer in event.answers:
                    self._match(Held(answer, event.offset), out)
            case Clock():
                self._now_us = event.now_us
                self._pass_time(event.now_us, out)
        for priority, uplink in self._uplinks.items():
            if uplink.ahead:
                self._take_ahead(priority, uplink, out)
        return out

    def commits(self) -> dict[Partition, Commit]:
        """Where to go on, for every partition assigned, once all instructions so far are carried out."""
        found = {
            (self._topics.uplink(priority), self._number): uplink.point.commit()
            for priority, uplink in self._uplinks.items()
        }
        if self._answers_assigned:
            found[self._topics.answers, self._number] = Commit(self._held.commit_offset)
        return found

    def _no_answers(self, offset: int) -> HeldAnswers:
        return HeldAnswers(offset, self._limits.early_answers, self._limits.hold_us)

    def _take_ahead(self, priority: int, uplink: _Uplink, out: list[Instruction]) -> None:
        while uplink.ahead:
            seen = uplink.point.see(uplink.ahead[0].offset)
            if seen is Seen.BEYOND:
                if uplink.ahead_bytes <= self._limits.ahead_bytes:
                    break
                # The oldest unsettled record is the one that the commit stands at.
                out.append(Count(Counted.FORCED))
                self._settle(uplink, uplink.point.offset, Missing.FULL, out)
                continue
            event = uplink.pop()
            early = self._held.take((priority, event.offset))
            if seen is Seen.SETTLED:
                self._ignore(early, Counted.LATE_ANSWER, out)
            elif isinstance(event, Unreadable):
                uplink.point.settle(event.offset)
                out.append(event)
                self._ignore(early, Counted.UNMATCHED_ANSWER, out)
            else:
                uplink.pending[event.offset] = _Pending(event.header, {})
                uplink.remember_deadline(event.offset, event.header.deadline_us)
                for held in early:
                    self._apply(uplink, held, out)

    def _match(self, held: Held, out: list[Instruction]) -> None:
        """Bring an answer to its record, or hold it until that comes."""
        self._held.use(held)
        origin = held.answer.origin
        uplink = self._uplinks.get(origin.priority)
        if origin.partition != self._number or not 0 <= origin.priority < len(self._topics.uplinks):
            self._ignore([held], Counted.UNMATCHED_ANSWER, out)
        elif uplink is not None and uplink.point.was_seen(origin.offset):
            self._apply(uplink, held, out)
        elif not self._held.hold((origin.priority, origin.offset), held, self._now_us):
            out.append(Count(Counted.DROPPED_ANSWER))

    def _apply(self, uplink: _Uplink, held: Held, out: list[Instruction]) -> None:
        answer, offset = held.answer, held.answer.origin.offset
        pending = uplink.pending.get(offset)
        if pending is None:
            self._ignore([held], Counted.LATE_ANSWER, out)
            return
        header = pending.header
        if (answer.stream, answer.epoch) != (header.stream, header.epoch) or not (
            0 <= answer.seq - header.first_seq < header.count
        ):
            self._ignore([held], Counted.UNMATCHED_ANSWER, out)
        elif answer.seq in pending.answers:
            self._ignore([held], Counted.LATE_ANSWER, out)
        else:
            pending.answers[answer.seq] = held
            if len(pending.answers) == header.count:
                self._settle(uplink, offset, Missing.DEADLINE, out)

    def _ignore(self, answers: Sequence[Held], why: Counted, out: list[Instruction]) -> None:
        for held in answers:
            self._held.release(held)
        if answers:
            out.append(Count(why, len(answers)))

    def _settle(self, uplink: _Uplink, offset: int, missing: Missing, out: list[Instruction]) -> None:
        pending = uplink.pending.pop(offset)
        uplink.point.settle(offset)
        for held in pending.answers.values():
            self._held.release(held)
        out.extend(endings(pending.header, {seq: held.answer for seq, held in pending.answers.items()}, missing))

    def _pass_time(self, now_us: int, out: list[Instruction]) -> None:
        for uplink in self._uplinks.values():
            while (offset := uplink.overdue(now_us)) is not None:
                self._settle(uplink, offset, Missing.DEADLINE, out)
        dropped = self._held.expire(now_us, self._is_waiting)
        if dropped:
            out.append(Count(Counted.UNMATCHED_ANSWER, dropped))

    def _is_waiting(self, place: tuple[int, int]) -> bool:
        uplink = self._uplinks.get(place[0])
        return uplink is not None and uplink.has_ahead(place[1])
