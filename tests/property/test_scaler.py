"""The scaler against a model of workers in virtual time: throttled, slow to start, paused by every rebalance, noisy.

Everything that the scaler sees comes through the real `LagBook`. Time is the model's own: minutes take milliseconds.
"""

from collections import deque
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.lag import LagBook, Member, Sample
from pipelines.core.scaler import CONFIRM, Action, Policy, Scaler
from pipelines.core.scaling import Plan, shares
from schemas.topics import Tier

TICK_S = 0.25
TARGET_S = 5.0
STEP_AT_S = 120.0
MET_WITHIN_S = 60.0
WATCHED_S = 600.0
SEEDS = range(20)


class Workers:
    """Partitions as queues, and workers that serve them. `total_per_s` is all that the machine can do for them."""

    def __init__(self, random: Random, *, weights, capacity_per_s, total_per_s=float("inf"), noted=1.0, harm=0.0):
        self.random = random
        self.weights = [weight / sum(weights) for weight in weights]
        self.capacity_per_s, self.total_per_s = capacity_per_s, total_per_s
        self.noted, self.harm = noted, harm
        self.now_s = 0.0
        self.waiting = [deque() for _ in weights]
        self.came = [0.0 for _ in weights]
        self.done = [0.0 for _ in weights]
        self.owner = [""] * len(weights)
        self.paused_until_s = [0.0] * len(weights)
        self.members: list[str] = []
        self.starting: list[tuple[float, str]] = []
        self.record = [1.0] * len(weights)
        self.made = 0
        self.book = LagBook("edge", "site.edge", Tier.EDGE)

    def scale(self, replicas: int) -> None:
        while len(self.members) + len(self.starting) > replicas:
            if self.starting:
                self.starting.pop()
            else:
                self.members.pop()
                self.rebalance()
        while len(self.members) + len(self.starting) < replicas:
            self.starting.append((self.now_s + self.random.uniform(2, 8), f"edge-{self.made}"))
            self.made += 1

    def rebalance(self) -> None:
        for name, numbers in zip(self.members, shares(len(self.weights), max(len(self.members), 1)), strict=True):
            for number in numbers:
                if self.owner[number] != name:
                    self.paused_until_s[number] = self.now_s + self.random.uniform(0.5, 3.5)
                    self.owner[number] = name

    def run(self, seconds: float, in_per_s: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            joined = [name for due_s, name in self.starting if due_s <= self.now_s]
            if joined:
                self.starting = [(due_s, name) for due_s, name in self.starting if due_s > self.now_s]
                self.members += joined
                self.rebalance()
            for number, weight in enumerate(self.weights):
                mean = in_per_s * weight * TICK_S
                # Normal, as many independent cameras are; never fewer than none.
                count = max(self.random.gauss(mean, mean**0.5), 0.0)
                self.came[number] += count
                self.waiting[number].append([self.now_s, count])
            self.serve()

    def serve(self) -> None:
        crowd = len(self.members)
        each = min(self.capacity_per_s, self.total_per_s * (1 - self.harm) ** max(crowd - 1, 0) / max(crowd, 1))
        for name in self.members:
            left = each * TICK_S * self.random.uniform(0.85, 1.15)
            own = [n for n, owner in enumerate(self.owner) if owner == name and self.paused_until_s[n] <= self.now_s]
            # The oldest first, as a consumer that fetches from all its partitions does by and large.
            while left > 0 and (own := [number for number in own if self.waiting[number]]):
                number = min(own, key=lambda one: self.waiting[one][0][0])
                head = self.waiting[number][0]
                taken = min(head[1], left)
                head[1] -= taken
                left -= taken
                self.done[number] += taken
                if head[1] <= 1e-9:
                    self.waiting[number].popleft()

    @property
    def behind_s(self) -> float:
        return max((self.now_s - queue[0][0] for queue in self.waiting if queue), default=0.0)

    def observe(self):
        at_us = round(self.now_s * 1e6)
        samples = {}
        for number, queue in enumerate(self.waiting):
            # As the worker makes it: a mean over some seconds of the time that a record takes.
            now = 1.0 if len(queue) >= 5 else 1 / self.noted
            self.record[number] += (now - self.record[number]) / 5
            samples["items", number] = Sample(
                at_us=at_us,
                committed=int(self.done[number]),
                end=int(self.came[number]),
                high=int(self.came[number]),
                oldest_us=round(queue[0][0] * 1e6) if queue else None,
                owner=self.owner[number],
                capacity_per_s=self.capacity_per_s / self.record[number],
            )
        self.book.take(samples)
        members = [
            Member(name, "", [("items", n) for n, owner in enumerate(self.owner) if owner == name])
            for name in self.members
        ]
        return self.book.lag(members)


class Run:
    """A model and a scaler, a second at a time."""

    def __init__(self, workers: Workers, policy: Policy, replicas: int = 1) -> None:
        self.workers, self.scaler, self.replicas = workers, Scaler(policy), replicas
        workers.scale(replicas)
        workers.run(10, 0)
        self.steps: list[tuple[float, Action, int, int]] = []
        self.behind: list[tuple[float, float]] = []

    def until(self, end_s: float, in_per_s: float) -> None:
        while self.workers.now_s < end_s:
            self.workers.run(1.0, in_per_s)
            decision = self.scaler.decide(self.workers.now_s, self.workers.observe(), self.replicas)
            assert decision.reason
            if decision.action is not Action.HOLD:
                self.steps.append((self.workers.now_s, decision.action, decision.before, decision.replicas))
                self.replicas = decision.replicas
                self.workers.scale(self.replicas)
            self.behind.append((self.workers.now_s, self.workers.behind_s))

    def turns(self, since_s: float) -> int:
        """How often the direction changed."""
        signs = [to > before for at_s, _, before, to in self.steps if at_s >= since_s]
        return sum(one != other for one, other in pairwise(signs))

    def last_over_target_s(self) -> float:
        return max((at_s for at_s, behind_s in self.behind if behind_s > TARGET_S), default=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_load_step_of_three_times_is_met_within_a_minute_and_nothing_flaps(seed):
    random = Random(seed)
    capacity_per_s = random.choice([80.0, 400.0, 2_000.0])
    partitions = random.choice([6, 8, 12])
    workers = Workers(
        random,
        weights=[random.uniform(0.8, 1.2) for _ in range(partitions)],
        capacity_per_s=capacity_per_s,
        # A note may promise more than a limit on the processor grants, or less, made in small batches.
        noted=random.choice([0.6, 1.0, 2.0, 4.0]),
    )
    load = random.uniform(0.4, 0.7) * capacity_per_s
    run = Run(workers, Policy(most=partitions, plan=Plan(target_s=TARGET_S)))
    run.until(STEP_AT_S, load)
    run.until(STEP_AT_S + MET_WITHIN_S + WATCHED_S, 3 * load)
    assert run.last_over_target_s() <= STEP_AT_S + MET_WITHIN_S, run.steps
    assert run.turns(STEP_AT_S) <= 1, run.steps
    assert len([step for step in run.steps if step[0] >= STEP_AT_S + MET_WITHIN_S]) <= 2, run.steps


@pytest.mark.parametrize("seed", SEEDS)
def test_it_comes_in_again_when_the_load_goes_and_stays_within_the_target(seed):
    random = Random(seed)
    workers = Workers(random, weights=[1] * 6, capacity_per_s=200.0, noted=random.choice([1.0, 4.0]))
    run = Run(workers, Policy(most=6, plan=Plan(target_s=TARGET_S)))
    run.until(200, 360)
    high = run.replicas
    assert high >= 3
    run.until(1_400, 90)
    assert run.replicas < high
    assert run.last_over_target_s() <= 200, run.steps
    assert run.turns(200) == 0, run.steps


@pytest.mark.parametrize("seed", range(6))
def test_a_step_that_does_harm_is_undone_and_not_tried_again_for_a_while(seed):
    random = Random(seed)
    # One worker has the machine to itself; more of them only get into each other's way.
    workers = Workers(random, weights=[1] * 6, capacity_per_s=100.0, total_per_s=100.0, harm=0.3)
    policy = Policy(most=6, plan=Plan(target_s=TARGET_S), barred_s=300)
    run = Run(workers, policy)
    run.until(60, 60)
    run.until(1_000, 130)
    undone = [(at_s, before) for at_s, action, before, _ in run.steps if action is Action.UNDO]
    assert undone, run.steps
    for at_s, before in undone:
        after = [to for later_s, _, _, to in run.steps if at_s < later_s < at_s + policy.barred_s]
        assert all(to < before for to in after), run.steps


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    least=st.integers(1, 3),
    more=st.integers(0, 5),
    partitions=st.integers(1, 8),
    skew=st.integers(1, 10),
    loads=st.lists(st.floats(0, 1_500), min_size=1, max_size=4),
)
def test_it_stays_within_its_bounds_and_takes_its_time(seed, least, more, partitions, skew, loads):
    workers = Workers(Random(seed), weights=[skew, *[1] * (partitions - 1)], capacity_per_s=200.0)
    least = min(least, partitions)
    policy = Policy(least=least, most=least + more)
    run = Run(workers, policy)
    for number, load in enumerate(loads, start=1):
        run.until(number * 150.0, load)
    ceiling = min(policy.most, partitions)
    assert all(least <= to <= ceiling for _, _, _, to in run.steps)
    assert all(to != before for _, _, before, to in run.steps)
    for (first_s, *_), (second_s, action, *_) in pairwise(run.steps):
        assert action is Action.UNDO or second_s - first_s >= min(policy.out_every_s, policy.in_after_s)
    for at_s, action, _, _ in run.steps:
        before = [earlier_s for earlier_s, *_ in run.steps if earlier_s < at_s]
        if action is Action.IN and before:
            assert at_s - before[-1] >= policy.in_after_s


def test_one_observation_alone_moves_nothing():
    workers = Workers(Random(1), weights=[1] * 4, capacity_per_s=100.0)
    workers.scale(1)
    workers.run(20, 50)
    workers.observe()
    workers.run(10, 900)
    scaler = Scaler(Policy(most=4))
    actions = []
    for _ in range(CONFIRM):
        actions.append(scaler.decide(workers.now_s, workers.observe(), 1).action)
        workers.run(1, 900)
    assert actions == [Action.HOLD] * (CONFIRM - 1) + [Action.OUT]
