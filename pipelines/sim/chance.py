"""Where randomness comes from: a generator that is handed in, `random.Random` as a rule."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Chance(Protocol):
    """What is needed of `random.Random`."""

    def random(self) -> float:
        """From 0 up to 1."""
        ...

    def randrange(self, start: int, stop: int) -> int:
        """From `start` up to, and without, `stop`."""
        ...

    def choice(self, seq: Sequence[T]) -> T:
        """One of them."""
        ...


Generators = Callable[[str], Chance]
"""A generator by its seed: each part of a run has its own, so that one fault less leaves the others as they are."""
