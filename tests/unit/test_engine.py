"""Decisions of the engine that the simulation does not pin: limits, back-off, ends, and answers that come late."""

import pytest

from pipelines.core.engine import (
    FAR_US,
    Bury,
    End,
    Engine,
    EngineLimits,
    Failed,
    Fetched,
    GoBack,
    Lost,
    Process,
    Processed,
    Refused,
    Release,
    Revoking,
    Stop,
    Tick,
    WentBack,
    Write,
    Written,
)
from pipelines.sim.reader import SimRecord
from pipelines.transport.base import Commit, OutRecord

LIMITS = EngineLimits(retry_first_us=100, retry_most_us=1_000, retries=8, burials=3, tick_us=10**9, pending_records=2)
P0, P1 = ("in", 0), ("in", 1)
WRONG = RuntimeError("wrong")


def records(count, partition=P0, start=0):
    return [SimRecord(partition, start + number, None, b"x") for number in range(count)]


def made(count=1, size_bytes=1):
    return Processed([OutRecord("out", b"x")] * count, {P0: Commit(count)}, size_bytes)


@pytest.fixture
def engine():
    engine = Engine(LIMITS, isolates=True)
    assert isinstance(engine.next(0), Tick)
    engine.handle(Processed(), 0)
    return engine


def went_back(engine, now_us):
    now_us = max(now_us, engine.due_us())
    instruction = engine.next(now_us)
    assert isinstance(instruction, GoBack)
    engine.handle(WentBack(instruction.number), now_us)
    return now_us


def test_waits_double_up_to_the_most_and_a_success_ends_the_row(engine):
    waits_us, now_us = [], 0
    for _ in range(6):
        engine.handle(Refused(WRONG), now_us)
        waits_us.append(engine.due_us() - now_us)
        assert engine.next(engine.due_us() - 1) is None
        now_us = went_back(engine, now_us)
    assert waits_us == [100, 200, 400, 800, 1_000, 1_000]
    engine.handle(Written(), now_us)
    engine.handle(Refused(WRONG), now_us)
    assert engine.due_us() == now_us + 100


def test_too_many_refusals_in_a_row_end_it(engine):
    now_us = 0
    for _ in range(LIMITS.retries):
        engine.handle(Refused(WRONG), now_us)
        now_us = went_back(engine, now_us)
    engine.handle(Refused(WRONG), now_us)
    assert engine.next(now_us) == End(WRONG)


def test_every_second_refusal_and_every_lost_connection_joins_anew(engine):
    rejoins, now_us = [], 0
    for disconnected in (False, False, False, False, True):
        engine.handle(Refused(WRONG, disconnected=disconnected), now_us)
        now_us = engine.due_us()
        instruction = engine.next(now_us)
        rejoins.append(instruction.rejoin)
        engine.handle(WentBack(instruction.number), now_us)
    assert rejoins == [False, True, False, True, True]


def test_what_is_final_ends_it_and_nobody_waits_for_partitions(engine):
    engine.handle(made(), 0)
    engine.handle(Revoking([P0]), 0)
    assert isinstance(engine.next(0), Write)
    engine.handle(Refused(WRONG, final=True), 0)
    assert engine.next(0) == End(WRONG)
    assert not engine.is_releasing


def test_burials_in_a_row_end_it_and_a_success_begins_the_row_anew(engine):
    def bury(offset):
        engine.handle(Fetched(records(1, start=offset)), 0)
        for _ in range(2):
            assert isinstance(engine.next(0), Process)
            engine.handle(Failed(WRONG), 0)
        return engine.next(0)

    for offset in range(LIMITS.burials - 1):
        assert isinstance(bury(offset), Bury)
        engine.handle(Processed(), 0)
    engine.handle(Fetched(records(1, start=50)), 0)
    assert isinstance(engine.next(0), Process)
    engine.handle(Processed(), 0)
    for offset in range(LIMITS.burials):
        assert isinstance(bury(100 + offset), Bury)
        engine.handle(Processed(), 0)
    assert bury(200) == End(WRONG)


def test_what_a_stage_with_a_memory_fails_on_is_a_refusal():
    engine = Engine(LIMITS)
    engine.handle(Fetched(records(4)), 0)
    engine.next(0)
    engine.handle(Processed(), 0)
    assert isinstance(engine.next(0), Process)
    engine.handle(Failed(WRONG), 0)
    assert engine.failures == 1
    assert engine.due_us() == LIMITS.retry_first_us


@pytest.mark.parametrize("asked", [False, True])
def test_a_stop_while_going_back_ends_it_at_once(engine, asked):
    engine.handle(made(), 0)
    engine.handle(Refused(WRONG), 0)
    if asked:
        assert isinstance(engine.next(engine.due_us()), GoBack)
        assert engine.due_us() == FAR_US
    engine.handle(Stop(), 1_000)
    assert engine.due_us() == 0
    assert engine.next(1_000) == End()


def test_a_stop_writes_what_is_pending_first(engine):
    engine.handle(made(), 0)
    engine.handle(Stop(), 1)
    assert isinstance(engine.next(1), Write)
    engine.handle(Written(), 1)
    assert engine.next(1) == End()


@pytest.mark.parametrize("many", [made(2), made(1, EngineLimits().pending_bytes)])
def test_enough_is_written_at_once_and_little_after_the_interval(engine, many):
    engine.handle(made(), 5)
    assert engine.next(5) is None
    assert engine.due_us() == 5 + LIMITS.commit_interval_us
    assert isinstance(engine.next(5 + LIMITS.commit_interval_us), Write)
    engine.handle(Written(), 6)
    engine.handle(many, 6)
    assert engine.due_us() == 0
    assert isinstance(engine.next(6), Write)


def test_only_the_last_going_back_counts(engine):
    """A refusal of reading, put before the first answer, has another asked for: both readings hold the same records."""
    engine.handle(Refused(WRONG), 0)
    first = engine.next(engine.due_us())
    engine.handle(Refused(WRONG), 200)
    second = engine.next(engine.due_us())
    engine.handle(WentBack(first.number), 500)
    engine.handle(Fetched(records(3)), 500)
    assert engine.next(500) is None
    engine.handle(WentBack(second.number), 600)
    engine.handle(Fetched(records(3)), 600)
    instruction = engine.next(600)
    assert isinstance(instruction, Process)
    assert [record.offset() for record in instruction.records] == [0, 1, 2]


def test_a_loss_forgets_all_lets_go_and_goes_back(engine):
    engine.handle(Fetched(records(2) + records(2, P1)), 0)
    engine.handle(made(), 0)
    engine.handle(Lost([P0]), 1)
    assert not engine.has_pending
    assert engine.next(1) == Release([P0])
    assert isinstance(engine.next(1), GoBack)


def test_partitions_asked_back_go_when_what_was_made_is_written(engine):
    engine.handle(Fetched(records(2) + records(2, P1)), 0)
    engine.handle(made(), 0)
    engine.handle(Revoking([P1]), 0)
    assert isinstance(engine.next(0), Write)
    engine.handle(Written(), 0)
    assert engine.next(0) == Release([P1])
    instruction = engine.next(0)
    assert [record.partition() for record in instruction.records] == [0, 0]
