"""The commit offset never passes what is not settled, and the commit alone says what is settled beyond it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.core.commits import METADATA_LIMIT, WINDOW_OFFSETS, CommitPoint, Seen
from pipelines.errors import TidegateError
from pipelines.transport.base import Commit


class CommitPointAgainstAPlainSet(RuleBasedStateMachine):
    """A log with gaps, read and settled in any order, with crashes that leave only the last commit."""

    @initialize(gaps=st.lists(st.integers(0, 3), min_size=1, max_size=60), window=st.integers(1, 40))
    def begin(self, gaps: list[int], window: int) -> None:
        self.window = window
        self.log = [sum(gaps[: i + 1]) + i for i in range(len(gaps))]
        self.settled: set[int] = set()
        self.unsettled: list[int] = []
        self.durable: set[int] = set()
        self.saved = Commit(0)
        self.restart()

    def restart(self) -> None:
        self.point = CommitPoint(self.saved, self.window)
        self.settled = set(self.durable)
        self.unsettled = []
        self.to_read = [offset for offset in self.log if offset >= self.saved.offset]

    @precondition(lambda self: self.to_read)
    @rule()
    def see(self) -> None:
        offset = self.to_read[0]
        seen = self.point.see(offset)
        if seen is Seen.BEYOND:
            assert self.unsettled
            assert offset - self.unsettled[0] >= self.window
            return
        self.to_read.pop(0)
        assert seen is (Seen.SETTLED if offset in self.settled else Seen.NEW)
        if seen is Seen.NEW:
            self.unsettled.append(offset)
        assert self.point.was_seen(offset)
        assert self.point.see(offset) is Seen.SETTLED

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        offset = self.unsettled.pop(data.draw(st.integers(0, len(self.unsettled) - 1)))
        self.point.settle(offset)
        self.settled.add(offset)
        with pytest.raises(ValueError, match="settled already"):
            self.point.settle(self.log[-1] + 1)

    @rule()
    def save(self) -> None:
        self.saved = self.point.commit()
        self.durable = set(self.settled)

    @rule()
    def crash(self) -> None:
        self.restart()

    @invariant()
    def says_what_is_settled(self) -> None:
        assert {offset for offset in self.log if self.point.is_settled(offset)} == self.settled
        commit = self.point.commit()
        assert commit.offset == self.point.offset
        assert all(offset in self.settled for offset in self.log if offset < commit.offset)
        if self.unsettled:
            assert commit.offset <= self.unsettled[0]
        restored = CommitPoint(commit, self.window)
        assert {offset for offset in self.log if restored.is_settled(offset)} == self.settled


TestCommitPoint = CommitPointAgainstAPlainSet.TestCase
TestCommitPoint.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_a_full_window_fits_whatever_is_settled_in_it(seed: int, share: float) -> None:
    generator = random.Random(seed)
    point = CommitPoint(Commit(0))
    for offset in range(WINDOW_OFFSETS):
        assert point.see(offset) is Seen.NEW
    assert point.see(WINDOW_OFFSETS) is Seen.BEYOND
    settled = {offset for offset in range(1, WINDOW_OFFSETS) if generator.random() < share}
    for offset in settled:
        point.settle(offset)
    commit = point.commit()
    assert commit.offset == 0
    assert len(commit.metadata) <= METADATA_LIMIT
    restored = CommitPoint(commit)
    assert {offset for offset in range(WINDOW_OFFSETS) if restored.is_settled(offset)} == settled


def test_the_worst_bitmap_has_the_length_that_the_module_states() -> None:
    point = CommitPoint(Commit(0))
    generator = random.Random(1)
    for offset in range(WINDOW_OFFSETS):
        point.see(offset)
    for offset in [*(o for o in range(1, WINDOW_OFFSETS - 1) if generator.random() < 0.5), WINDOW_OFFSETS - 1]:
        point.settle(offset)
    assert len(point.commit().metadata) == 3_838


@given(st.text(min_size=1, max_size=20).filter(lambda text: not text.startswith(("b:", "z:"))))
def test_metadata_of_others_is_refused_with_a_remedy(metadata: str) -> None:
    with pytest.raises(TidegateError, match="set its offsets anew"):
        CommitPoint(Commit(7, metadata))


@pytest.mark.parametrize("metadata", ["b:*", "z:AAAA", "z:é"])
def test_damaged_metadata_is_refused(metadata: str) -> None:
    with pytest.raises(TidegateError, match="cannot be read"):
        CommitPoint(Commit(7, metadata))


@pytest.mark.parametrize("window", [0, WINDOW_OFFSETS + 1])
def test_a_window_that_cannot_be_kept_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="window_offsets"):
        CommitPoint(Commit(0), window)
