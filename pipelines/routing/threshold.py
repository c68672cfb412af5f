"""`threshold`: the edge answers first; answers it is not sure of are sent on.

Confidence is calibrated (temperature scaling, see `pipelines.models.heads`), so a threshold of 0.9 keeps the answers
that are right at least nine times in ten. The threshold that comes with a model stands on its card.
"""

from typing import Annotated, ClassVar

import msgspec

from pipelines.routing.base import EdgeAnswers, Items, Route, Routes, Signals, decide

ADMITTED, CONFIDENT, CLOUD_AWAY, PAST_DEADLINE, UNSURE = range(5)


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Escalates answers under `threshold` while the cloud can be reached and `min_left_ms` remain."""

    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Calibrated confidence, 0..1: an answer under it is sent on."""
    min_left_ms: Annotated[int, msgspec.Meta(ge=0)] = 0
    """An item with less than this before its deadline is not sent: the cloud's answer would come too late."""

    reasons: ClassVar[tuple[str, ...]] = ("admitted", "confident", "cloud_away", "past_deadline", "unsure")
    uses_model: ClassVar[bool] = True

    def admit(self, items: Items, signals: Signals) -> Routes:
        """All stay here until the edge's model has answered."""
        return decide(items.n, (True, Route.HERE, ADMITTED))

    def escalate(self, items: Items, answers: EdgeAnswers, signals: Signals) -> Routes:
        """Sent on where confidence is under the threshold. A confidence that is not a number is under it."""
        left_us = items.deadline_us - signals.now_us
        return decide(
            items.n,
            (answers.confidence >= self.threshold, Route.HERE, CONFIDENT),
            (not signals.cloud_reachable, Route.HERE, CLOUD_AWAY),
            (left_us <= self.min_left_ms * 1000, Route.HERE, PAST_DEADLINE),
            (True, Route.CLOUD, UNSURE),
        )
