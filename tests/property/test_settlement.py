"""Any interleaving of records, answers, time, crashes and rebalances gives every item exactly one outcome.

The machine holds the logs, and what one transaction at a time made durable; a crash leaves only that. The oracle is
plain: an item's answer wins if it was delivered, to the process that settles it, before that.
"""

from collections import Counter

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.core.commits import METADATA_LIMIT, CommitPoint
from pipelines.core.endings import CLOUD_DEAD_LETTER, Ending
from pipelines.core.settlement import (
    AnswersSeen,
    Clock,
    Count,
    Counted,
    Event,
    Limits,
    RecordSeen,
    Settlement,
    Unreadable,
)
from pipelines.transport.base import Commit
from schemas.answers import Answer, AnswerKind
from schemas.headers import Extra, Header, Origin
from schemas.ledger import Outcome
from schemas.topics import SiteTopics

TOPICS = SiteTopics("harbour")
NUMBER = 3
PRIORITIES = range(len(TOPICS.uplinks))
MOSTLY_ONE = st.sampled_from([0, 0, 0, 1, 2])
"""Priorities such that much happens within one."""
ALL = [*TOPICS.uplinks, TOPICS.answers]

ItemKey = tuple[int, int]
"""Priority and seq: each uplink topic has one stream in these tests."""


WRONG = [
    Answer("nobody", 0, 0, Origin(0, NUMBER, 0), AnswerKind.ANSWERED),
    Answer("cam-0", 9, 0, Origin(0, NUMBER, 0), AnswerKind.ANSWERED),
    Answer("cam-0", 0, 10**6, Origin(0, NUMBER, 0), AnswerKind.ANSWERED),
    Answer("cam-0", 0, 0, Origin(0, NUMBER + 1, 0), AnswerKind.ANSWERED),
    Answer("cam-0", 0, 0, Origin(7, NUMBER, 0), AnswerKind.ANSWERED),
    Answer("cam-0", 0, 0, Origin(0, NUMBER, -5), AnswerKind.ANSWERED),
]


class Payload(msgspec.Struct, frozen=True):
    """As much of a record as settlement looks at."""

    content: bytes = b"not ours"

    def value(self) -> bytes:
        return self.content


def stream_of(priority: int) -> str:
    return f"cam-{priority}"


