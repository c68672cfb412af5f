"""The network between one worker and Kafka: calls take time, and may be cut off."""

from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TypeVar

from pipelines.sim.chance import Chance
from pipelines.sim.clock import Clock, Wait
from pipelines.sim.kafka import Busy, ProducerFenced

T = TypeVar("T")

LATENCY_MOST_US = 3_000
"""One way."""
REQUEST_MOST_US = 1_000_000
"""The client's time-out of a call."""
BUSY_US = 10_000
"""Before a call is made again that found the coordinator busy with what was decided before."""


class Away(Exception):
    """No answer came. The call may have been carried out."""


class Link:
    """One worker's."""

    def __init__(self, clock: Clock, chance: Chance) -> None:
        self.clock, self._chance = clock, chance
        self.cut_until_us = 0
        self.lost_replies = 0
        """Answers to commits that do not come."""
        self.lost_calls = 0
        """Commits that arrive when nobody waits for them any more."""

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes through."""
        return self.clock.now_us < self.cut_until_us

    def call(self, what: Callable[[], T], *, commits: bool = False) -> Generator[Wait, None, T]:
        """Have it done. Raises `Away`, and what it raises."""
        until_us = self.clock.now_us + REQUEST_MOST_US
        while self.clock.now_us < until_us:
            yield self._latency()
            lost = commits and self.lost_calls > 0
            if lost or self.is_cut:
                self.lost_calls -= lost
                if lost:
                    self._arrives_late(what)
                break
            try:
                done = what()
            except Busy:
                yield BUSY_US, None
                continue
            yield self._latency()
            lost = commits and self.lost_replies > 0
            if lost or self.is_cut:
                self.lost_replies -= lost
                break
            return done
        yield max(until_us - self.clock.now_us, 0), None
        raise Away

    def _arrives_late(self, what: Callable[[], object]) -> None:
        def arrive() -> None:
            with suppress(ProducerFenced):
                what()

        self.clock.at(self.clock.now_us + REQUEST_MOST_US + self._chance.randrange(1_000, 400_000), arrive)

    def _latency(self) -> Wait:
        return self._chance.randrange(100, LATENCY_MOST_US), None
