"""What the advice promises: Kafka's own shares, predictions that follow from the load, and no made-up capacity."""

from math import isclose

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.capacity import BUSY_S, Capacities, Capacity, noted
from pipelines.core.lag import GroupLag, Member, PartitionLag, State
from pipelines.core.scaling import HORIZON_S, Load, Plan, advise, loads, needed, predict, refusal, shares, table
from schemas.topics import Tier

rates = st.floats(0, 10_000).map(lambda per_s: round(per_s, 3))
capacities = st.floats(1, 10_000)
one_load = st.builds(Load, in_per_s=rates, waiting=st.integers(0, 1_000_000))
load_lists = st.lists(one_load, min_size=1, max_size=16)


def partition(number: int, **given_fields) -> PartitionLag:
    fields = {
        "topic": "items",
        "partition": number,
        "owner": "edge-0",
        "committed": 0,
        "end": 0,
        "lag_records": 0,
        "seconds_behind": 0.0,
        "in_per_s": 100.0,
        "out_per_s": 100.0,
        "drain_s": 0.0,
        "state": State.OK,
    }
    return PartitionLag(**{**fields, **given_fields})


def group(*partitions: PartitionLag, members: int = 1) -> GroupLag:
    return GroupLag(
        kind="edge",
        group="site.edge",
        tier=Tier.EDGE,
        members=[Member(f"edge-{number}", "", []) for number in range(members)],
        partitions=list(partitions),
        lag_records=sum(one.lag_records for one in partitions),
        seconds_behind=max(one.seconds_behind for one in partitions),
        in_per_s=sum(one.in_per_s for one in partitions),
        out_per_s=sum(one.out_per_s for one in partitions),
        drain_s=0.0,
        state=State.OK,
    )


@given(st.integers(1, 200), st.integers(1, 250))
def test_every_partition_has_one_worker_and_nobody_has_two_more_than_another(partitions, workers):
    parts = shares(partitions, workers)
    assert len(parts) == workers
    assert [number for part in parts for number in part] == list(range(partitions))
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(
    ("partitions", "workers", "expected"),
    [(6, 4, [2, 2, 1, 1]), (6, 6, [1] * 6), (7, 3, [3, 2, 2]), (2, 3, [1, 1, 0])],
)
def test_shares_are_those_of_the_range_assignor(partitions, workers, expected):
    assert [len(part) for part in shares(partitions, workers)] == expected


@given(load_lists, capacities, st.integers(1, 16), st.booleans())
def test_a_prediction_follows_from_the_busiest_worker(load, capacity_per_s, workers, behind):
    plan = Plan()
    found = predict(load, capacity_per_s, workers, plan, behind=behind)
    sums = [sum(load[number].in_per_s for number in part) for part in shares(len(load), workers)]
    assert isclose(found.utilisation, max(sums) / capacity_per_s)
    assert found.utilisation * capacity_per_s >= max(one.in_per_s for one in load) * (1 - 1e-9)
    assert found.seconds_behind >= 0
    if found.holds:
        assert found.utilisation <= plan.utilisation
        if behind:
            assert found.drain_s is not None
            assert found.drain_s <= plan.catch_up_s * (1 + 1e-9)
    if found.utilisation > 1:
        assert found.drain_s is None
        # It grows by 1 - 1 / utilisation a second at least, whatever waits already.
        assert found.seconds_behind >= HORIZON_S * (1 - 1 / found.utilisation) * (1 - 1e-6)


@given(st.lists(st.lists(one_load, min_size=6, max_size=6), min_size=2, max_size=4), capacities)
def test_dividing_each_share_is_never_worse(shared, capacity_per_s):
    plan, workers = Plan(), len(shared)
    load = [one for share in shared for one in share]
    few = predict(load, capacity_per_s, workers, plan, behind=True)
    many = predict(load, capacity_per_s, 2 * workers, plan, behind=True)
    assert many.utilisation <= few.utilisation * (1 + 1e-9)
    assert many.holds or not few.holds


@given(load_lists, capacities)
def test_the_advice_is_the_fewest_that_hold_the_plan_or_as_much_as_can_be_had(load, capacity_per_s):
    predictions = [predict(load, capacity_per_s, workers, Plan(), behind=False) for workers in range(1, len(load) + 1)]
    best = needed(predictions)
    if best.holds:
        assert not any(one.holds for one in predictions[: best.replicas - 1])
    else:
        assert not any(one.holds for one in predictions)
        assert best.utilisation <= min(one.utilisation for one in predictions) + 1e-5


def test_without_a_capacity_there_is_no_number():
    advice = advise(group(partition(0), partition(1)), None, Plan())
    assert advice.replicas is None
    assert advice.table == []
    assert "no worker has said or shown" in advice.reason


