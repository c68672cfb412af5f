"""What waits is done once, in order, and a failing item is found alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.batches import Batches, BatchLimits
from pipelines.sim.reader import SimRecord


def read(sizes, partitions):
    """Polls of so many records, of several partitions in turn."""
    offsets = dict.fromkeys(range(partitions), 0)
    polls = []
    for size in sizes:
        poll = []
        for number in range(size):
            partition = number % partitions
            poll.append(SimRecord(("in", partition), offsets[partition], None, b"x"))
            offsets[partition] += 1
        polls.append(poll)
    return polls


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def named(records):
    return [(record.partition(), record.offset()) for record in records]


def joined(lists):
    return [one for some in lists for one in some]


def work(batches, poison, now_us=0):
    """Do all that waits; what was done, and what was told to fail, in order."""
    done, told = [], []
    while batches.due_us() is not None:
        batch = batches.take(now_us)
        now_us += 1
        if poison.isdisjoint(named(batch)):
            batches.done(len(batch), now_us)
            done.append(named(batch))
        elif (found := batches.failed()) is not None:
            told += named([found])
            done.append(named([found]))
    return done, told


@given(sizes=SIZES, most=st.integers(1, 30), partitions=st.integers(1, 4))
def test_all_is_taken_once_in_the_order_of_reading(sizes, most, partitions):
    batches = Batches(BatchLimits(records=most))
    polls = read(sizes, partitions)
    for poll in polls:
        batches.add(poll, 0)
    assert len(batches) == sum(sizes)
    done, _ = work(batches, set())
    assert joined(done) == joined(map(named, polls))
    assert max(map(len, done)) <= most
    assert len(batches) == 0


@given(sizes=SIZES, most=st.integers(1, 30), partitions=st.integers(1, 4), data=st.data())
def test_poison_and_only_poison_is_told_and_order_is_kept(sizes, most, partitions, data):
    polls = read(sizes, partitions)
    everything = joined(map(named, polls))
    poison = data.draw(st.sets(st.sampled_from(everything), max_size=4))
    batches = Batches(BatchLimits(records=most))
    for poll in polls:
        batches.add(poll, 0)
    done, told = work(batches, poison)
    assert joined(done) == everything
    assert told == [name for name in everything if name in poison]


@given(sizes=SIZES, most=st.integers(1, 30), dropped=st.sets(st.integers(0, 2), min_size=1), fails=st.booleans())
def test_what_is_dropped_is_not_done_and_the_rest_is(sizes, most, dropped, fails):
    polls = read(sizes, 3)
    batches = Batches(BatchLimits(records=most))
    for poll in polls:
        batches.add(poll, 0)
    if fails:
        batches.take(0)
        batches.failed()
    batches.drop({("in", partition) for partition in dropped})
    done, _ = work(batches, set())
    assert joined(done) == [name for name in joined(map(named, polls)) if name[0] not in dropped]


@given(took_us=st.integers(1, 10_000), records=st.integers(1, 50))
def test_a_batch_is_what_is_done_within_its_budget(took_us, records):
    batches = Batches(BatchLimits(records=500, budget_us=10_000))
    batches.add(read([records], 1)[0], 0)
    taken = batches.take(0)
    batches.done(took_us * len(taken), 0)
    batches.add(read([500], 1)[0], 0)
    expected = max(1, min(500, int(10_000 / took_us)))
    assert len(batches.take(0)) == pytest.approx(expected, abs=1)


@given(linger_us=st.integers(1, 10**6), came_us=st.integers(0, 10**6))
def test_a_batch_lingers_until_it_is_full(linger_us, came_us):
    batches = Batches(BatchLimits(records=2, linger_us=linger_us))
    assert batches.due_us() is None
    one, two = read([1, 1], 1)
    batches.add(one, came_us)
    assert batches.due_us() == came_us + linger_us
    batches.add(two, came_us + 1)
    assert batches.due_us() == 0
    batches.clear()
    assert batches.due_us() is None
