"""Routing: what each policy decides, how policies are found, and when the cloud counts as reachable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.routing.base import EdgeAnswers, Items, Route, Signals, decide
from pipelines.routing.find import build_policy
from pipelines.routing.signals import SHARE_OF_TTL, Reachability
from schemas.control import Credit

NOW_US = 1_700_000_000_000_000
TTL_MS = 1500
TTL_US = TTL_MS * 1000


def one(deadline_us: int, confidence: float = 0.5) -> tuple[Items, EdgeAnswers]:
    number = np.array([1], np.int64)
    items = Items(number, number, np.array([deadline_us], np.int64), number, np.array([np.nan]))
    return items, EdgeAnswers(np.array([0]), np.array([confidence], np.float32))


def says(policy, routes) -> tuple[Route, str]:
    return Route(routes.route[0]), policy.reasons[routes.reason[0]]


@given(left_us=st.integers(-(10**7), 10**7), reachable=st.booleans(), confidence=st.floats(0, 1))
def test_edge_only_answers_everything_here(left_us, reachable, confidence):
    policy, (items, answers) = build_policy("edge_only"), one(NOW_US + left_us, confidence)
    seen = Signals(NOW_US, reachable)
    for routes in (policy.admit(items, seen), policy.escalate(items, answers, seen)):
        assert says(policy, routes) == (Route.HERE, "policy_edge_only")


@given(left_us=st.integers(-(10**7), 10**7), reachable=st.booleans())
def test_cloud_only_sends_what_can_still_be_answered(left_us, reachable):
    policy, (items, answers) = build_policy("cloud_only"), one(NOW_US + left_us)
    seen = Signals(NOW_US, reachable)
    if not reachable:
        expected = (Route.HERE, "cloud_away")
    elif left_us <= 0:
        expected = (Route.HERE, "past_deadline")
    else:
        expected = (Route.CLOUD, "policy_cloud_only")
    assert says(policy, policy.admit(items, seen)) == expected
    assert says(policy, policy.escalate(items, answers, seen)) == expected


@given(
    threshold=st.floats(0, 1, width=32),
    confidence=st.floats(0, 1, width=32),
    min_left_ms=st.integers(0, 5000),
    left_us=st.integers(-(10**7), 10**7),
    reachable=st.booleans(),
)
def test_threshold_sends_what_is_unsure_in_time_and_possible(threshold, confidence, min_left_ms, left_us, reachable):
    policy = build_policy("threshold", {"threshold": threshold, "min_left_ms": min_left_ms})
    items, answers = one(NOW_US + left_us, confidence)
    seen = Signals(NOW_US, reachable)
    if confidence >= threshold:
        expected = (Route.HERE, "confident")
    elif not reachable:
        expected = (Route.HERE, "cloud_away")
    elif left_us <= min_left_ms * 1000:
        expected = (Route.HERE, "past_deadline")
    else:
        expected = (Route.CLOUD, "unsure")
    assert says(policy, policy.admit(items, seen)) == (Route.HERE, "admitted")
    assert says(policy, policy.escalate(items, answers, seen)) == expected


def test_a_confidence_that_is_not_a_number_is_never_trusted():
    policy = build_policy("threshold", {"threshold": 0.0})
    items, answers = one(NOW_US + 10**6, float("nan"))
    assert says(policy, policy.escalate(items, answers, Signals(NOW_US, True))) == (Route.CLOUD, "unsure")


def test_decide_refuses_to_leave_an_item_without_a_route():
    with pytest.raises(ValueError, match="hold for all"):
        decide(2, (np.array([True, False]), Route.HERE, 0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("treshold", {}, "there is no policy 'treshold': perhaps 'threshold'"),
        ("threshold", {}, "missing required field `threshold`"),
        ("threshold", {"treshold": 0.9}, "has no option 'treshold': perhaps 'threshold'; it takes threshold, min_left"),
        ("threshold", {"threshold": 1.5}, "<= 1.0"),
        ("threshold", {"threshold": "high"}, "Expected `float`, got `str`"),
        ("edge_only", {"threshold": 0.9}, "it takes none: remove it"),
        ("no_such_module:Policy", {}, "cannot be imported"),
        ("pipelines.routing.base:Nothing", {}, "cannot be imported"),
        ("pipelines.routing.base:Items", {}, "is without reasons"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said_in_one_line(name, options, message):
    with pytest.raises(ConfigError) as caught:
        build_policy(name, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_is_found_by_module_and_name():
    assert build_policy("pipelines.routing.threshold:Threshold", {"threshold": 0.5}).threshold == 0.5


def credit(ttl_ms: int = TTL_MS) -> Credit:
    return Credit(site="s", issued_us=0, ttl_ms=ttl_ms, worker="w")


def heard(*times_us: int) -> Reachability:
    state = Reachability()
    for time_us in times_us:
        state = state.after(credit(), time_us)
    return state


def test_the_cloud_is_away_until_it_was_heard_of():
    assert not Reachability().reachable(0)
    assert not Reachability().reachable(NOW_US)


@given(st.lists(st.integers(0, 10 * TTL_US), min_size=1, max_size=30), st.integers(0, 12 * TTL_US))
def test_reachable_only_within_the_ttl_of_the_last_credit(offsets_us, at_us):
    times_us = sorted(NOW_US + offset for offset in offsets_us)
    if heard(*times_us).reachable(NOW_US + at_us):
        assert NOW_US + at_us < times_us[-1] + TTL_US


@given(st.integers(1, 20), st.integers(1, 100))
def test_one_burst_of_old_credits_does_not_bring_the_cloud_back(count, spread_us):
    # All within less than a third of the ttl: a backlog carried over at once.
    times_us = [NOW_US + index * spread_us for index in range(count)]
    assert not heard(*times_us).reachable(times_us[-1])


@given(st.integers(TTL_US, 3 * TTL_US), st.integers(2, 20))
def test_a_link_that_lets_one_credit_through_now_and_then_never_counts_as_back(gap_us, count):
    times_us = [NOW_US + index * gap_us for index in range(count)]
    assert not heard(*times_us).reachable(times_us[-1])


@given(st.integers(TTL_US // SHARE_OF_TTL, TTL_US - 1), st.integers(2, 20))
def test_steady_credit_brings_it_back_and_its_end_takes_it_away(interval_us, count):
    times_us = [NOW_US + index * interval_us for index in range(count)]
    state = heard(*times_us)
    assert state.reachable(times_us[-1])
    assert state.reachable(times_us[-1] + TTL_US - 1)
    assert not state.reachable(times_us[-1] + TTL_US)


def test_an_older_credit_changes_nothing_and_one_without_ttl_ends_it():
    state = heard(NOW_US, NOW_US + 1_000_000)
    assert state.after(credit(), NOW_US + 500_000) == state
    assert not state.after(credit(ttl_ms=0), NOW_US + 1_200_000).reachable(NOW_US + 1_200_000)
