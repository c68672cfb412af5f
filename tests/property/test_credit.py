"""What a worker holds is bounded, and flow goes on when it has room."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipelines.core.credit import Credit, CreditLimits
from pipelines.sim.reader import SimRecord

LIMITS = CreditLimits(ahead_records=20, ahead_bytes=2_000, records=100, bytes=10_000)
POLL = 10
PARTITIONS = [("in", number) for number in range(5)]


class Reading(RuleBasedStateMachine):
    """A client that reads of what is not paused, and a worker that does it in order."""

    @initialize(first=st.sets(st.sampled_from(PARTITIONS), min_size=1))
    def begin(self, first):
        self.credit = Credit(LIMITS)
        self.held, self.flowing, self.offset = [], set(first), 0
        self.credit.assigned(first)
        self.assigned = set(first)

    @rule(data=st.data(), size=st.integers(1, POLL), value=st.integers(0, 100))
    def poll(self, data, size, value):
        pause, resume = self.credit.changes()
        self.flowing = (self.flowing - set(pause)) | set(resume)
        assert self.credit.changes() == ([], [])
        if not self.flowing:
            return
        records = []
        for _ in range(size if self.credit.has_room else 1):
            self.offset += 1
            records.append(SimRecord(data.draw(st.sampled_from(sorted(self.flowing))), self.offset, None, b"x" * value))
        self.credit.fetched(records)
        self.held += records

    @rule(count=st.integers(1, 40))
    def do(self, count):
        count = min(count, len(self.held))
        self.credit.done(count)
        del self.held[:count]

    @rule(some=st.sets(st.sampled_from(PARTITIONS), min_size=1))
    def give(self, some):
        self.credit.assigned(some)
        self.assigned |= some
        self.flowing |= some

    @rule(some=st.sets(st.sampled_from(PARTITIONS), min_size=1))
    def take(self, some):
        self.credit.revoked(some)
        self.assigned -= some
        self.flowing -= some
        self.held = [one for one in self.held if (one.topic(), one.partition()) not in some]

    @rule()
    def go_back(self):
        self.credit.dropped()
        self.held.clear()

    @invariant()
    def it_knows_what_is_held_and_that_is_bounded(self):
        if hasattr(self, "credit"):
            assert self.credit.records == len(self.held)
            assert self.credit.records < LIMITS.records + POLL
            assert self.credit.paused == self.assigned - self.flowing

    @invariant()
    def what_is_paused_goes_on_when_all_is_done(self):
        if hasattr(self, "credit") and not self.held:
            assert self.credit.has_room
            _, resume = self.credit.changes()
            self.flowing |= set(resume)
            assert self.flowing == self.assigned


TestReading = Reading.TestCase


@given(sizes=st.lists(st.integers(1, 30), min_size=1), done=st.integers(0, 400))
def test_what_is_done_gives_credit_back(sizes, done):
    credit = Credit(LIMITS)
    credit.assigned(PARTITIONS)
    for size in sizes:
        credit.fetched([SimRecord(PARTITIONS[0], offset, None, b"") for offset in range(size)])
    credit.done(done)
    assert credit.records == max(sum(sizes) - done, 0)


@given(first=st.integers(1, 4), sizes=st.lists(st.integers(1, POLL), min_size=1, max_size=5))
def test_the_whole_holds_when_partitions_come_and_nothing_is_done(first, sizes):
    credit, flowing, offset = Credit(LIMITS), set(PARTITIONS[:first]), 0
    credit.assigned(flowing)
    for more in (set(), set(PARTITIONS[first:])):
        credit.assigned(more)
        flowing |= more
        while True:
            pause, _ = credit.changes()
            flowing -= set(pause)
            if not flowing:
                break
            offset += 1
            one = sorted(flowing)[offset % len(flowing)]
            size = sizes[offset % len(sizes)]
            credit.fetched([SimRecord(one, offset, None, b"")] * size)
    assert LIMITS.records <= credit.records < LIMITS.records + POLL