class SettlementMachine(RuleBasedStateMachine):
    """Logs, one process at a time that reads them, and what it made durable."""

    limits = Limits(hold_us=10**12)

    @initialize()
    def begin(self) -> None:
        self.now_us = 0
        self.uplinks: dict[int, list[RecordSeen | Unreadable]] = {priority: [] for priority in PRIORITIES}
        self.next_offset = dict.fromkeys(PRIORITIES, 0)
        self.next_seq = dict.fromkeys(PRIORITIES, 0)
        self.answers: list[list[Answer]] = []
        self.outcomes: dict[ItemKey, Ending] = {}
        self.quarantined: set[tuple[int, int]] = set()
        self.saved = {(topic, NUMBER): Commit(0) for topic in ALL}
        self.restart()

    # What others write.

    @rule(
        priority=MOSTLY_ONE,
        records=st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 100), st.sampled_from([None, "7"])),
            min_size=1,
            max_size=5,
        ),
    )
    def records_are_written(self, priority: int, records: list[tuple[int, int, int, str | None]]) -> None:
        """Each after a gap, with some items, some patience, and the edge's answer or none."""
        for gap, count, patience_us, edge_label in records:
            header = Header(
                version=1,
                stream=stream_of(priority),
                epoch=0,
                first_seq=self.next_seq[priority],
                count=count,
                capture_us=self.now_us,
                deadline_us=self.now_us + patience_us,
                priority=priority,
                codec="raw",
                model="edge@1",
                extra=Extra(edge_label=edge_label, edge_confidence=0.4, reason="below_threshold"),
            )
            offset = self.next_offset[priority] + gap
            self.uplinks[priority].append(RecordSeen(priority, offset, header))
            self.next_offset[priority] = offset + 1
            self.next_seq[priority] += count

    @precondition(lambda self: any(self.uplinks.values()))
    @rule(data=st.data())
    def answers_are_written(self, data: st.DataObject) -> None:
        """For records written already, read by the settler or not; in any order, also twice."""
        batch = []
        for _ in range(data.draw(st.integers(0, 6))):
            priority = data.draw(st.sampled_from([p for p in PRIORITIES if self.uplinks[p]]))
            record = data.draw(st.sampled_from(self.uplinks[priority][-8:]))
            first_seq, count = (
                (record.header.first_seq, record.header.count) if isinstance(record, RecordSeen) else (0, 1)
            )
            batch.append(
                Answer(
                    stream=stream_of(priority),
                    epoch=0,
                    seq=first_seq + data.draw(st.integers(0, count - 1)),
                    origin=Origin(priority, NUMBER, record.offset),
                    kind=data.draw(st.sampled_from([*AnswerKind, AnswerKind.ANSWERED])),
                    label="8",
                    confidence=0.99,
                    model="cloud@1",
                )
            )
        self.answers.append(batch)

    @rule(priority=MOSTLY_ONE, wrong=st.sampled_from([None, *WRONG]))
    def something_wrong_is_written(self, priority: int, wrong: Answer | None) -> None:
        """A foreign record, or an answer to nothing."""
        if wrong is not None:
            self.answers.append([wrong])
            return
        offset = self.next_offset[priority]
        self.uplinks[priority].append(Unreadable(priority, offset, Payload(), "foreign"))
        self.next_offset[priority] += 1

    # What the settler does.

    @precondition(lambda self: any(self.unread(priority) for priority in PRIORITIES))
    @rule(priority=MOSTLY_ONE, records=st.integers(1, 9))
    def records_are_read(self, priority: int, records: int) -> None:
        for event in self.unread(priority)[:records]:
            self.read_to[priority] = event.offset + 1
            self.handle(event)

    @precondition(lambda self: self.answers_read_to is not None and self.answers_read_to < len(self.answers))
    @rule(records=st.integers(1, 3))
    def answers_are_read(self, records: int) -> None:
        assert self.answers_read_to is not None
        for _ in range(min(records, len(self.answers) - self.answers_read_to)):
            offset = self.answers_read_to
            self.answers_read_to = offset + 1
            for answer in self.answers[offset]:
                self.delivered.setdefault((answer.origin, answer.stream, answer.epoch, answer.seq), []).append(answer)
            self.handle(AnswersSeen(offset, self.answers[offset], self.now_us))

    @rule(passed_us=st.integers(0, 12))
    def time_passes(self, passed_us: int) -> None:
        self.now_us += passed_us
        self.handle(Clock(self.now_us))

    @rule()
    def work_is_committed(self) -> None:
        self.saved.update(self.settlement.commits())
        self.commit_pending()
        self.check_commits()

    @rule(wrong=st.sampled_from(["crash", "rollback", *ALL]))
    def something_goes_wrong(self, wrong: str) -> None:
        """A crash; a transaction rolled back; a partition that goes away until it comes again."""
        if wrong == "crash":
            self.restart()
        elif wrong == "rollback":
            self.forget_uncommitted()
            self.assign_all()
        elif self.is_assigned(wrong):
            self.release(wrong)
        else:
            self.assign(wrong)

    @rule()
    def partitions_come_again(self) -> None:
        for topic in ALL:
            if not self.is_assigned(topic):
                self.assign(topic)

    # The model.

    def restart(self) -> None:
        self.settlement = Settlement(TOPICS, NUMBER, self.limits)
        self.forget_uncommitted()
        self.assign_all()

    def assign_all(self) -> None:
        for topic in ALL:
            self.settlement.assign(topic, self.saved[topic, NUMBER])

    def is_assigned(self, topic: str) -> bool:
        if topic == TOPICS.answers:
            return self.answers_read_to is not None
        return TOPICS.uplinks.index(topic) in self.read_to

    def release(self, topic: str) -> None:
        """Pending work is committed before that."""
        self.work_is_committed()
        self.settlement.release(topic)
        if topic == TOPICS.answers:
            self.answers_read_to = None
            self.delivered.clear()
        else:
            del self.read_to[TOPICS.uplinks.index(topic)]

    def assign(self, topic: str) -> None:
        commit = self.saved[topic, NUMBER]
        self.settlement.assign(topic, commit)
        if topic == TOPICS.answers:
            self.answers_read_to = commit.offset
        else:
            self.read_to[TOPICS.uplinks.index(topic)] = commit.offset

    def forget_uncommitted(self) -> None:
        self.counts: Counter[Counted] = Counter()
        self.pending_outcomes: dict[ItemKey, Ending] = {}
        self.pending_quarantined: set[tuple[int, int]] = set()
        self.delivered: dict[tuple[Origin, str, int, int], list[Answer]] = {}
        """Answers by the place and item they name, in order."""
        self.read_to = {priority: self.saved[TOPICS.uplink(priority), NUMBER].offset for priority in PRIORITIES}
        self.answers_read_to: int | None = self.saved[TOPICS.answers, NUMBER].offset

    def unread(self, priority: int) -> list[RecordSeen | Unreadable]:
        if priority not in self.read_to:
            return []
        return [event for event in self.uplinks[priority] if event.offset >= self.read_to[priority]]

    def handle(self, event: Event) -> None:
        for instruction in self.settlement.handle(event):
            if isinstance(instruction, Count):
                self.counts[instruction.what] += instruction.times
            elif isinstance(instruction, Unreadable):
                place = (instruction.priority, instruction.offset)
                assert place not in self.quarantined | self.pending_quarantined
                self.pending_quarantined.add(place)
            else:
                self.note(instruction)

    def note(self, ending: Ending) -> None:
        record = next(
            event
            for event in self.uplinks[ending.header.priority]
            if isinstance(event, RecordSeen) and event.header is ending.header
        )
        assert ending.count >= 1
        for seq in range(ending.first_seq, ending.first_seq + ending.count):
            key = (ending.header.priority, seq)
            assert key not in self.outcomes, "an item was settled again after its outcome was durable"
            assert key not in self.pending_outcomes, "an item was settled twice"
            self.pending_outcomes[key] = ending
            self.check_outcome(ending, record, seq)

    def check_outcome(self, ending: Ending, record: RecordSeen, seq: int) -> None:
        header = record.header
        delivered = self.delivered.get((Origin(header.priority, NUMBER, record.offset), header.stream, 0, seq), [])
        has_edge = header.extra.edge_label is not None
        if not delivered:
            assert header.deadline_us < self.now_us
            assert ending.outcome is (Outcome.ANSWERED_EDGE_FALLBACK if has_edge else Outcome.EXPIRED)
            assert ending.reason == "deadline"
        elif delivered[0].kind is AnswerKind.ANSWERED:
            assert ending.outcome is Outcome.ANSWERED_CLOUD
            assert ending.answer == delivered[0]
            assert ending.reason == header.extra.reason
        else:
            assert ending.outcome is (Outcome.ANSWERED_EDGE_FALLBACK if has_edge else Outcome.DEAD_LETTERED)
            assert ending.reason == CLOUD_DEAD_LETTER

    def commit_pending(self) -> None:
        self.outcomes.update(self.pending_outcomes)
        self.quarantined |= self.pending_quarantined
        self.pending_outcomes, self.pending_quarantined = {}, set()

    def is_durable(self, event: RecordSeen | Unreadable) -> bool:
        if isinstance(event, Unreadable):
            return (event.priority, event.offset) in self.quarantined
        first = event.header.first_seq
        return all((event.priority, seq) in self.outcomes for seq in range(first, first + event.header.count))

    def check_commits(self) -> None:
        """What is behind a commit is settled for good, and what the bitmap says is true."""
        for priority in PRIORITIES:
            commit = self.saved[TOPICS.uplink(priority), NUMBER]
            assert len(commit.metadata) <= METADATA_LIMIT
            point = CommitPoint(commit)
            for event in self.uplinks[priority]:
                assert point.is_settled(event.offset) == self.is_durable(event)
        self.check_answers_behind_the_commit()

    def check_answers_behind_the_commit(self) -> None:
        for batch in self.answers[: self.saved[TOPICS.answers, NUMBER].offset]:
            for answer in batch:
                for event in self.uplinks.get(answer.origin.priority, []):
                    if self.belongs(answer, event):
                        assert self.is_durable(event), "an answer that is still needed would not be read again"

    @staticmethod
    def belongs(answer: Answer, event: RecordSeen | Unreadable) -> bool:
        if not isinstance(event, RecordSeen) or answer.origin != Origin(event.priority, NUMBER, event.offset):
            return False
        header = event.header
        return (answer.stream, answer.epoch) == (header.stream, header.epoch) and (
            header.first_seq <= answer.seq < header.first_seq + header.count
        )

    @invariant()
    def is_bounded(self) -> None:
        for uplink in self.settlement._uplinks.values():
            assert len(uplink.pending) <= self.limits.window_offsets
            assert uplink.ahead_bytes <= self.limits.ahead_bytes
            assert uplink.ahead_bytes == sum(event.size_bytes for event in uplink.ahead)
            assert len(uplink.deadlines) <= 2 * self.limits.window_offsets + 64
        held = self.settlement._held
        assert held.early_count == sum(len(early.answers) for early in held._early.values())
        used = sum(len(p.answers) for uplink in self.settlement._uplinks.values() for p in uplink.pending.values())
        assert sum(held._uses.values()) == held.early_count + used

    def teardown(self) -> None:
        if not hasattr(self, "settlement"):
            return
        self.partitions_come_again()
        for priority in PRIORITIES:
            self.records_are_read(priority, len(self.uplinks[priority]) + 1)
        self.answers_are_read(len(self.answers))
        # One round of the clock for each window of records that waits.
        for _ in range(sum(map(len, self.uplinks.values())) + 1):
            self.time_passes(10**6)
        self.time_passes(2 * self.limits.hold_us)
        self.work_is_committed()
        for priority in PRIORITIES:
            assert all(self.is_durable(event) for event in self.uplinks[priority])
            assert {seq for of, seq in self.outcomes if of == priority} == set(range(self.next_seq[priority]))
            commit = self.saved[TOPICS.uplink(priority), NUMBER]
            assert commit.metadata == ""
        assert self.saved[TOPICS.answers, NUMBER].offset == len(self.answers)
        assert not self.settlement._held.early_count


class SmallLimits(SettlementMachine):
    """Windows, early answers and patience so small that they are reached: answers may be lost, never an outcome."""

    limits = Limits(window_offsets=4, ahead_bytes=3 * 1024, early_answers=3, hold_us=10)

    def check_outcome(self, ending: Ending, record: RecordSeen, seq: int) -> None:
        header = record.header
        origin = Origin(header.priority, NUMBER, record.offset)
        delivered = self.delivered.get((origin, header.stream, 0, seq), [])
        if ending.answer is not None:
            assert ending.answer in delivered
        elif ending.reason == "deadline":
            assert header.deadline_us < self.now_us
        elif ending.reason == "settler_full":
            assert self.counts[Counted.FORCED]
            assert ending.outcome in (Outcome.ANSWERED_EDGE_FALLBACK, Outcome.SHED)
        else:
            assert any(answer.kind is AnswerKind.DEAD_LETTERED for answer in delivered)

    def check_answers_behind_the_commit(self) -> None:
        """Answers may be dropped here."""


TestSettlement = SettlementMachine.TestCase
TestSettlement.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestSmallLimits = SmallLimits.TestCase
TestSmallLimits.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
