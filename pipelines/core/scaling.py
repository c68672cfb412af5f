"""What another number of workers would bring, and how many a group needs. Pure.

The model is a fluid: a partition brings so many records a second, a worker does so many, and what it cannot do piles up
on it. Partitions are indivisible and are given out as Kafka's range assignor does, so the busiest worker decides.

Constraints
- A capacity is what workers noted of themselves or were seen doing while work waited; it is never made up.
- Beyond the number of partitions a worker would hold none.
- What lies in a partition that is blocked or stalled is no reason for more workers: they would not move it.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from pipelines.core.capacity import Capacity
from pipelines.core.lag import GroupLag, State

SCALABLE = ("edge", "cloud")
"""Kinds of worker that share their work by partitions. Of the others one is active a site, or one is plenty."""

HORIZON_S = 60.0
"""How far predictions look ahead."""


class Plan(msgspec.Struct, frozen=True):
    """What a group should hold."""

    target_s: float = 5.0
    """Seconds behind that are tolerated."""
    utilisation: float = 0.75
    """Of the busiest worker, at most: the headroom for noise, and for the partitions of a worker that fails."""
    catch_up_s: float = 30.0
    """What waits beyond the target must be gone within so long, once the workers are there."""


class Load(msgspec.Struct, frozen=True):
    """What one partition number brings, over all topics of the group."""

    in_per_s: float
    waiting: float = 0.0
    """Records that wait."""


class Prediction(msgspec.Struct, frozen=True):
    """What `replicas` workers would do with the present load, once all of them work."""

    replicas: int
    partitions: int
    """Of the busiest worker."""
    utilisation: float
    """Of the busiest worker; over 1 it falls behind."""
    seconds_behind: float
    """Of the worker that is furthest behind, `HORIZON_S` from now."""
    drain_s: float | None
    """Until nothing waits; None: never."""
    holds: bool
    """The plan is kept."""


class Advice(msgspec.Struct, frozen=True):
    """How many workers a group needs, and what each number would bring."""

    kind: str
    group: str
    workers: int
    """Members of the group now."""
    partitions: int
    seconds_behind: float
    in_per_s: float
    out_per_s: float
    capacity: Capacity | None
    """None: nothing is known yet."""
    replicas: int | None
    """Needed; None where no capacity is known."""
    reason: str
    table: list[Prediction]
    """For 1 to as many replicas as there are partitions (or as are allowed)."""


def shares(partitions: int, workers: int) -> list[range]:
    """The partition numbers of each worker, as Kafka's range assignor gives them: the first take one more.

    It does so for each topic by itself, so a worker gets the same numbers of all topics.
    """
    each, more = divmod(partitions, workers)
    starts = [number * each + min(number, more) for number in range(workers + 1)]
    return [range(first, end) for first, end in pairwise(starts)]


def loads(group: GroupLag) -> list[Load]:
    """What each partition number brings. Work that no worker can get at does not count as waiting."""
    arriving: dict[int, float] = defaultdict(float)
    waiting: dict[int, float] = defaultdict(float)
    for one in group.partitions:
        arriving[one.partition] += one.in_per_s
        if one.state not in (State.BLOCKED, State.STALLED):
            waiting[one.partition] += one.lag_records
    return [Load(arriving[number], waiting[number]) for number in range(max(arriving, default=-1) + 1)]


def predict(load: Sequence[Load], capacity_per_s: float, workers: int, plan: Plan, *, behind: bool) -> Prediction:
    """What so many workers make of this load. `behind`: what waits now is to be caught up."""
    utilisation = seconds_behind = 0.0
    drain_s: float | None = 0.0
    holds = True
    parts = shares(len(load), workers)
    for numbers in parts:
        arriving = sum(load[number].in_per_s for number in numbers)
        waiting = sum(load[number].waiting for number in numbers)
        spare = capacity_per_s - arriving
        utilisation = max(utilisation, arriving / capacity_per_s)
        left = max(waiting - spare * HORIZON_S, 0.0)
        # What waits on a worker came within the last (records waiting / records a second) seconds.
        seconds_behind = max(seconds_behind, left / arriving if arriving > 0 else left / capacity_per_s)
        if spare <= 0:
            drain_s = None if waiting or spare < 0 else drain_s
        elif drain_s is not None:
            drain_s = max(drain_s, waiting / spare)
        in_time = spare > 0 and waiting <= spare * plan.catch_up_s
        holds = holds and arriving <= plan.utilisation * capacity_per_s and (in_time or not behind)
    return Prediction(workers, max(map(len, parts)), utilisation, seconds_behind, drain_s, holds)


def table(group: GroupLag, capacity_per_s: float, plan: Plan, most: int | None = None) -> list[Prediction]:
    """Predictions for 1 to `most` workers, never more than partitions."""
    load = loads(group)
    behind = group.seconds_behind > plan.target_s
    ceiling = min(len(load), most or len(load))
    return [predict(load, capacity_per_s, workers, plan, behind=behind) for workers in range(1, ceiling + 1)]


def needed(predictions: Sequence[Prediction]) -> Prediction:
    """The fewest workers that hold the plan; where none do, the fewest that bring as much as can be had."""
    for one in predictions:
        if one.holds:
            return one
    return min(predictions, key=lambda one: (round(one.utilisation, 6), one.replicas))


def advise(group: GroupLag, capacity: Capacity | None, plan: Plan, most: int | None = None) -> Advice:
    """How many workers the group needs, at most `most`, and why."""
    predictions = table(group, capacity.per_s, plan, most) if capacity else []
    partitions = len(loads(group))
    replicas: int | None = None
    if capacity is None:
        reason = "no worker has said or shown yet what it can do: let records flow for some seconds, then ask again"
    else:
        best = needed(predictions)
        replicas, reason = best.replicas, reason_for(group, best, predictions, plan)
    return Advice(
        kind=group.kind,
        group=group.group,
        workers=len(group.members),
        partitions=partitions,
        seconds_behind=group.seconds_behind,
        in_per_s=group.in_per_s,
        out_per_s=group.out_per_s,
        capacity=capacity,
        replicas=replicas,
        reason=reason,
        table=predictions,
    )


def reason_for(group: GroupLag, best: Prediction, predictions: Sequence[Prediction], plan: Plan) -> str:
    """Why `best` is the advice, in one line."""
    load = loads(group)
    if best.holds:
        line = f"the busiest of {best.replicas} would be {best.utilisation:.0%} busy"
        if group.seconds_behind > plan.target_s and best.drain_s is not None:
            line += f", and what waits gone in {best.drain_s:.0f} s"
        return line
    ceiling = len(predictions)
    hottest = max(load, key=lambda one: one.in_per_s)
    busy = f"the busiest worker would still be {best.utilisation:.0%} busy"
    if best.partitions == 1 and len(load) > 1 and hottest.in_per_s > 1.5 * group.in_per_s / len(load):
        return f"{busy}: partition {load.index(hottest)} alone takes in {hottest.in_per_s:,.0f} a second"
    if ceiling < len(load):
        return f"{busy}: {ceiling} is the most allowed"
    return f"{busy}: there are {len(load)} partitions, and one cannot be shared"


def refusal(workers: int, kind: str, partitions: int) -> str | None:
    """Why so many workers are refused; None where they are not."""
    if workers <= partitions:
        return None
    shared = "1 partition" if partitions == 1 else f"{partitions} partitions"
    return f"{workers} {kind} workers cannot share {shared}: {workers - partitions} would hold none"


SAFE_WAY = (
    "keep within the partitions, or begin a new `site` with more of them and move the cameras over (docs/scaling.md)"
)
"""Partitions are fixed when the topics are created: a stream's records lie in one, in order."""
