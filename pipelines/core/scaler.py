"""When to change the number of workers, and to what: an observation in, a decision out. Pure; times are given.

Rules
- A step out goes to the number that the plan needs (`core.scaling`), not one by one, and not within `out_every_s` of
  the last. It needs `CONFIRM` observations in a row that say so.
- A step in waits until a smaller number would have held the plan, with more headroom, for `in_after_s` without a break.
  One that had to be taken back doubles that time, up to `IN_AFTER_MOST` times.
- A step is judged when its workers have joined and the rates are theirs alone: if the group is still behind and does
  less than before, the step is undone, and so many workers are not tried again for `barred_s`.
- Never fewer than `least`; never more than `most` or than there are partitions.
"""

from collections import deque
from enum import StrEnum

import msgspec

from pipelines.core.capacity import RATES_S, Capacities, Capacity
from pipelines.core.lag import GroupLag, State
from pipelines.core.scaling import Plan, Prediction, loads, needed, reason_for, table

CONFIRM = 2
HOT = 0.9
"""A worker so busy gets help before the target is missed."""
LOWERED = 0.9
"""Less than this share of the throughput before: the step did harm."""
JOIN_MOST_S = 60.0
"""A step whose workers have not joined by then is not judged."""
GAP_S = 10.0
"""Nothing seen for longer than this: the quiet time begins anew."""
IN_AFTER_MOST = 8


class Policy(msgspec.Struct, frozen=True):
    """What the scaler may do, and how patient it is."""

    most: int
    least: int = 1
    plan: Plan = Plan()
    in_utilisation: float = 0.6
    """Of the busiest worker, for the smaller number to be enough."""
    out_every_s: float = 10.0
    in_after_s: float = 120.0
    barred_s: float = 600.0


class Action(StrEnum):
    """What is to be done."""

    HOLD = "hold"
    OUT = "out"
    IN = "in"
    UNDO = "undo"


class Decision(msgspec.Struct, frozen=True):
    """One decision, with what it was made from."""

    action: Action
    before: int
    replicas: int
    """To be running from now on."""
    fixed: int
    """Of them that somebody else runs."""
    reason: str
    workers: int
    """That are in the group."""
    seconds_behind: float
    in_per_s: float
    out_per_s: float
    capacity: Capacity | None
    needed: int | None
    """By the plan; None where nothing is known."""


class _Step(msgspec.Struct):
    """A step out that is not judged yet."""

    before: int
    to: int
    out_per_s: float
    joined_s: float | None = None