def test_the_hottest_partition_bounds_what_more_workers_bring():
    skewed = group(partition(0, in_per_s=900.0), *(partition(number, in_per_s=20.0) for number in range(1, 6)))
    advice = advise(skewed, Capacity(500.0, False), Plan())
    assert "partition 0 alone takes in 900 a second" in advice.reason
    assert advice.replicas == 6  # Alone at last, and still too much for one worker.
    assert [row.holds for row in advice.table] == [False] * 6


def test_numbers_that_bring_nothing_over_a_smaller_one_are_not_advised():
    even = group(*(partition(number, in_per_s=200.0) for number in range(6)))
    advice = advise(even, Capacity(500.0, False), Plan())
    assert [round(row.utilisation, 2) for row in advice.table] == [2.4, 1.2, 0.8, 0.8, 0.8, 0.4]
    assert advice.replicas == 6
    at_most_five = advise(even, Capacity(500.0, False), Plan(), most=5)
    assert at_most_five.replicas == 3
    assert "5 is the most allowed" in at_most_five.reason


def test_what_is_behind_must_be_caught_up_in_time():
    calm = group(*(partition(number, in_per_s=100.0) for number in range(6)))
    assert advise(calm, Capacity(1_000.0, False), Plan()).replicas == 1
    behind = group(*(partition(number, in_per_s=100.0, lag_records=4_000, seconds_behind=40.0) for number in range(6)))
    advice = advise(behind, Capacity(1_000.0, False), Plan(catch_up_s=30.0))
    assert advice.replicas == 2
    assert "gone in 17 s" in advice.reason


@pytest.mark.parametrize("state", [State.BLOCKED, State.STALLED])
def test_what_no_worker_can_get_at_is_no_reason_for_more(state):
    stuck = group(
        partition(0, in_per_s=10.0, lag_records=90_000, seconds_behind=500.0, state=state),
        *(partition(number, in_per_s=10.0) for number in range(1, 6)),
    )
    assert advise(stuck, Capacity(1_000.0, False), Plan()).replicas == 1


def test_partition_numbers_of_several_topics_go_together():
    both = group(partition(0), partition(1), partition(0, topic="other", in_per_s=50.0))
    assert loads(both) == [Load(150.0), Load(100.0)]
    assert [row.partitions for row in table(both, 100.0, Plan())] == [2, 1]


def test_past_the_partitions_is_refused_with_the_reason():
    assert refusal(6, "edge", 6) is None
    assert refusal(7, "edge", 6) == "7 edge workers cannot share 6 partitions: 1 would hold none"
    assert refusal(2, "cloud", 1) == "2 cloud workers cannot share 1 partition: 1 would hold none"


@pytest.mark.parametrize("silent", [0, 1])
def test_a_partition_without_a_note_does_not_silence_its_owner(silent):
    told = [partition(number, capacity_per_s=None if number == silent else 400.0) for number in range(2)]
    assert noted(group(*told)) == Capacity(400.0, False)


def test_a_capacity_is_what_workers_say_until_one_is_seen_that_is_never_idle():
    told = [
        partition(0, owner="edge-0", capacity_per_s=400.0),
        partition(1, owner="edge-1", capacity_per_s=800.0),
        partition(2, owner="edge-2", capacity_per_s=500.0),
    ]
    book = Capacities()
    book.see(0, group(*told))
    assert book.capacity(0, group(*told)) == noted(group(*told)) == Capacity(500.0, False)
    for second in range(int(BUSY_S) + 2):
        busy = msgspec.structs.replace(told[1], committed=150 * second, lag_records=900, out_per_s=150.0)
        seen = group(told[0], busy, told[2])
        book.see(second, seen)
    assert book.capacity(second, seen) == Capacity(150.0, True)
    assert book.capacity(second + 10_000, seen) == Capacity(500.0, False)


def test_a_worker_that_only_waits_for_its_first_records_is_not_slow():
    book = Capacities()
    for second in range(30):
        seen = group(
            partition(0, committed=0, lag_records=900, out_per_s=10.0),
            partition(1, committed=100 * second, lag_records=900, out_per_s=100.0),
        )
        book.see(second, seen)
    assert book.capacity(30, seen) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(["", "a", "b"])), max_size=40))
def test_no_observation_makes_a_capacity_of_nothing(steps):
    book = Capacities()
    committed = 0
    for second, (done, waiting, owner) in enumerate(steps):
        committed += done
        seen = group(partition(0, owner=owner, committed=committed, lag_records=waiting, out_per_s=float(done)))
        book.see(second, seen)
        found = book.capacity(second, seen)
        assert found is None or (found.measured and found.per_s > 0)
