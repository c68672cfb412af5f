"""Virtual time: what happens when, and threads as generators.

Constraints
- One order of events for one schedule: time, then the order of asking.
- A thread is a generator that yields how long it waits, microseconds, and the signal that ends the wait early. It
  belongs to a host: of a dead one it never goes on, of a stalled one when the stall is over.
- A run has `EVENTS_MOST` events at the most: more are taken for a loop without an end.
"""

import heapq
from collections.abc import Callable, Generator

EVENTS_MOST = 100_000
"""A run of 400 records and 30 faults has a tenth of that."""


class Spins(Exception):
    """Something goes round and round."""


class Host:
    """A machine's process: what lives, stalls and dies together."""

    def __init__(self) -> None:
        self.alive = True
        self.stalled_until_us = 0


class Signal:
    """Ends waits."""

    def __init__(self, clock: "Clock") -> None:
        self._clock = clock
        self._waiters: list[tuple[_Thread, int]] = []

    def wait(self, thread: "_Thread", ticket: int) -> None:
        """Wake this one."""
        self._waiters.append((thread, ticket))

    def notify(self) -> None:
        """Wake all that wait."""
        waiters, self._waiters = self._waiters, []
        for thread, ticket in waiters:
            self._clock.wake(thread, ticket)


Wait = tuple[int, Signal | None]
"""Microseconds at the most, and what ends the wait early."""

Steps = Generator[Wait, None, None]


class _Thread:
    __slots__ = ("host", "steps", "ticket")

    def __init__(self, host: Host, steps: Steps) -> None:
        self.host, self.steps, self.ticket = host, steps, 0


class Clock:
    """The order of events."""

    def __init__(self) -> None:
        self.now_us = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    def at(self, when_us: int, call: Callable[[], None]) -> None:
        """Do it then."""
        self._serial += 1
        heapq.heappush(self._events, (max(when_us, self.now_us), self._serial, call))

    def every(self, interval_us: int, call: Callable[[], None]) -> None:
        """Do it again and again."""

        def once() -> None:
            call()
            self.at(self.now_us + interval_us, once)

        self.at(self.now_us + interval_us, once)

    def spawn(self, host: Host, steps: Steps) -> None:
        """Start a thread."""
        self.wake(_Thread(host, steps), 0)

    def wake(self, thread: _Thread, ticket: int) -> None:
        """It goes on now, unless it did already."""
        self.at(self.now_us, lambda: self._go_on(thread, ticket))

    def run(self, until_us: int, is_over: Callable[[], bool]) -> None:
        """Let it happen, up to a time or an end. Raises `Spins`."""
        events = 0
        while self._events and self._events[0][0] <= until_us:
            when_us, _, call = heapq.heappop(self._events)
            events += 1
            if events > EVENTS_MOST:
                raise Spins(f"more than {EVENTS_MOST} events")
            self.now_us = when_us
            call()
            if is_over():
                return

    def _go_on(self, thread: _Thread, ticket: int) -> None:
        if ticket != thread.ticket:
            return
        host = thread.host
        if not host.alive:
            thread.steps.close()
            return
        if host.stalled_until_us > self.now_us:
            self.at(host.stalled_until_us, lambda: self._go_on(thread, ticket))
            return
        thread.ticket = following = ticket + 1
        try:
            most_us, signal = next(thread.steps)
        except StopIteration:
            return
        if signal is not None:
            signal.wait(thread, following)
        self.at(self.now_us + most_us, lambda: self._go_on(thread, following))
