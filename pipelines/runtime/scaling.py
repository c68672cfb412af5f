"""Runs the scaler: readings in, workers added and removed.

Constraints
- A reading a second, whatever a driver is doing; a reading that fails is told and changes nothing.
- Workers leave by SIGTERM: what they hold is written, and their partitions go to the others.
- Workers that somebody else runs (a `tidegate run` beside this) count, and are left alone.

Operation
    read ─▶ Scaler.decide ─▶ Driver.scale ─▶ told to whoever listens
"""

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from pipelines.core.lag import GroupLag
from pipelines.core.scaler import Action, Decision, Scaler
from pipelines.errors import TidegateError
from pipelines.observe.lag import Reading

INTERVAL_S = 1.0

OTHERS_KEPT_S = 30.0
"""A worker of somebody else's counts for so long after it was seen: it may only be starting again."""


class Driver(Protocol):
    """Runs as many workers as it is told."""

    @property
    def replicas(self) -> int:
        """Asked for last; at first, found."""
        ...

    def is_own(self, worker: str) -> bool:
        """Whether the member of that name was started by this driver."""
        ...

    def scale(self, replicas: int) -> None:
        """So many from now on. Returns at once; `turn` does it. Raises `TidegateError`."""
        ...

    def turn(self, wait_s: float) -> None:
        """Do what is to be done, for `wait_s` or somewhat longer. Raises `TidegateError` where it cannot be done."""
        ...

    def close(self) -> None:
        """The end: what the driver runs itself is stopped, what somebody else runs stays."""
        ...


class Told(msgspec.Struct, frozen=True):
    """What happened at one reading."""

    at_us: int
    decision: Decision | None = None
    problem: str = ""
    """Why there was none."""


class _Others:
    """Workers of the group that this driver did not start."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=1_000)

    def count(self, now_s: float, group: GroupLag, is_own: Callable[[str], bool]) -> int:
        self._seen.append((now_s, sum(not is_own(member.name) for member in group.members)))
        while now_s - self._seen[0][0] > OTHERS_KEPT_S:
            self._seen.popleft()
        return max(count for _, count in self._seen)


def run_scaler(
    scaler: Scaler,
    driver: Driver,
    read: Callable[[], Reading],
    kind: str,
    tell: Callable[[Told], None],
    ended: Callable[[], bool],
) -> None:
    """Scale the group of `kind` until `ended`. Raises what the driver raises."""
    others = _Others()
    while not ended():
        began_s = time.monotonic()
        told = _look(scaler, driver, others, read, kind)
        tell(told)
        if told.decision is not None and told.decision.action is not Action.HOLD:
            driver.scale(told.decision.replicas - told.decision.fixed)
        driver.turn(max(INTERVAL_S - (time.monotonic() - began_s), 0.0))


def _look(scaler: Scaler, driver: Driver, others: _Others, read: Callable[[], Reading], kind: str) -> Told:
    now_us = time.time_ns() // 1000
    try:
        reading = read()
    except TidegateError as error:
        return Told(now_us, problem=str(error))
    group = group_of(reading.groups, kind)
    if group is None:
        return Told(now_us, problem="; ".join(reading.unreachable.values()) or f"no group of {kind} workers is there")
    now_s = time.monotonic()
    fixed = others.count(now_s, group, driver.is_own)
    return Told(reading.at_us, scaler.decide(now_s, group, driver.replicas + fixed, fixed))


def group_of(groups: Collection[GroupLag], kind: str) -> GroupLag | None:
    """The group of that kind of worker."""
    return next((group for group in groups if group.kind == kind), None)