class Scaler:
    """Decides for one group."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._least = policy.least
        self._capacities = Capacities()
        self._stepped_s: float | None = None
        self._seen_s: float | None = None
        self._step: _Step | None = None
        self._wanted_out = 0
        self._barred: tuple[int, float] | None = None
        self._quiet: deque[tuple[float, int]] = deque(maxlen=10_000)
        """When, and how many workers would have been enough with the headroom of a step in."""
        self._in_after_s = policy.in_after_s
        self._went_in_s: float | None = None

    def decide(self, at_s: float, group: GroupLag, replicas: int, fixed: int = 0) -> Decision:
        """What to do now. `replicas` is what was asked for last; `at_s` never goes back.

        `fixed` of the replicas are somebody else's, so it cannot be fewer.
        """
        self._least = max(self.policy.least, fixed)
        if self._seen_s is not None and at_s - self._seen_s > GAP_S:
            self._quiet.clear()
        self._seen_s = at_s
        self._capacities.see(at_s, group)
        capacity = self._capacities.capacity(at_s, group)
        ceiling = min(self.policy.most, len(loads(group)) or self.policy.most)
        predictions = table(group, capacity.per_s, self._plan_now(), ceiling) if capacity else []
        best = needed(predictions) if predictions else None
        action, to, reason = self._choose(at_s, group, replicas, ceiling, capacity, predictions, best)
        if action is not Action.HOLD:
            self._note(at_s, action, replicas, to, group)
        return Decision(
            action=action,
            before=replicas,
            replicas=to,
            fixed=fixed,
            reason=reason,
            workers=len(group.members),
            seconds_behind=group.seconds_behind,
            in_per_s=group.in_per_s,
            out_per_s=group.out_per_s,
            capacity=capacity,
            needed=best.replicas if best else None,
        )

    def _plan_now(self) -> Plan:
        """While a step is under way what piles up meanwhile is no reason for another."""
        plan = self.policy.plan
        return plan if self._step is None else msgspec.structs.replace(plan, catch_up_s=float("inf"))

    def _choose(
        self,
        at_s: float,
        group: GroupLag,
        replicas: int,
        ceiling: int,
        capacity: Capacity | None,
        predictions: list[Prediction],
        best: Prediction | None,
    ) -> tuple[Action, int, str]:
        policy = self.policy
        bounded = max(min(replicas, ceiling), self._least)
        if bounded != replicas:
            action = Action.OUT if bounded > replicas else Action.IN
            return action, bounded, f"{self._least} to {ceiling} are allowed"
        undone = self._judge(at_s, group, replicas)
        if undone is not None:
            return undone
        behind = group.seconds_behind > policy.plan.target_s
        if capacity is None or best is None:
            self._quiet.clear()
            return Action.HOLD, replicas, "no worker has said or shown yet what it can do"
        enough = needed(table(group, capacity.per_s, self._plan_in(), ceiling))
        # Never more than there are now: what the headroom of a step in asks for is no reason to step out.
        self._quiet.append((at_s, min(enough.replicas, replicas) if enough.holds and not behind else replicas))
        to = min(best.replicas, self._allowed(at_s, ceiling))
        now = predictions[min(replicas, len(predictions)) - 1]
        wants = to > replicas and (behind or now.utilisation > HOT)
        self._wanted_out = self._wanted_out + 1 if wants else 0
        if self._wanted_out >= CONFIRM and self._may_step(at_s, policy.out_every_s):
            why = (
                f"{group.seconds_behind:.1f} s behind"
                if behind
                else f"the busiest worker is {now.utilisation:.0%} busy"
            )
            return Action.OUT, to, f"{why}; {reason_for(group, predictions[to - 1], predictions, policy.plan)}"
        smaller = self._smaller(at_s, group, replicas)
        if smaller is not None:
            return Action.IN, smaller, f"for {self._in_after_s:.0f} s {smaller} would have been enough"
        return Action.HOLD, replicas, self._why_hold(at_s, group, replicas, behind, now, best, ceiling)

    def _plan_in(self) -> Plan:
        return msgspec.structs.replace(self.policy.plan, utilisation=self.policy.in_utilisation)

    def _allowed(self, at_s: float, ceiling: int) -> int:
        """The ceiling, below what did harm lately."""
        if self._barred is None or at_s >= self._barred[1]:
            self._barred = None
            return ceiling
        return min(ceiling, max(self._barred[0] - 1, self._least))

    def _may_step(self, at_s: float, after_s: float) -> bool:
        return self._stepped_s is None or at_s - self._stepped_s >= after_s

    def _judge(self, at_s: float, group: GroupLag, replicas: int) -> tuple[Action, int, str] | None:
        """Look at what the last step out did, once the rates are of its workers alone."""
        step = self._step
        if step is None:
            return None
        if step.joined_s is None:
            if len(group.members) >= step.to:
                step.joined_s = at_s
            elif self._may_step(at_s, JOIN_MOST_S):
                self._step = None
            return None
        if at_s - step.joined_s < RATES_S:
            return None
        self._step = None
        # With less coming in than going out the group catches up, and does less than before only for want of work.
        catches_up = group.seconds_behind <= self.policy.plan.target_s or group.out_per_s >= group.in_per_s
        if catches_up or group.out_per_s >= LOWERED * step.out_per_s:
            return None
        return (
            Action.UNDO,
            max(step.before, self._least),
            f"{replicas} do {group.out_per_s:,.0f} a second, {step.before} did {step.out_per_s:,.0f}: "
            f"not tried again for {self.policy.barred_s:.0f} s",
        )

    def _smaller(self, at_s: float, group: GroupLag, replicas: int) -> int | None:
        """The number that would have been enough all through the quiet time, where that has passed."""
        since_s = at_s - self._in_after_s
        while len(self._quiet) > 1 and self._quiet[1][0] <= since_s:
            self._quiet.popleft()
        if not self._quiet or self._quiet[0][0] > since_s or not self._may_step(at_s, self._in_after_s):
            return None
        smaller = max(self._least, *(enough for _, enough in self._quiet))
        return smaller if smaller < replicas else None

    def _note(self, at_s: float, action: Action, before: int, to: int, group: GroupLag) -> None:
        if action is Action.OUT:
            # Steps in a row are judged together.
            first = self._step
            self._step = _Step(first.before if first else before, to, first.out_per_s if first else group.out_per_s)
            if self._went_in_s is not None and at_s - self._went_in_s <= 2 * self._in_after_s:
                self._in_after_s = min(self._in_after_s * 2, self.policy.in_after_s * IN_AFTER_MOST)
            elif self._went_in_s is not None:
                self._in_after_s = self.policy.in_after_s
            self._went_in_s = None
        else:
            self._step = None
        if action is Action.UNDO:
            self._barred = (before, at_s + self.policy.barred_s)
        if action is Action.IN:
            self._went_in_s = at_s
        self._stepped_s = at_s
        self._wanted_out = 0
        self._quiet.clear()

    def _why_hold(
        self, at_s: float, group: GroupLag, replicas: int, behind: bool, now: Prediction, best: Prediction, ceiling: int
    ) -> str:
        missing = replicas - len(group.members)
        if missing > 0:
            return f"{missing} of {replicas} have not joined yet"
        if not behind:
            return f"within the target; the busiest worker is {now.utilisation:.0%} busy"
        stuck = [
            f"{one.topic}[{one.partition}]" for one in group.partitions if one.state in (State.STALLED, State.BLOCKED)
        ]
        if stuck:
            return f"{', '.join(stuck[:3])} stands still, which more workers do not mend: see `tidegate lag`"
        if best.replicas > replicas and self._allowed(at_s, ceiling) < best.replicas:
            return "more workers did less a short while ago"
        if not best.holds:
            return reason_for(group, best, [best] * ceiling, self.policy.plan)
        if now.drain_s is not None:
            return f"catching up: {now.drain_s:.0f} s to go"
        return "the last step is not judged yet"
