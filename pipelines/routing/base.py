"""What a policy is shown, what it says, and the protocol that it follows.

A policy decides at two points, over a micro-batch of n items at a time:

admit      before decoding, from what the record tells without being opened: relieves an edge before it spends anything
escalate   after the edge's model, when its calibrated confidence is known: is the answer good enough?

What `escalate` says of an item is final; what `admit` says is final for items that do not stay here.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["EdgeAnswers", "Items", "Policy", "Route", "Routes", "Signals", "decide"]


class Route(IntEnum):
    """Where an item goes."""

    HERE = 0
    """It is answered at the edge."""
    CLOUD = 1
    """Its record is sent on, bytes unchanged; the edge's answer, where there is one, is kept."""
    SHED = 2
    """It is let go, and the ledger says why."""


class Items(NamedTuple):
    """What is known of n items. Every array is [n]."""

    size_bytes: NDArray[np.int64]
    """Of the payload."""
    age_us: NDArray[np.int64]
    """Since capture."""
    deadline_us: NDArray[np.int64]
    """Since the Unix epoch; an answer after it is of no use."""
    priority: NDArray[np.int64]
    """0 (first) to 2."""
    gate_score: NDArray[np.float64]
    """What the gate made of it; NaN where no gate looked."""

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.size_bytes)

    def take(self, rows: NDArray[np.intp]) -> "Items":
        """The items at `rows`, in that order."""
        return Items(
            size_bytes=self.size_bytes[rows],
            age_us=self.age_us[rows],
            deadline_us=self.deadline_us[rows],
            priority=self.priority[rows],
            gate_score=self.gate_score[rows],
        )


class EdgeAnswers(NamedTuple):
    """What the edge's model said of n items. Every array is [n]."""

    label: NDArray[np.intp]
    """Index of the label."""
    confidence: NDArray[np.float32]
    """0..1, calibrated."""


class Signals(msgspec.Struct, frozen=True):
    """What is known of the site at the moment of the decision."""

    now_us: int
    """Since the Unix epoch."""
    cloud_reachable: bool
    """See `pipelines.routing.signals`."""


class Routes(NamedTuple):
    """A decision on n items. Both arrays are [n]."""

    route: NDArray[np.uint8]
    """A `Route` each."""
    reason: NDArray[np.uint8]
    """An index into the policy's `reasons` each."""


class Policy(Protocol):
    """A policy: a frozen `msgspec.Struct` (or dataclass) whose fields are its options.

    Pure: the same arguments give the same routes, and nothing is kept between calls. Total: every item gets a route,
    whatever the values. Never `CLOUD` while `signals.cloud_reachable` is false.
    """

    reasons: ClassVar[tuple[str, ...]]
    """Every reason it can give: at most 64 words of a-z, 0-9 and _."""
    uses_model: ClassVar[bool]
    """Whether it may keep an item here while the cloud can be reached: then a site must have a model."""

    def admit(self, items: Items, signals: Signals) -> Routes:
        """Route items before they are decoded."""
        ...

    def escalate(self, items: Items, answers: EdgeAnswers, signals: Signals) -> Routes:
        """Route items that stayed here and have the edge's answer."""
        ...


def decide(n: int, *cases: tuple[ArrayLike, Route, int]) -> Routes:
    """The first case that holds for each of `n` items: (bool or bool [n], route, index of the reason).

    The last case must hold for all. Raises `ValueError` where no case holds for an item.
    """
    holds: Sequence[NDArray[np.bool_]] = [np.broadcast_to(np.asarray(case[0], np.bool_), n) for case in cases]
    first = np.argmax(holds, axis=0)
    if not np.any(holds, axis=0).all():
        raise ValueError("a policy left an item without a route: let its last case hold for all")
    routes = np.array([route for _, route, _ in cases], np.uint8)
    reasons = np.array([reason for _, _, reason in cases], np.uint8)
    return Routes(routes[first], reasons[first])
