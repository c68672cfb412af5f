"""A policy of your own, in one file: the first priority is sent to the cloud sooner than the rest.

Run it to see what it decides:        python examples/own_policy.py
Use it, with its folder on the import path (PYTHONPATH=examples):

    routing:
      policy: own_policy:FirstPriorityFirst
      options: {first: 0.99, rest: 0.8}
"""

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from pipelines.routing.base import EdgeAnswers, Items, Route, Routes, Signals, decide

# One index a reason, in the order of `reasons` below.
ADMITTED, CONFIDENT, CLOUD_AWAY, PAST_DEADLINE, FIRST_UNSURE, UNSURE = range(6)

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class FirstPriorityFirst(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fields are options: what the pipeline file gives is checked against them before anything starts."""

    first: Share = 0.99
    """Items of priority 0 are sent on under this confidence."""
    rest: Share = 0.8
    """All others under this."""

    reasons: ClassVar[tuple[str, ...]] = (
        "admitted",
        "confident",
        "cloud_away",
        "past_deadline",
        "first_unsure",
        "unsure",
    )
    uses_model: ClassVar[bool] = True

    def admit(self, items: Items, signals: Signals) -> Routes:
        """Before decoding: everything stays for the edge's model."""
        return decide(items.n, (True, Route.HERE, ADMITTED))

    def escalate(self, items: Items, answers: EdgeAnswers, signals: Signals) -> Routes:
        """After the model, a whole micro-batch at once. The first case that holds decides."""
        first = items.priority == 0
        return decide(
            items.n,
            (answers.confidence >= np.where(first, self.first, self.rest), Route.HERE, CONFIDENT),
            (not signals.cloud_reachable, Route.HERE, CLOUD_AWAY),
            (items.deadline_us <= signals.now_us, Route.HERE, PAST_DEADLINE),
            (first, Route.CLOUD, FIRST_UNSURE),
            (True, Route.CLOUD, UNSURE),
        )


def main() -> None:
    """Show the decision on four items, with the cloud there and away."""
    policy = FirstPriorityFirst()
    confidence = np.array([0.995, 0.9, 0.9, 0.5], np.float32)
    now_us = 1_000_000
    items = Items(
        size_bytes=np.full(4, 784),
        age_us=np.full(4, 20_000),
        deadline_us=np.full(4, now_us + 2_000_000),
        priority=np.array([0, 0, 1, 1]),
        gate_score=np.full(4, np.nan),
    )
    answers = EdgeAnswers(label=np.zeros(4, np.intp), confidence=confidence)
    for reachable in (True, False):
        routes, reasons = policy.escalate(items, answers, Signals(now_us, cloud_reachable=reachable))
        print(f"cloud {'reachable' if reachable else 'away'}")
        for priority, value, route, reason in zip(items.priority, confidence, routes, reasons, strict=True):
            print(
                f"  priority {priority}, confidence {value:.3f}: {Route(route).name.lower()} ({policy.reasons[reason]})"
            )


if __name__ == "__main__":
    main()
