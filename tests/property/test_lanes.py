from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.lanes import FLOOR_SHARE, choose

lanes = st.lists(st.lists(st.integers(0, 1000), max_size=30), min_size=1, max_size=5)


def sums(sizes, taken):
    return [sum(lane[:count]) for lane, count in zip(sizes, taken, strict=True)]


@given(lanes, st.integers(1, 5000))
def test_the_budget_holds_unless_one_record_alone_is_larger(sizes, budget_bytes):
    taken = choose(sizes, budget_bytes)
    assert all(0 <= count <= len(lane) for count, lane in zip(taken, sizes, strict=True))
    assert sum(sums(sizes, taken)) <= budget_bytes or sum(taken) == 1
    assert any(taken) == any(sizes)


@given(lanes, st.integers(1, 5000))
def test_what_is_left_goes_by_priority(sizes, budget_bytes):
    taken = choose(sizes, budget_bytes)
    if sum(sums(sizes, taken)) > budget_bytes:
        first = next(lane for lane, records in enumerate(sizes) if records)
        assert taken == [int(lane == first) for lane in range(len(sizes))]
        return
    floor = int(budget_bytes * FLOOR_SHARE / len(sizes))
    beyond = [
        sum(lane[:count]) - max(total for total in accumulate(lane[:count], initial=0) if total <= floor)
        for lane, count in zip(sizes, taken, strict=True)
    ]
    left = budget_bytes - sum(sums(sizes, taken))
    for higher, (lane, count) in enumerate(zip(sizes, taken, strict=True)):
        # Not even with all that lower lanes have beyond their floors would the next record have fitted.
        assert count == len(lane) or lane[count] > left + sum(beyond[higher + 1 :])


@given(lanes, st.integers(100, 5000))
def test_every_lane_gets_its_floor(sizes, budget_bytes):
    taken = choose(sizes, budget_bytes)
    floor = int(budget_bytes * FLOOR_SHARE / len(sizes))
    for lane, count in zip(sizes, taken, strict=True):
        if count < len(lane):
            assert sum(lane[: count + 1]) > floor


def test_a_record_larger_than_the_budget_does_not_block():
    assert choose([[], [10_000, 1]], 100) == [0, 1]


def test_a_busy_first_lane_does_not_starve_the_last():
    taken = choose([[100] * 100, [], [], [100] * 100], 4_000)
    assert taken == [38, 0, 0, 2]
