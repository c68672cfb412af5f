"""How a partition stands, by what was seen of it."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.core.lag import SAMPLES_MOST, SURE_US, WINDOW_US, LagBook, Sample, State, worst
from pipelines.core.oldest import Found, Oldest, Waits
from schemas.topics import Tier

T0 = 1_700_000_000_000_000
PLACE = ("site.items", 0)
SECOND = 1_000_000

steps_us = st.integers(200_000, 2_000_000)


@st.composite
def histories(draw, least=1, most=30):
    """Samples of one partition as a log gives them: times and offsets only grow, `end` never passes `high`."""
    samples, at_us, committed, end, high = [], T0, 0, 0, 0
    for _ in range(draw(st.integers(least, most))):
        at_us += draw(steps_us)
        high += draw(st.integers(0, 50))
        end = max(end, high - draw(st.sampled_from([0, 0, 0, 5])))
        committed = min(end, committed + draw(st.integers(0, 60)))
        waits = committed < end and draw(st.booleans())
        oldest_us = at_us - draw(st.integers(-SECOND, 60 * SECOND)) if waits else None
        samples.append(Sample(at_us, committed, end, high, oldest_us, draw(st.sampled_from(["", "w", "w"]))))
    return samples


def book(samples):
    made = LagBook("edge", "site.edge", Tier.EDGE)
    for sample in samples:
        made.take({PLACE: sample})
    return made


def stand(samples):
    return book(samples).lag().partitions[0]


def window(samples):
    """The samples that decide: the newest ones that span a whole window, or all there are."""
    for first in range(len(samples) - 1, -1, -1):
        if samples[-1].at_us - samples[first].at_us >= WINDOW_US:
            return samples[first:], True
    return samples, False


def waits(sample):
    return sample.oldest_us is not None


def due(sample):
    return waits(sample) and sample.oldest_us <= sample.at_us


@given(histories())
def test_seconds_behind_are_those_of_the_newest_sample(samples):
    newest, found = samples[-1], stand(samples)
    expected = max(newest.at_us - newest.oldest_us, 0) / 1e6 if waits(newest) else 0.0
    assert found.seconds_behind == expected
    assert (found.committed, found.end, found.owner) == (newest.committed, newest.end, newest.owner)
    assert found.lag_records == newest.end - newest.committed


@given(histories())
def test_states_follow_the_rules(samples):
    seen, whole = window(samples)
    newest = seen[-1]
    found = stand(samples).state
    if not waits(newest):
        same = [s for s in seen if s.end == newest.end and s.high > s.end and newest.at_us - s.at_us >= SURE_US]
        assert found is (State.BLOCKED if same and newest.high > newest.end else State.OK)
    elif found is State.STOPPED:
        still = [s for s in seen if newest.at_us - s.at_us <= SURE_US]
        assert all(not s.owner and waits(s) and s.committed == newest.committed for s in still)
    elif not whole or not all(due(s) for s in seen):
        assert found is State.OK
    elif newest.committed == seen[0].committed:
        assert found is (State.STALLED if newest.owner else State.OK)
    else:
        lags = [s.end - s.committed for s in seen]
        fell = any(after < before for before, after in pairwise(lags))
        assert found is State.OK or (found is State.SLOW and not fell)


@given(histories(least=3))
def test_who_had_nothing_to_do_within_the_window_is_neither_stalled_nor_slow(samples):
    seen, _ = window(samples)
    assume(any(not waits(s) for s in seen))
    assert stand(samples).state not in (State.STALLED, State.SLOW)


def frozen(seconds, owner="w", oldest_us=T0 - SECOND, committed=5):
    """Nothing is done for so long; a sample a second."""
    return [Sample(T0 + n * SECOND, committed, 10 + n, 10 + n, oldest_us, owner) for n in range(seconds + 1)]


@given(st.integers(0, 9))
def test_a_young_window_cries_nothing_and_says_that_it_is_young(seconds):
    young = book(frozen(seconds))
    assert young.lag().state is State.OK
    assert young.undecided


@pytest.mark.parametrize("before", [[], [Sample(T0 - 3 * SECOND, 1, 9, 9, T0 - 4 * SECOND, "w")]])
def test_a_whole_window_without_a_commit_is_stalled(before):
    old = book([*before, *frozen(10)])
    assert old.lag().state is State.STALLED
    assert old.lag().drain_s is None
    assert not old.undecided


def test_nobody_there_is_stopped_after_a_second():
    assert book(frozen(0, owner="")).undecided
    found = book(frozen(1, owner=""))
    assert found.lag().state is State.STOPPED
    assert not found.undecided


def test_a_partition_that_changes_hands_is_not_stopped():
    samples = [*frozen(0, owner=""), *frozen(3)[1:]]
    assert stand(samples).state is State.OK


def test_items_that_are_not_due_stall_nobody():
    held = book(frozen(12, oldest_us=T0 + 20 * SECOND))
    assert held.lag().state is State.OK
    assert held.lag().seconds_behind == 0
    assert held.lag().drain_s == 0
    late = book(frozen(40, oldest_us=T0 + 20 * SECOND))
    assert late.lag().state is State.STALLED
    assert late.lag().seconds_behind == 20


def test_a_settler_that_nobody_runs_is_stopped_before_anything_is_due():
    assert stand(frozen(2, owner="", oldest_us=T0 + 20 * SECOND)).state is State.STOPPED


def moving(rates, backlog=0):
    """A sample a second of a partition into which and out of which so many records came in that second."""
    samples, committed, end = [], 0, backlog
    for n, (came, went) in enumerate([(0, 0), *rates]):
        end += came
        committed = min(end, committed + went)
        behind_us = (end - committed) * 10_000
        samples.append(Sample(T0 + n * SECOND, committed, end, end, T0 + n * SECOND - behind_us or None, "w"))
    return samples


@given(st.lists(st.tuples(st.integers(101, 200), st.integers(1, 100)), min_size=10, max_size=25))
def test_more_in_than_out_is_slow_and_never_drains(rates):
    found = book(moving(rates, backlog=1000))
    assert found.lag().state is State.SLOW
    assert found.lag().drain_s is None


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(101, 200)), min_size=10, max_size=20))
def test_more_out_than_in_drains_as_predicted(rates):
    found = stand(moving(rates, backlog=10_000))
    assert found.state is State.OK
    assert found.drain_s is not None
    left = found.lag_records + (found.in_per_s - found.out_per_s) * found.drain_s
    assert left == pytest.approx(0, abs=1e-6)


def test_a_backlog_that_neither_grows_nor_shrinks_is_slow_only_if_it_is_longer_than_the_window():
    assert stand(moving([(100, 100)] * 12, backlog=2000)).state is State.SLOW
    assert stand(moving([(100, 100)] * 12, backlog=20)).state is State.OK


@given(histories(least=2))
def test_rates_are_what_came_and_went_over_the_window(samples):
    seen, _ = window(samples)
    span_s = (seen[-1].at_us - seen[0].at_us) / 1e6
    assume(span_s)
    found = stand(samples)
    assert found.in_per_s == pytest.approx((seen[-1].end - seen[0].end) / span_s)
    assert found.out_per_s == pytest.approx((seen[-1].committed - seen[0].committed) / span_s)
    assert found.in_per_s >= 0
    assert found.out_per_s >= 0


@given(histories(least=2), histories(), st.sampled_from(["committed", "end", "clock"]))
def test_what_jumps_back_begins_a_new_window(before, after, what):
    last, first = before[-1], after[0]
    later_us = 0 if what == "clock" else last.at_us - T0
    shifted = [
        Sample(s.at_us + later_us, s.committed, s.end, s.high, s.oldest_us and s.oldest_us + later_us, s.owner)
        for s in after
    ]
    goes_back = {"committed": first.committed < last.committed, "end": first.end < last.end}
    assume(goes_back.get(what, first.at_us <= last.at_us))
    assert book([*before, *shifted]).lag() == book(shifted).lag()


@given(histories(most=60))
def test_an_undecided_partition_is_decided_after_a_window(samples):
    seen = book(samples)
    newest = samples[-1]
    for n in range(1, 12):
        seen.take(
            {
                PLACE: Sample(
                    newest.at_us + n * SECOND,
                    *(getattr(newest, k) for k in ("committed", "end", "high", "oldest_us", "owner")),
                )
            }
        )
    assert not seen.undecided


def test_memory_is_bounded_however_often_samples_come():
    made = LagBook("edge", "site.edge", Tier.EDGE)
    for n in range(5_000):
        made.take({PLACE: Sample(T0 + n * 10_000, 5, 10, 10, T0, "w")})
    assert len(made._windows[PLACE]) <= 1.2 * SAMPLES_MOST
    assert made.lag().state is State.STALLED


def test_a_partition_that_is_not_seen_any_more_is_forgotten():
    made = book(frozen(3))
    made.take({("site.items", 1): Sample(T0 + 60 * SECOND, 0, 0, 0, None)})
    assert [one.partition for one in made.lag().partitions] == [1]


@given(st.lists(histories(), min_size=1, max_size=4))
def test_a_group_is_its_partitions_together(many):
    made = LagBook("edge", "site.edge", Tier.EDGE)
    newest_us = max(samples[-1].at_us for samples in many)
    many = [[s for s in samples if newest_us - s.at_us < WINDOW_US] or samples[-1:] for samples in many]
    for number, samples in enumerate(many):
        for sample in samples:
            made.take({("site.items", number): sample})
    group = made.lag()
    parts = group.partitions
    assert group.state is worst(one.state for one in parts)
    assert group.lag_records == sum(one.lag_records for one in parts)
    assert group.seconds_behind == max((one.seconds_behind for one in parts), default=0)
    assert group.in_per_s == pytest.approx(sum(one.in_per_s for one in parts))
    if any(one.drain_s is None for one in parts):
        assert group.drain_s is None
    else:
        assert group.drain_s == max((one.drain_s for one in parts), default=0)


def test_states_go_from_good_to_bad():
    assert worst([]) is State.OK
    assert worst([State.SLOW, State.STALLED, State.OK, State.BLOCKED]) is State.STALLED
    assert list(accumulate(State, lambda a, b: worst([a, b]))) == list(State)


@pytest.mark.parametrize(
    ("came", "hot"),
    [
        ([100, 100, 100, 100, 100, 1000], {5}),
        ([100, 100, 100, 100, 100, 200], set()),
        ([0, 0, 0, 0, 0, 99], set()),
        ([100, 400], {1}),
        ([100, 200], set()),
        ([500], set()),
    ],
)
def test_a_hot_partition_takes_in_far_more_than_the_mean(came, hot):
    made = LagBook("edge", "site.edge", Tier.EDGE)
    for n in (0, 1):
        made.take({("site.items", p): Sample(T0 + n * SECOND, 0, r * n, r * n, None) for p, r in enumerate(came)})
    assert {one.partition for one in made.lag().partitions if one.hot} == hot


# -- since when the first record waits ---------------------------------------------------------------------------------


@given(st.data())
def test_the_oldest_record_is_found_whatever_lies_in_the_log(data):
    """A log of records and empty offsets (markers); commits anywhere in it, also back; looks that are not answered."""
    log: list[int | None] = []
    oldest, at_us, told = Oldest(), T0, True
    for _ in range(data.draw(st.integers(1, 25))):
        at_us += SECOND
        log += data.draw(st.lists(st.sampled_from([None, at_us - 5, at_us - 500_000]), max_size=6))
        committed = data.draw(st.integers(0, len(log)))
        end = data.draw(st.integers(committed, len(log))) if told else len(log)
        end = max(end, committed)
        wanted = oldest.wanted({PLACE: (committed, end)}, at_us)
        truth = next((Waits(since, since + 1) for since in log[committed:end] if since is not None), None)
        told = data.draw(st.booleans())
        if PLACE in wanted and told:
            assert all(since is None for since in log[committed : wanted[PLACE]])
            first = next((o for o in range(wanted[PLACE], len(log)) if log[o] is not None), None)
            oldest.note({PLACE: None if first is None else Found(first, Waits(log[first], log[first] + 1))})
        if PLACE not in wanted or told:
            assert oldest.waits(PLACE) == truth
        else:
            assert oldest.waits(PLACE) is not None


def test_a_record_is_looked_at_once():
    oldest = Oldest()
    assert oldest.wanted({PLACE: (3, 10)}, T0) == {PLACE: 3}
    oldest.note({PLACE: Found(5, Waits(T0 - 7, T0 - 6))})
    for committed in (3, 4, 5):
        assert oldest.wanted({PLACE: (committed, 20)}, T0) == {}
        assert oldest.waits(PLACE) == Waits(T0 - 7, T0 - 6)
    assert oldest.wanted({PLACE: (6, 20)}, T0) == {PLACE: 6}


def test_what_was_found_empty_is_not_looked_at_again():
    oldest = Oldest()
    oldest.wanted({PLACE: (3, 10)}, T0)
    oldest.note({PLACE: None})
    assert oldest.wanted({PLACE: (3, 10)}, T0) == {}
    assert oldest.waits(PLACE) is None
    for _ in range(3):
        assert oldest.wanted({PLACE: (3, 12)}, T0 + 1) == {PLACE: 10}


def test_without_an_answer_what_was_sure_stays():
    oldest = Oldest()
    oldest.wanted({PLACE: (3, 10)}, T0)
    assert oldest.waits(PLACE) == Waits(T0, T0)
    oldest.note({PLACE: Found(3, Waits(T0 - 9, T0 - 8))})
    oldest.wanted({PLACE: (4, 10)}, T0 + 5)
    assert oldest.waits(PLACE) == Waits(T0 - 9, T0 - 8)
