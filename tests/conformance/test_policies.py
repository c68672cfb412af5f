"""What every policy must hold to: all installed ones, and the example for users. A new policy is tested by being there.

A policy whose options have no defaults needs a line in OPTIONS.
"""

import importlib.util
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.routing.base import EdgeAnswers, Items, Policy, Route, Signals
from pipelines.routing.find import build_policy, policy_names

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_policy.py"
OPTIONS = {"threshold": {"threshold": 0.8}}
NOW_US = 1_700_000_000_000_000
TIMES_US = st.integers(-(2**62), 2**62) | st.integers(NOW_US - 5_000_000, NOW_US + 5_000_000)
CONFIDENCES = st.floats(0, 1, width=32) | st.just(float("nan"))

spec = importlib.util.spec_from_file_location("own_policy", EXAMPLE)
own_policy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(own_policy)

POLICIES = {name: build_policy(name, OPTIONS.get(name, {})) for name in policy_names()}
POLICIES["examples/own_policy"] = own_policy.FirstPriorityFirst()


@pytest.fixture(params=sorted(POLICIES), scope="module")
def policy(request: pytest.FixtureRequest) -> Policy:
    return POLICIES[request.param]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Items, EdgeAnswers]:
    item = st.tuples(
        st.integers(0, 2**40),
        st.integers(-(2**40), 2**60),
        TIMES_US,
        st.integers(0, 2),
        st.floats() | st.none(),
        st.integers(0, 999),
        CONFIDENCES,
    )
    drawn = draw(st.lists(item, max_size=20))
    size, age, deadline, priority, score, label, confidence = zip(*drawn, strict=True) if drawn else [[]] * 7
    ints = [np.array(column, np.int64) for column in (size, age, deadline, priority)]
    items = Items(*ints, np.array(score, np.float64))
    return items, EdgeAnswers(np.array(label, np.intp), np.array(confidence, np.float32))


signals = st.builds(Signals, now_us=TIMES_US, cloud_reachable=st.booleans())


def both(policy: Policy, batch: tuple[Items, EdgeAnswers], seen: Signals):
    items, answers = batch
    return [policy.admit(items, seen), policy.escalate(items, answers, seen)]


def test_the_installed_policies_are_here():
    assert {"edge_only", "cloud_only", "threshold"} <= set(POLICIES)


def test_reasons_are_a_few_distinct_words(policy):
    assert 1 <= len(policy.reasons) <= 64
    assert len(set(policy.reasons)) == len(policy.reasons)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,31}", word) for word in policy.reasons)
    assert isinstance(policy.uses_model, bool)


def test_it_is_frozen_and_its_options_can_be_written_down(policy):
    options = msgspec.to_builtins(policy)
    assert msgspec.convert(options, type(policy)) == policy
    for option in options:
        with pytest.raises(AttributeError):
            setattr(policy, option, 0)


@given(batch=batches(), seen=signals)
def test_every_item_gets_one_route_and_one_reason(policy, batch, seen):
    for routes in both(policy, batch, seen):
        assert routes.route.shape == routes.reason.shape == (batch[0].n,)
        assert routes.route.dtype == routes.reason.dtype == np.uint8
        assert set(routes.route.tolist()) <= set(Route)
        assert all(reason < len(policy.reasons) for reason in routes.reason.tolist())


@given(batch=batches(), seen=signals)
def test_nothing_is_sent_to_a_cloud_that_is_away_or_past_its_deadline(policy, batch, seen):
    for routes in both(policy, batch, seen):
        sent = routes.route == Route.CLOUD
        assert seen.cloud_reachable or not sent.any()
        assert not (sent & (batch[0].deadline_us <= seen.now_us)).any()


@given(batch=batches(), seen=signals, data=st.data())
def test_it_is_pure_and_looks_at_each_item_for_itself(policy, batch, seen, data):
    items, answers = batch
    before = [column.copy() for column in (*items, *answers)]
    whole = both(policy, batch, seen)
    rows = np.array(data.draw(st.permutations(range(items.n))), np.intp)
    shuffled = both(policy, (items.take(rows), EdgeAnswers(answers.label[rows], answers.confidence[rows])), seen)
    for first, second in zip(whole, shuffled, strict=True):
        np.testing.assert_array_equal(first.route[rows], second.route)
        np.testing.assert_array_equal(first.reason[rows], second.reason)
    for column, as_it_was in zip((*items, *answers), before, strict=True):
        np.testing.assert_array_equal(column, as_it_was)


def test_the_example_runs_and_shows_all_its_turns(capsys):
    own_policy.main()
    shown = capsys.readouterr().out
    assert "priority 0, confidence 0.900: cloud (first_unsure)" in shown
    assert "priority 0, confidence 0.900: here (cloud_away)" in shown
