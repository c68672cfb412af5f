"""Which of several workers is started anew next, and when: one at a time, and never two down for it.

Pure: every moment is an argument, seconds on one clock; readings come in, names go out.

Rules
    wished    by `roll` (all of them), or by memory: above the limit in `MEMORY_READINGS` readings in a row. A life that
              began after the wish needs no other. After a restart for memory a worker is left alone for
              `MEMORY_REST_S`, however much it takes: the limit may be below what it needs
    next      a worker that is not well itself is taken first; any other only while all are well
    back      the new life is well and holds partitions, or has been well for `IDLE_S` without (more workers than
              partitions). Until then nothing else is begun
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

MEMORY_EVERY_S = 2.0
"""Between two readings."""

MEMORY_READINGS = 3
"""So many in a row above the limit: what a batch takes for a moment is no growth."""

MEMORY_REST_S = 60.0

IDLE_S = 10.0
"""Longer than a group takes to give a new member its share."""


class Reason(StrEnum):
    """Why a worker was started anew."""

    ENDED = "ended"
    """By itself, or killed."""
    MEMORY = "memory"
    ROLL = "roll"


class View(msgspec.Struct, frozen=True):
    """One worker as it stands."""

    name: str
    life: int
    """Counts up with each start; 0 before the first."""
    running: bool
    well: bool
    """Its loop turns, and its health says so."""
    held: int
    """Partitions."""


class Rolling:
    """What is wished, and what is under way. The order of the names is the order of a roll."""

    def __init__(self, names: Sequence[str], memory_most_bytes: int | None = None) -> None:
        self._names = tuple(names)
        self._most_bytes = memory_most_bytes
        self._wished: dict[str, tuple[Reason, int]] = {}
        """With the life that is to end."""
        self._current: str | None = None
        self._life_before = 0
        self._well_since_s: float | None = None
        self._above: dict[str, tuple[int, int]] = {}
        """Of a worker, the life and its readings in a row."""
        self._rests_until_s: dict[str, float] = {}

    @property
    def current(self) -> str | None:
        """The worker that is being started anew."""
        return self._current

    @property
    def waiting(self) -> int:
        """Workers that are still to come."""
        return len(self._wished)

    def roll(self, lives: Mapping[str, int]) -> None:
        """All of them, from the first; one that is under way already counts as done if its old life has ended."""
        self._wished = {name: (Reason.ROLL, lives[name]) for name in self._names}

    def weigh(self, now_s: float, name: str, life: int, resident_bytes: int) -> None:
        """One reading of a worker's memory."""
        if self._most_bytes is None:
            return
        if resident_bytes <= self._most_bytes:
            self._above.pop(name, None)
            return
        of_life, readings = self._above.get(name, (life, 0))
        readings = readings + 1 if of_life == life else 1
        self._above[name] = (life, readings)
        rested = now_s >= self._rests_until_s.get(name, now_s)
        if readings >= MEMORY_READINGS and rested and name not in self._wished and name != self._current:
            self._wished[name] = (Reason.MEMORY, life)

    def next(self, now_s: float, views: Sequence[View]) -> tuple[str, Reason] | None:
        """The worker to be started anew now, if any. It counts as begun."""
        by_name = {view.name: view for view in views}
        if self._current is not None:
            if not self._is_back(now_s, by_name[self._current]):
                return None
            self._current = None
        self._wished = {
            name: wish for name, wish in self._wished.items() if name in by_name and by_name[name].life <= wish[1]
        }
        all_well = all(view.well for view in views)
        for name, (reason, life) in self._wished.items():
            if by_name[name].running and (all_well or not by_name[name].well):
                self._begin(now_s, name, reason, life)
                return name, reason
        return None

    def _begin(self, now_s: float, name: str, reason: Reason, life: int) -> None:
        del self._wished[name]
        self._above.pop(name, None)
        self._current, self._life_before, self._well_since_s = name, life, None
        if reason is Reason.MEMORY:
            self._rests_until_s[name] = now_s + MEMORY_REST_S

    def _is_back(self, now_s: float, view: View) -> bool:
        if view.life <= self._life_before or not view.well:
            self._well_since_s = None
            return False
        if self._well_since_s is None:
            self._well_since_s = now_s
        return view.held > 0 or now_s - self._well_since_s >= IDLE_S
