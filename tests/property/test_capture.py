"""Capture and pacing: seqs dense, positions exact, no drift."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.capture import Capture, split_positions
from pipelines.core.pacing import CATCH_UP_US, Schedule
from schemas.positions import StreamPosition


@given(
    length=st.integers(1, 40),
    data=st.data(),
    loop=st.integers(1, 4),
)
def test_cameras_share_every_position_and_go_on_behind_any(length, data, loop):
    streams = data.draw(st.integers(1, length))
    whole = [list(split_positions(length, streams, number, loop, None)) for number in range(streams)]
    assert sorted(position for one in whole for position in one) == list(range(length * loop))
    for number, one in enumerate(whole):
        assert all(position % length % streams == number for position in one)
        after = data.draw(st.integers(0, length * loop + 3))
        assert list(split_positions(length, streams, number, loop, after)) == [p for p in one if p > after]


@given(length=st.integers(1, 20), after=st.integers(0, 10**12), data=st.data())
def test_an_endless_source_goes_on_at_once(length, after, data):
    streams = data.draw(st.integers(1, length))
    found = list(islice(split_positions(length, streams, streams - 1, 0, after), 5))
    assert found == sorted(set(found))
    assert after < found[0] <= after + 2 * length


@given(
    stored=st.dictionaries(
        st.sampled_from("abc"), st.tuples(st.integers(1, 9), st.integers(0, 99), st.integers(0, 99))
    ),
    taken=st.lists(st.sampled_from("abcd"), max_size=60),
    commits=st.sets(st.integers(0, 60)),
)
def test_seqs_are_dense_behind_what_is_stored_and_only_changes_are_stored(stored, taken, commits):
    known = {stream: StreamPosition(*fields) for stream, fields in stored.items()}
    log, seqs = dict(known), {}
    capture = Capture("abcd", log, epoch=1000)
    for number, stream in enumerate(taken):
        epoch, seq = capture.take(stream, number)
        seqs.setdefault((stream, epoch), []).append(seq)
        if number in commits:
            changed = capture.changed()
            assert not capture.changed()
            log.update(changed)
            capture = Capture("abcd", log, epoch=1000 + number)  # A restart right behind the commit loses nothing.
    log.update(capture.changed())
    for (stream, epoch), of_stream in seqs.items():
        first = known[stream].next_seq if stream in known else 0
        assert epoch == (known[stream].epoch if stream in known else epoch)
        assert of_stream == list(range(first, first + len(of_stream)))
        assert log[stream].next_seq == of_stream[-1] + 1
        assert taken[log[stream].source_position] == stream
    assert len(seqs) == len(set(taken))  # A stream never has a second epoch once it has a position.


def run(schedule, streams, until_us, step_us, recorded=None):
    """Release all that is due at every step; the times of each stream's releases."""
    releases = [[] for _ in range(streams)]
    for stream in range(streams):
        schedule.add(stream, stream, recorded(stream, 0) if recorded else None)
    now_us = 0
    while now_us <= until_us:
        while schedule.wait_us(now_us) == 0:
            stream, _ = schedule.take()
            releases[stream].append(now_us)
            schedule.add(stream, stream, recorded(stream, len(releases[stream])) if recorded else None)
        now_us += step_us
    return releases


@given(per_s=st.floats(0.5, 200), streams=st.integers(1, 5), step_us=st.integers(1_000, 900_000))
def test_a_rate_is_kept_without_drift_however_coarse_the_steps(per_s, streams, step_us):
    until_us = 5_000_000
    schedule = Schedule(streams, per_s=per_s)
    for releases in run(schedule, streams, until_us, step_us):
        for number, at_us in enumerate(releases):
            due_us = number * 1e6 / per_s
            assert due_us - 1 <= at_us <= due_us + 1e6 / per_s + step_us + 1
    assert schedule.moved_us == 0


@given(late_us=st.integers(0, 60_000_000), per_s=st.integers(1, 100))
def test_what_a_late_producer_makes_up_is_bounded(late_us, per_s):
    schedule = Schedule(1, per_s=per_s)
    schedule.add(0, None)
    assert schedule.wait_us(0) == 0
    released = 0
    while schedule.wait_us(late_us) == 0:
        schedule.take()
        schedule.add(0, None)
        released += 1
    assert released <= min(late_us, CATCH_UP_US) * per_s / 1e6 + 2
    assert released >= min(late_us, CATCH_UP_US) * per_s // 1_000_000
    # Whole again: the next is due within one interval, at the old rate.
    assert 0 < schedule.wait_us(late_us) <= 1e6 / per_s + 1
    assert schedule.moved_us <= max(late_us - CATCH_UP_US, 0)


def test_recorded_times_keep_streams_together_and_start_at_once():
    schedule = Schedule(2, per_s=None, as_recorded=True)
    releases = run(schedule, 2, 1_000_000, 1_000, recorded=lambda stream, n: 7_000_000 + stream * 150_000 + n * 300_000)
    assert releases == [[0, 300_000, 600_000, 900_000], [150_000, 450_000, 750_000]]


def test_unpaced_streams_take_turns():
    schedule = Schedule(3, per_s=None)
    order = []
    for stream in range(3):
        schedule.add(stream, stream)
    for _ in range(9):
        assert schedule.wait_us(0) == 0
        stream, _ = schedule.take()
        order.append(stream)
        schedule.add(stream, stream)
    assert order == [0, 1, 2] * 3


def test_nothing_waits_where_all_streams_have_ended():
    assert Schedule(2, per_s=10).wait_us(5) is None
